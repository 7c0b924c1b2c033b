"""Metadata: what a receiver is told about a sender, and in whose numbers.

Invariant: a fact is gathered once, in the numbers of the domain's own namespaces, and is never
changed; what a receiver gets is translated to its namespaces when it is written down. What cannot
be told in the receiver's namespaces is told as kdbus does (overflow ids, pid 0) or left out.

Where facts come from is the front's matter: it hands in a `Caller` with each command.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from . import constants as c

OVERFLOW = 65534
KEEP = 0xFFFF_FFFF

PROCESS = (
    c.ATTACH_CREDS | c.ATTACH_PIDS | c.ATTACH_AUXGROUPS | c.ATTACH_TID_COMM | c.ATTACH_PID_COMM
    | c.ATTACH_EXE | c.ATTACH_CMDLINE | c.ATTACH_CGROUP | c.ATTACH_CAPS | c.ATTACH_SECLABEL
    | c.ATTACH_AUDIT
)  # fmt: skip
"""What is known of a process; the rest is known of a connection."""

IMPLICIT = (
    c.ATTACH_DESCRIPTION | c.ATTACH_TIMESTAMP | c.ATTACH_NAMES
    | c.ATTACH_AUXGROUPS | c.ATTACH_CREDS | c.ATTACH_PIDS
)  # fmt: skip
"""What no sender can keep to itself."""


class Creds:
    """Credentials that policies are asked about. `uid` is the real one, which pays."""

    def __init__(
        self,
        uid: int,
        euid: int,
        egid: int,
        groups: Sequence[int] = (),
        privileged: bool = False,
    ) -> None:
        self.uid = uid
        self.euid = euid
        self.egid = egid
        self.groups = groups
        self.privileged = privileged

    def in_group(self, gid: int) -> bool:
        return gid in self.groups


class Facts:
    """What is known about a process. `uids`: real, effective, saved, file system; `gids` as well.

    None for what is not known; `pids` is (pid, tid, parent) and `caps` inheritable, permitted,
    effective and bounding. `spaces` is for the front's Namespaces alone."""

    __slots__ = (
        "audit", "caps", "cgroup", "cmdline", "exe", "gids", "groups", "last_cap", "pid_comm",
        "pids", "root", "seclabel", "spaces", "tid_comm", "uids",
    )  # fmt: skip

    def __init__(self) -> None:
        self.uids: tuple[int, int, int, int] | None = None
        self.gids: tuple[int, int, int, int] | None = None
        self.pids: tuple[int, int, int] | None = None
        self.groups: Sequence[int] | None = None
        self.tid_comm: bytes | None = None
        self.pid_comm: bytes | None = None
        self.exe: bytes | None = None
        self.root: object = None
        self.cmdline: bytes | None = None
        self.cgroup: bytes | None = None
        self.caps: tuple[int, int, int, int] | None = None
        self.last_cap = 40
        self.seclabel: bytes | None = None
        self.audit: tuple[int, int] | None = None  # session, login uid
        self.spaces: object = None


class Namespaces:
    """A receiver's view; this one sees everything as it is."""

    def uid(self, uid: int) -> int:
        """The domain's uid as the receiver knows it."""
        return uid

    def gid(self, gid: int) -> int:
        return gid

    def host_uid(self, uid: int) -> int | None:
        """The receiver's uid as the domain knows it; None for one that is not mapped."""
        return uid if uid < KEEP else None

    def host_gid(self, gid: int) -> int | None:
        return gid if gid < KEEP else None

    def host_pid(self, pid: int) -> int | None:
        return pid

    def pids(self, facts: Facts) -> tuple[int, int, int]:
        """(pid, tid, parent), each 0 where the receiver cannot see it."""
        return facts.pids if facts.pids is not None else (0, 0, 0)

    def caps(self, facts: Facts) -> tuple[int, int, int, int]:
        return facts.caps if facts.caps is not None else (0, 0, 0, 0)

    def same_root(self, facts: Facts) -> bool:
        """Whether a path of the sender's means the same to the receiver."""
        return True

    def sees(self, facts: Facts) -> bool:
        """Whether the receiver could look the sender up itself."""
        return True


class Caller:
    """Who gives a command: what a front knows about it. This one is told everything."""

    def __init__(
        self, creds: Creds, facts: Facts | None = None, namespaces: Namespaces | None = None
    ) -> None:
        self.creds = creds
        self._facts = facts
        self.namespaces = namespaces if namespaces is not None else Namespaces()

    def facts(self) -> Facts:
        """All about the process; asked for only where somebody wants to know."""
        if self._facts is None:
            creds = self.creds
            facts = Facts()
            facts.uids = (creds.uid, creds.euid, creds.euid, creds.euid)
            facts.gids = (creds.egid,) * 4
            facts.groups = creds.groups
            self._facts = facts
        return self._facts


def item(kind: int, data: bytes) -> bytes:
    """An item and its padding."""
    size = 16 + len(data)
    return struct.pack("<QQ", size, kind) + data + bytes(-size & 7)


def wanted(sent: int, asked: int, facts: Facts | None, namespaces: Namespaces) -> int:
    """What is told of a message's sender: what it sends, what it must, what can be seen anyway."""
    mask = (sent | IMPLICIT) & asked
    missing = asked & ~mask & PROCESS
    if missing and facts is not None and namespaces.sees(facts):
        mask |= missing
    return mask


def _kept(number: int, translate: object) -> int:
    return number if number == KEEP else translate(number)  # type: ignore[operator]


def process_items(facts: Facts, mask: int, to: Namespaces) -> list[bytes]:
    """Items about a process, in kdbus's order, each with its padding."""
    out = []
    if mask & c.ATTACH_CREDS and facts.uids is not None and facts.gids is not None:
        uids = [_kept(uid, to.uid) for uid in facts.uids]
        gids = [_kept(gid, to.gid) for gid in facts.gids]
        out.append(item(c.ITEM_CREDS, struct.pack("<8Q", *uids, *gids)))
    if mask & c.ATTACH_PIDS and facts.pids is not None:
        out.append(item(c.ITEM_PIDS, struct.pack("<3Q", *to.pids(facts))))
    if mask & c.ATTACH_AUXGROUPS and facts.groups is not None:
        groups = [to.gid(gid) for gid in facts.groups]
        out.append(item(c.ITEM_AUXGROUPS, struct.pack(f"<{len(groups)}Q", *groups)))
    if mask & c.ATTACH_TID_COMM and facts.tid_comm is not None:
        out.append(item(c.ITEM_TID_COMM, facts.tid_comm + b"\0"))
    if mask & c.ATTACH_PID_COMM and facts.pid_comm is not None:
        out.append(item(c.ITEM_PID_COMM, facts.pid_comm + b"\0"))
    if mask & c.ATTACH_EXE and facts.exe is not None and to.same_root(facts):
        out.append(item(c.ITEM_EXE, facts.exe + b"\0"))
    if mask & c.ATTACH_CMDLINE and facts.cmdline is not None:
        out.append(item(c.ITEM_CMDLINE, facts.cmdline + b"\0"))
    if mask & c.ATTACH_CGROUP and facts.cgroup is not None:
        out.append(item(c.ITEM_CGROUP, facts.cgroup + b"\0"))
    if mask & c.ATTACH_CAPS and facts.caps is not None:
        sets = to.caps(facts)
        out.append(item(c.ITEM_CAPS, struct.pack("<I4Q", facts.last_cap, *sets)))
    if mask & c.ATTACH_SECLABEL and facts.seclabel is not None:
        out.append(item(c.ITEM_SECLABEL, facts.seclabel + b"\0"))
    if mask & c.ATTACH_AUDIT and facts.audit is not None:
        session, login = facts.audit
        out.append(item(c.ITEM_AUDIT, struct.pack("<2I", session, _kept(login, to.uid))))
    return out


def names_items(names: Sequence[tuple[bytes, int]]) -> list[bytes]:
    """Items about names that a connection owns: (name, flags)."""
    return [
        item(c.ITEM_OWNED_NAME, struct.pack("<Q", flags) + name + b"\0") for name, flags in names
    ]


def description_item(text: bytes) -> bytes:
    return item(c.ITEM_DESCRIPTION, text + b"\0")


def timestamp_item(number: int, monotonic: int, realtime: int) -> bytes:
    return item(c.ITEM_TIMESTAMP, struct.pack("<3Q", number, monotonic, realtime))
