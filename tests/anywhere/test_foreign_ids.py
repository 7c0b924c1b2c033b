"""A bus in a container whose ids are others outside: clients come from inside and from outside.

Invariant: who a client is, is what the kernel says where the bus is: an id that is mapped there is
the mapped one, all others are nobody's (65534), and a process of another pid namespace has no pid.
dbus-daemon answers the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import buses
import kernel
import pytest
from rawclient import RawClient

from jitney.compat import ways

FIRST, COUNT, NOBODY = 100000, 65536, 65534
BUS, OTHER = 1, 2
"""Users of the user database in there, as dbus-daemon asks of all: "daemon" and "bin"."""

# Becomes the container's first process, starts the bus, and is one of its clients.
INIT = """
import ctypes, os, signal, subprocess, sys
folder, bus, other, command = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x20000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000):
    sys.exit("unshare: " + os.strerror(ctypes.get_errno()))
print("apart", flush=True)
sys.stdin.readline()  # the ids are mapped from outside
os.setresgid(0, 0, 0)
os.setgroups([])
os.setresuid(0, 0, 0)
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
libc.prctl(1, signal.SIGKILL)  # with its parent
script = '''mount --make-rprivate / && mount -t proc proc /proc && mount --bind "$1" "$1" &&
mount -o remount,bind,ro /'''
subprocess.run(["sh", "-c", script, "sh", folder], check=True)
daemon = subprocess.Popen(
    [*command, f"--config-file={folder}/bus.conf", "--nofork", "--print-address=1"],
    stdout=subprocess.PIPE, cwd="/", user=bus, group=bus, extra_groups=[],
)
address = daemon.stdout.readline().decode().strip()
from rawclient import RawClient
with RawClient(address, uid=other) as client:
    client.hello()
    client.reply_to(client.driver(b"RequestName", "su", "org.example.Contained", 0))
    try:
        open("/written", "w")
    except OSError as error:
        print(error.strerror, address, flush=True)
    sys.stdin.readline()
daemon.terminate()
print("end:", daemon.wait(30), flush=True)
"""


class Unnamed(RawClient):
    """A client that leaves it to the kernel who it is, as those must whose id the bus calls
    otherwise."""

    def _authenticate(self, fds: bool, uid: int) -> None:
        self.sock.sendall(b"\0AUTH EXTERNAL\r\n")
        self._expect(b"DATA")
        self.sock.sendall(b"DATA\r\n")
        self._expect(b"OK ")
        self.sock.sendall(b"BEGIN\r\n")


def known(client: RawClient, name: str) -> dict[str, Any]:
    found = client.reply_to(client.driver(b"GetConnectionCredentials", "s", name)).body[0]
    return {key: value for key, (_, value) in found.items()}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="jitney-ids-") as name:
        os.chown(name, FIRST + BUS, FIRST + BUS)
        os.chmod(name, 0o755)
        (Path(name) / "services").mkdir()
        (Path(name) / "bus.conf").write_text(
            buses.CONFIG.format(type="session", directory=name, extra="")
        )
        yield Path(name)


class Container:
    """The process that makes it, and talks with us by lines."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        tests = str(Path(__file__).parent.parent)
        path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-c", INIT, str(folder), str(BUS), str(OTHER), *command],
            env={**os.environ, "PYTHONPATH": path}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def hear(self) -> str:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline().strip():
            return line
        said = self.process.communicate()[1].strip()
        if "unshare:" in said or "mount:" in said or "PermissionError" in said:
            pytest.skip(f"cannot make a container here: {said.splitlines()[-1]}")
        raise AssertionError(said)

    def say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def map_ids(self) -> None:
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{self.process.pid}/{kind}").write_text(f"0 {FIRST} {COUNT}\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can map other users' ids")
@pytest.mark.parametrize("name", ["jitney", "dbus-daemon"])
def test_ids_are_those_of_the_bus_s_namespace(folder: Path, name: str) -> None:
    if name == "dbus-daemon" and buses.REFERENCE is None:
        pytest.skip("no dbus-daemon")
    ours = name == "jitney"
    command = [sys.executable, "-m", "jitney.compat"] if ours else [str(buses.REFERENCE)]
    with Container(folder, command) as container:
        assert container.hear() == "apart"
        container.map_ids()
        container.say()
        said, _, address = container.hear().rpartition(" ")
        assert said == "Read-only file system"
        pids = ways.PEER_PIDS or not ours

        # The bus's own user by its outer name is somebody else to it, and nobody says otherwise.
        with pytest.raises(ConnectionError, match="REJECTED"):
            RawClient(address, uid=FIRST + BUS)
        with pytest.raises(ConnectionError, match="REJECTED"):
            RawClient(address, uid=FIRST + OTHER)

        groups = (FIRST + 7, 5000)
        with (
            Unnamed(address, uid=FIRST + BUS, groups=groups) as mapped,
            Unnamed(address, uid=0) as root,
            Unnamed(address, uid=5000) as unmapped,
        ):
            clients = (mapped, root, unmapped)
            for client in clients:
                client.hello()
            inside = known(mapped, "org.example.Contained")
            assert inside["UnixUserID"] == OTHER
            assert inside.get("ProcessID") == (1 if pids else None)
            for client, uid in zip(clients, (BUS, NOBODY, NOBODY), strict=True):
                told = known(root, client.unique_name)
                assert told["UnixUserID"] == uid
                assert not told.get("ProcessID")
                asked = client.driver(b"GetConnectionUnixUser", "s", client.unique_name)
                assert client.reply_to(asked).body == [uid]
            if kernel.PEER_GROUPS and ways.LINUX:
                assert sorted(known(root, mapped.unique_name)["UnixGroupIDs"]) == [7, NOBODY]
        container.say()
        assert container.hear() == "end: 0"
