"""A bus in a container: namespaces of its own, a root it cannot write to, a uid without a name.

Invariant: the container is made of the kernel's namespaces alone, in a child that takes all of it
away with it; without the right to make one the tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

UID = 54321

# In a mount namespace of its own: all that is mounted becomes read-only but one directory.
SETUP = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=1777 tmpfs "$1"
mount -o remount,bind,ro /
shift
exec setpriv --reuid=$UID --regid=$UID --clear-groups --no-new-privs "$@"
"""

# The container's only process but for the bus, which it starts and asks.
INIT = """
import os, subprocess, sys
folder, command = sys.argv[1], sys.argv[2:]
assert os.getpid() == 2 or os.getpid() == 1, os.getpid()
try:
    open("/written", "w")
except OSError as error:
    print("root:", error.strerror, flush=True)
bus = subprocess.Popen(
    [*command, f"--address=unix:path={folder}/bus", "--nofork", "--print-address=1"],
    stdout=subprocess.PIPE, cwd="/",
)
address = bus.stdout.readline().decode().strip()
from rawclient import RawClient
with RawClient(address) as one, RawClient(address) as two:
    name = one.hello()
    two.hello()
    one.reply_to(one.driver(b"RequestName", "su", "org.example.Contained", 0))
    known = two.reply_to(two.driver(b"GetConnectionCredentials", "s", "org.example.Contained"))
    known = known.body[0]
    print("uid:", known["UnixUserID"][1], "pid:", known["ProcessID"][1] == os.getpid(), flush=True)
bus.terminate()
print("end:", bus.wait(30), os.listdir(folder), flush=True)
"""


def contained(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    tests = str(Path(__file__).parent.parent)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH")))),
        "UID": str(UID),
    }
    return subprocess.run(
        [
            "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--ipc", "--uts",
            "sh", "-c", SETUP.replace("$UID", str(UID)), "sh", str(folder),
            sys.executable, "-c", INIT, str(folder), *command,
        ],
        env=environment, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    probe = ["unshare", "--mount", "--pid", "--fork", "mount", "--make-rprivate", "/"]
    if os.geteuid() != 0 or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("cannot make namespaces here")
    # Not below /tmp, which is another one in there.
    with tempfile.TemporaryDirectory(prefix="jitney-container-", dir="/run") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def readable() -> bool:
    """Whether somebody else can run this Python and find jitney."""
    probe = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", sys.executable, "-c",
             "import jitney.compat.cli, rawclient"]  # fmt: skip
    tests = str(Path(__file__).parent.parent)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH")))),
    }
    return subprocess.run(probe, env=environment, capture_output=True, check=False).returncode == 0


def test_read_only_root_and_a_uid_without_a_name(folder: Path) -> None:
    if not readable():
        pytest.skip("this Python or these tests cannot be read by others")
    done = contained(folder, sys.executable, "-m", "jitney.compat", "--session")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "root: Read-only file system", f"uid: {UID} pid: True", "end: 0 []",
    ]  # fmt: skip
