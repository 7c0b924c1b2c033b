"""What the kernel knows about the process at the other end of a connection.

Invariant: nothing here fails. A fact that cannot be had, whatever the errno (the peer is gone,
we are out of descriptors, the kernel is too old, the socket is TCP), is None, for ever: asking
again later might tell about another process that got the same number.

All of it dates from the peer's connect(), except what /proc-less fallbacks look up by name.
"""

from __future__ import annotations

import os
import socket
import struct

# Linux's numbers; the socket module names but the first, and not on every build.
SO_PEERCRED = getattr(socket, "SO_PEERCRED", 17)
SO_PEERSEC = getattr(socket, "SO_PEERSEC", 31)
SO_PEERGROUPS = 59
SO_PEERPIDFD = 77

_UCRED = struct.Struct("=iII")
_UNKNOWN_ID = 0xFFFFFFFF
_SMALL = 1024  # all that socket.getsockopt() is willing to fetch
_LARGE = 65536 * 4  # NGROUPS_MAX groups of four bytes


class Credentials:
    """Credentials of the peer of a connected socket. `uid`, `gid`, `pid` are None if unknown."""

    def __init__(self, sock: socket.socket) -> None:
        self.uid: int | None = None
        self.gid: int | None = None
        self.pid: int | None = None
        self._sock = sock
        self._groups: list[int] | None = None
        self._groups_asked = False
        self._label: bytes | None = None
        self._label_asked = False
        try:
            pid, uid, gid = _UCRED.unpack(
                sock.getsockopt(socket.SOL_SOCKET, SO_PEERCRED, _UCRED.size)
            )
        except (OSError, struct.error):
            return
        # TCP sockets answer 0, -1, -1; a process outside our pid namespace has pid 0.
        if uid != _UNKNOWN_ID:
            self.uid = uid
        if gid != _UNKNOWN_ID:
            self.gid = gid
        if pid > 0:
            self.pid = pid

    def groups(self) -> list[int] | None:
        """All groups, the primary one among them, sorted; None if they cannot be told.

        Kernels before 4.13 do not say; then it is what the user database says about the uid.
        """
        if not self._groups_asked:
            self._groups_asked = True
            self._groups = self._peer_groups()
            if self._groups is None:
                self._groups = self._database_groups()
        return self._groups

    def label(self) -> bytes | None:
        """The security module's label without the NUL that some end it with; None if none.

        A label with a NUL inside is none, either.
        """
        if not self._label_asked:
            self._label_asked = True
            label = _option(self._sock, SO_PEERSEC)
            if label is not None:
                label = label.removesuffix(b"\0")
                if label and b"\0" not in label:
                    self._label = label
        return self._label

    def pidfd(self) -> int | None:
        """A new pidfd of the peer, close-on-exec, for the caller to close; None if none."""
        try:
            answer = self._sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
            fd = int(struct.unpack("=i", answer)[0])
        except (OSError, struct.error):
            return None
        return fd if fd >= 0 else None

    def _peer_groups(self) -> list[int] | None:
        if self.uid is None:
            return None
        answer = _option(self._sock, SO_PEERGROUPS)
        if answer is None or len(answer) % 4:
            return None
        groups = set(struct.unpack(f"={len(answer) // 4}I", answer))
        if self.gid is not None:
            groups.add(self.gid)
        return sorted(groups)

    def _database_groups(self) -> list[int] | None:
        if self.uid is None or self.gid is None:
            return None
        import pwd

        try:
            return sorted(set(os.getgrouplist(pwd.getpwuid(self.uid).pw_name, self.gid)))
        except (KeyError, OSError):
            return None


def _option(sock: socket.socket, option: int) -> bytes | None:
    """A socket option of any length; None on any error."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, option, _SMALL)
    except OSError as error:
        import errno

        if error.errno != errno.ERANGE:
            return None
    return _large_option(sock, option)


def _large_option(sock: socket.socket, option: int) -> bytes | None:
    """The same by way of the C library: Python's getsockopt() stops at 1024 bytes."""
    try:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(_LARGE)
        size = ctypes.c_uint(_LARGE)
        failed = library.getsockopt(
            sock.fileno(), socket.SOL_SOCKET, option, buffer, ctypes.byref(size)
        )
    except (ImportError, OSError, AttributeError):
        return None
    return None if failed else buffer.raw[: size.value]
