"""The filter that makes a kernel look like Linux 3.10 does so, and a bus runs under it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import buses
import kernel
import pytest
from rawclient import RawClient

FILTER = Path(__file__).with_name("linux310.py")

PROBE = """
import ctypes, fcntl, os, socket
one, two = socket.socketpair()
libc = ctypes.CDLL(None, use_errno=True)
def tried(call):
    try:
        call()
    except OSError as error:
        return error.errno
    return 0
def prctl(option):
    if libc.prctl(option, ctypes.c_ulong(4), 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "")
print(*map(tried, (
    lambda: os.memfd_create("x"),
    lambda: os.pidfd_open(os.getpid()),
    lambda: os.getrandom(1),
    lambda: one.getsockopt(1, 59, 4),
    lambda: one.getsockopt(1, 77, 4),
    lambda: one.getsockopt(1, 17, 12),
    lambda: fcntl.fcntl(one, 1034),
    lambda: fcntl.fcntl(one, fcntl.F_GETFL),
    lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR),
    lambda: prctl(47),
    lambda: prctl(3),
)))
"""

EXPECTED = [
    errno.ENOSYS, errno.ENOSYS, errno.ENOSYS, errno.ENOPROTOOPT, errno.ENOPROTOOPT, 0,
    errno.EINVAL, 0, errno.EISDIR, errno.EINVAL, 0,
]  # fmt: skip


def under(*command: str) -> list[str]:
    return [sys.executable, str(FILTER), *command]


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    done = subprocess.run(under("true"), capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(done.stderr.strip())


def test_what_is_newer_is_not_there() -> None:
    done = subprocess.run(
        under(sys.executable, "-c", PROBE), capture_output=True, text=True, check=True
    )
    assert list(map(int, done.stdout.split())) == EXPECTED


def test_a_bus_on_linux_3_10() -> None:
    with buses.running(under(*buses.jitney_command())) as bus:
        with RawClient(bus.address) as client:
            name = client.hello()
            known = client.reply_to(client.driver(b"GetConnectionCredentials", "s", name)).body[0]
        # No ProcessFD and, as the kernel does not say them, no UnixGroupIDs.
        assert known.get("ProcessID") == kernel.MY_PID
        assert known["UnixUserID"] == ("u", os.geteuid())
        assert not {"ProcessFD", "UnixGroupIDs"} & known.keys()
