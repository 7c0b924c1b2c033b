"""The audit log: where the kernel's security modules write, and we beside them.

Invariant: writing never raises. Where the kernel takes no records from us (no CAP_AUDIT_WRITE, no
audit in it, a container's user namespace), they go to the bus's own log, and a kernel that said so
once is not asked again.

Records look as libaudit makes them of dbus-daemon's.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

USER_AVC = 1107
USER_POLICY_LOAD = 2310
USER_STATUS = 2313

AUDIT_WRITE = 1 << 29

_NETLINK_AUDIT = 9
_NLMSG_ERROR = 2
_REQUEST_ACK = 1 | 4
_HEADER = struct.Struct("=IHHII")
_MAX = 8560
"""As much as the kernel takes of one message."""

_ABSENT = (errno.EINVAL, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)


class Audit:
    """`log(text)`: what is done where the kernel takes nothing; `warn(text)`: trouble."""

    def __init__(self, log: Callable[[str], None], warn: Callable[[str], None]) -> None:
        self._log = log
        self._socket: socket.socket | None = None
        self._serial = 0
        if not effective() & AUDIT_WRITE:
            return
        try:
            self._socket = socket.socket(
                getattr(socket, "AF_NETLINK", 16), socket.SOCK_RAW | socket.SOCK_CLOEXEC,
                _NETLINK_AUDIT,
            )  # fmt: skip
            self._socket.setblocking(False)
        except OSError as error:
            if error.errno not in _ABSENT:
                warn(f"Failed to open connection to the audit subsystem: {error.strerror}")

    def record(self, kind: int, text: str) -> None:
        """Writes a record down, `kind` being one of the numbers above."""
        if self._socket is not None and self._send(kind, text):
            return
        self._log(text)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, kind: int, text: str) -> bool:
        assert self._socket is not None
        self._serial += 1
        try:
            self._socket.sendto(packet(kind, self._serial, text), (0, 0))
            # The kernel has answered before sendto() returns.
            refused = answer(self._socket.recv(_MAX))
        except BlockingIOError:
            return True  # it took it and is short of memory for the answer
        except OSError as error:
            refused = error.errno or errno.EIO
        if refused:
            self.close()
        return not refused


def packet(kind: int, serial: int, text: str) -> bytes:
    """A record as the kernel takes it."""
    body = about_us(text).encode("utf-8", "surrogateescape")[: _MAX - 1] + b"\0"
    length = _HEADER.size + len(body)
    return _HEADER.pack(length, kind, _REQUEST_ACK, serial, 0) + body + b"\0" * (-length % 4)


def answer(data: bytes) -> int:
    """The errno in the kernel's answer to a record; 0 if it took it."""
    if len(data) < _HEADER.size + 4 or _HEADER.unpack_from(data)[1] != _NLMSG_ERROR:
        return 0
    (code,) = struct.unpack_from("=i", data, _HEADER.size)
    return -int(code)


def about_us(text: str) -> str:
    """The text with what libaudit adds: who wrote it."""
    try:
        program = f'"{os.readlink("/proc/self/exe")}"'
    except OSError:
        program = "?"
    return f"{text} exe={program} sauid={os.getuid()} hostname=? addr=? terminal=?"


def effective() -> int:
    """The capabilities that we have right now, as bits; 0 where that cannot be told."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"CapEff:"):
                    return int(line.split()[1], 16)
    except (OSError, ValueError):
        pass
    return 0
