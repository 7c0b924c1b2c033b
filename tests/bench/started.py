"""What the tests of `jitney.bench` share: brokers to try, and what must be left of them."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import kernel
import pytest
from waiting import comes

from jitney.bench import brokers, wire

EVERY = pytest.mark.parametrize("name", brokers.KNOWN)


def broker(name: str) -> brokers.Broker:
    """The broker of this name; skips the test where it cannot be had."""
    if reason := brokers.missing(name):
        pytest.skip(f"{name}: {reason}")
    if name == "dbus-broker" and not kernel.AMBIENT:
        pytest.skip("dbus-broker does not start without ambient capabilities (Linux 4.3)")
    return brokers.find([name])[0]


def folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("jitney-bench-*"))


def children() -> set[int]:
    """Our own, the dead that nobody waited for among them."""
    task = Path("/proc/self/task", str(os.getpid()), "children")
    return set(map(int, task.read_text().split()))


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """No child and no folder is there after the block that was not there before."""
    before = children(), folders()
    yield
    assert children() <= before[0]
    assert folders() <= before[1]


class Caller:
    """A connection that has said hello."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self.sock.sendall(wire.auth_lines(with_fds=False) + wire.hello())
        data = b""
        while b"\r\n" not in data:
            data += self.sock.recv(4096)
        assert data.startswith(b"OK ")
        self.unread = data.partition(b"\r\n")[2]
        self.serial = 1
        self.name = self._reply()

    def call(self, member: bytes, signature: bytes = b"", body: bytes = b"") -> bytes:
        """The text that the bus answers with."""
        self.serial += 1
        self.sock.sendall(wire.driver_call(member, signature, body, self.serial))
        return self._reply()

    def close(self) -> None:
        self.sock.close()

    def _reply(self) -> bytes:
        while True:
            text, self.unread = wire.parse_string_reply(self.unread, self.serial)
            if text is not None:
                return text
            got = self.sock.recv(1 << 16)
            assert got, "the broker closed the connection"
            self.unread += got


def gone(pids: list[int]) -> bool:
    """Whether these processes have ended, or do so soon."""

    def reaped(pid: int) -> bool:
        # The orphans of our children are ours, and only dead once we have looked.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return not Path("/proc", str(pid)).exists()

    return comes(lambda: all(reaped(pid) for pid in pids))
