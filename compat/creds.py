"""What the kernel knows about the process at the other end of a connection.

Invariant: nothing here fails. A fact that cannot be had, whatever the errno (the peer is gone,
we are out of descriptors, the kernel is too old, the socket is TCP), is None, for ever: asking
again later might tell about another process that got the same number.

All of it dates from the peer's connect(), except what /proc-less fallbacks look up by name.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

from . import ways
from .sysio import option

# Linux's numbers; on other systems they mean something else, and are not asked for.
SO_PEERCRED = 17
SO_PEERSEC = 31
SO_PEERGROUPS = 59
SO_PEERPIDFD = 77

_UCRED = struct.Struct("=iII")
_UNKNOWN_ID = 0xFFFFFFFF
_SMALL = 256  # a label, or 64 groups
_LARGE = 65536 * 4  # NGROUPS_MAX groups of four bytes


class Credentials:
    """Credentials of the peer of a connected socket. `uid`, `gid`, `pid` are None if unknown.

    `described`: what logs say of it, kept by who made it.

    `close()` when the socket is: its number will soon be another's."""

    def __init__(self, fd: int) -> None:
        self.uid: int | None = None
        self.gid: int | None = None
        self.pid: int | None = None
        self.described: str | None = None
        self._fd = fd
        self._groups: list[int] | None = None
        self._groups_asked = False
        self._database_asked = False
        self._label: bytes | None = None
        self._label_asked = False
        if ways.LINUX:
            answer = option(fd, SO_PEERCRED, 12)
            if isinstance(answer, int) or len(answer) != 12:
                return
            pid, uid, gid = _UCRED.unpack(answer)
        else:
            ids = ways.peer_ids(fd)
            if ids is None:
                return
            pid, uid, gid = ids
        # TCP sockets answer 0, -1, -1; a process outside our pid namespace has pid 0.
        if uid != _UNKNOWN_ID:
            self.uid = uid
        if gid != _UNKNOWN_ID:
            self.gid = gid
        if pid > 0:
            self.pid = pid

    def close(self) -> None:
        """What was not asked so far is unknown from now on."""
        self._fd = -1

    def groups(self) -> list[int] | None:
        """All groups, the primary one among them, sorted; None if they cannot be told.

        Kernels before 4.13 do not say; then it is what the user database says about the uid,
        which does for a policy (dbus-daemon's, too) but is nothing to tell others.
        """
        if self.kernel_groups() is None and not self._database_asked:
            self._database_asked = True
            self._groups = self._database_groups()
        return self._groups

    def kernel_groups(self) -> list[int] | None:
        """The same, only if the kernel says so."""
        if not self._groups_asked:
            self._groups_asked = True
            self._groups = self._peer_groups()
        return None if self._database_asked else self._groups

    def label(self) -> bytes | None:
        """The security module's label without the NUL that some end it with; None if none.

        A label with a NUL inside is none, either.
        """
        if not self._label_asked:
            self._label_asked = True
            label = _option(self._fd, SO_PEERSEC)
            if label is not None:
                label = label.removesuffix(b"\0")
                if label and b"\0" not in label:
                    self._label = label
        return self._label

    def pidfd(self) -> int | None:
        """A new pidfd of the peer, close-on-exec, for the caller to close; None if none."""
        answer = option(self._fd, SO_PEERPIDFD, 4) if ways.LINUX else errno.ENOPROTOOPT
        if isinstance(answer, int) or len(answer) != 4:
            return None
        fd = int.from_bytes(answer, sys.byteorder, signed=True)
        return fd if fd >= 0 else None

    def _peer_groups(self) -> list[int] | None:
        if self.uid is None:
            return None
        answer = _option(self._fd, SO_PEERGROUPS)
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


def _option(fd: int, number: int) -> bytes | None:
    """A socket option of any length; None on any error."""
    if not ways.LINUX:
        return None
    answer = option(fd, number, _SMALL)
    if answer == errno.ERANGE:
        answer = option(fd, number, _LARGE)
    return None if isinstance(answer, int) else answer
