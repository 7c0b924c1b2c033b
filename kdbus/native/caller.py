"""Who sends a frame, and what is told about it.

Invariant: uid, gid and pid are the kernel's word, of the moment at which the frame was sent. What
/proc says later may be about what the process has become meanwhile (it could exec a program with
more rights), so nothing of it that grants a right is believed: effective ids, groups and label only
as the kernel had them at connect(), capabilities only of root. The rest is what a process could
claim anyway.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.metadata import Creds, Facts
from jitney.compat import ways

from ..process import (
    HOST_USER,
    IPC_OWNER,
    ClientNamespaces,
    OpenerCreds,
    ProcCaller,
    namespace,
    numbers,
    status_of,
    view_of,
)

UCRED = struct.Struct("=iII")
NOBODY = 0xFFFF_FFFF
OVERFLOW = 65534
NO_CAPS = (0, 0, 0, 0)
_PEERSEC, _PEERGROUPS = 31, 59


class SocketCreds(OpenerCreds):
    """Those of who connected. `label`: its security label, if there is such a thing."""

    label: bytes | None = None


def _option(sock: socket.socket, number: int) -> bytes | None:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, number, 1024)
    except OSError:
        return None


def connected(sock: socket.socket) -> SocketCreds:
    """Credentials of who connected, to be kept."""
    if hasattr(socket, "SO_PEERCRED"):
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        pid, uid, gid = UCRED.unpack(data)
    else:
        pid, uid, gid = ways.peer_ids(sock.fileno()) or (0, NOBODY, NOBODY)
    status = status_of(pid) if pid else {}
    uids = numbers(status.get(b"Uid"))
    real = uids[0] if len(uids) == 4 and uid in uids[:3] else uid
    # An unprivileged one could have become root since.
    effective = int(status.get(b"CapEff", b"0"), 16) if uid == 0 else 0
    privileged = bool(effective >> IPC_OWNER & 1) and namespace(pid, "user") == HOST_USER
    kept = _option(sock, _PEERGROUPS)
    if kept is not None:
        groups = struct.unpack(f"={len(kept) // 4}I", kept)
    else:
        groups = numbers(status.get(b"Groups"))
    creds = SocketCreds(real, uid, gid, groups, privileged)
    creds.process = pid
    label = _option(sock, _PEERSEC)
    if label:
        creds.label = label.rstrip(b"\0\n")
    return creds


class SenderCreds(Creds):
    """Of a frame's sender, if that is not who connected: groups are looked up when asked for."""

    def __init__(self, pid: int, uid: int, gid: int) -> None:
        super().__init__(uid, uid, gid)
        self.pid = pid
        self.looked = False

    def in_group(self, gid: int) -> bool:
        if not self.looked:
            self.looked = True
            status = status_of(self.pid)
            if self.uid in numbers(status.get(b"Uid"))[:3]:
                self.groups = numbers(status.get(b"Groups"))
        return gid in self.groups


class SocketCaller(ProcCaller):
    """The sender of a frame; `tid` is what it claims."""

    creds: Creds

    def __init__(self, opener: SocketCreds, pid: int, uid: int, gid: int, tid: int) -> None:
        self.opener = opener
        self.pid = pid
        self.claimed = tid
        self.tid = tid or pid
        self.ids = (uid, gid)
        self._facts: Facts | None = None
        self._view = None
        if pid == opener.process:
            self.creds = Creds(uid, uid, gid, opener.groups)
        else:
            self.creds = SenderCreds(pid, uid, gid)

    @property
    def namespaces(self) -> ClientNamespaces:  # type: ignore[override]
        if self._view is None:
            self._view = view_of(self.pid)
        return self._view

    def gather(self, mask: int, line: bytes | None = None) -> None:
        """`line`: its command line, which is not read here: that could last."""
        mask &= ~c.ATTACH_CMDLINE
        super().gather(mask)
        if self.tid != self.pid and (self._facts is None or not self.is_thread(self._facts)):
            self.tid = self.pid
            self._facts = None
            super().gather(mask)
        self._facts = self.believe(self._facts)
        self._facts.cmdline = line

    def again(self) -> SocketCaller:
        """The same one, of whom nothing is known yet."""
        return SocketCaller(self.opener, self.pid, *self.ids, self.claimed)

    def is_thread(self, facts: Facts) -> bool:
        return facts.pids is not None and facts.pids[0] == self.pid

    def believe(self, facts: Facts | None) -> Facts:
        uid, gid = self.ids
        if facts is None or facts.uids is None or uid not in facts.uids[:3]:
            # It is gone, or another one by now.
            facts = Facts()
            facts.pids = (self.pid, self.pid, 0)
        euid, egid = uid, gid
        facts.seclabel = None
        if self.pid == self.opener.process:
            if self.opener.uid == uid:
                euid, egid = self.opener.euid, self.opener.egid
            facts.groups = self.opener.groups
            facts.seclabel = self.opener.label
        facts.uids = (uid, euid, euid, euid)
        facts.gids = (gid, egid, egid, egid)
        if uid and facts.caps is not None:
            facts.caps = NO_CAPS
        return facts


def sender(opener: SocketCreds, data: Any, tid: int) -> SocketCaller:
    """`data`: SCM_CREDENTIALS of a frame, or None where there are none."""
    pid = uid = 0
    if data is not None:
        pid, uid, gid = UCRED.unpack(data)
    if not pid and (data is None or uid in (NOBODY, OVERFLOW)):
        # Sent before we could ask for credentials: whoever connected.
        pid, uid, gid = opener.process, opener.uid, opener.egid
    return SocketCaller(opener, pid, uid, gid, tid)
