"""What /proc tells about a client: credentials, metadata, and its namespaces.

Invariant: numbers are those of our own namespaces, as /proc shows them to us; a client in a
namespace that is not ours or below ours is nobody's client here (FUSE shows it as pid 0).

`gather()` may read memory of the client (its command line), so it is for threads that can be left
alone with it; all the rest is the kernel's own. A process that execs or changes its ids between
the kernel's request and our look is seen as what it is then: unlike in a kernel, it is no snapshot.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.metadata import KEEP, OVERFLOW, Caller, Creds, Facts, Namespaces

_NS_GET_PARENT = 0xB702
IPC_OWNER = 15
KEPT = 1.0
"""Seconds for which what rarely changes about a process is not read again."""


def read(path: str) -> bytes | None:
    try:
        with open(path, "rb", 0) as file:
            parts = []
            while chunk := file.read(65536):
                parts.append(chunk)
            return b"".join(parts)
    except OSError:
        return None


def link(path: str) -> bytes | None:
    try:
        return os.readlink(path.encode())
    except OSError:
        return None


def status_of(tid: int) -> dict[bytes, bytes]:
    text = read(f"/proc/{tid}/status")
    if text is None:
        return {}
    return dict(line.split(b":\t", 1) for line in text.splitlines() if b":\t" in line)


def numbers(text: bytes | None) -> tuple[int, ...]:
    return tuple(map(int, text.split())) if text else ()


def namespace(tid: int, kind: str) -> bytes | None:
    return link(f"/proc/{tid}/ns/{kind}")


HOST_USER = namespace(os.getpid(), "user")
HOST_PID = namespace(os.getpid(), "pid")
_DEPTH = len(numbers(status_of(os.getpid()).get(b"NSpid")))


def pid_namespace(tid: int) -> bytes | None:
    """Where we are another user than it and may not look: ours, if it has no id in any below;
    else None, which is equal to no other."""
    found = namespace(tid, "pid")
    if found is None and _DEPTH == 1 and len(numbers(status_of(tid).get(b"NSpid"))) == 1:
        return HOST_PID
    return found


try:
    _LAST_CAP = int(read("/proc/sys/kernel/cap_last_cap") or 40)
except ValueError:
    _LAST_CAP = 40


class Spaces:
    """Where a sender is: its user and pid namespace, and its ids in each pid namespace."""

    def __init__(self, tid: int, status: dict[bytes, bytes]) -> None:
        self.tid = tid
        self.user = namespace(tid, "user")
        self.pid = pid_namespace(tid)
        self.tids = numbers(status.get(b"NSpid"))
        self.tgids = numbers(status.get(b"NStgid"))
        self.parent = int(status.get(b"PPid", b"0"))
        self.ancestors: list[bytes] | None = None


def _chain(tid: int) -> list[bytes]:
    """The pid namespace of a process and those around it, innermost first, up to ours."""
    out: list[bytes] = []
    try:
        fd = os.open(f"/proc/{tid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return out
    try:
        while True:
            name = link(f"/proc/self/fd/{fd}")
            if name is None:
                break
            out.append(name)
            if name == HOST_PID:
                break
            up = fcntl.ioctl(fd, _NS_GET_PARENT)
            os.close(fd)
            fd = up
    except OSError:
        pass
    finally:
        os.close(fd)
    return out


class ClientNamespaces(Namespaces):
    """A receiver's view, where it is not our own."""

    def __init__(
        self, user: bytes | None, pid: bytes | None, depth: int, maps: Sequence[bytes]
    ) -> None:
        self.user = user
        self.pid_space = pid
        self.depth = depth
        self.uids = _map(maps[0])
        self.gids = _map(maps[1])
        self.root: bytes | None = None

    def uid(self, uid: int) -> int:
        return _inside(self.uids, uid)

    def gid(self, gid: int) -> int:
        return _inside(self.gids, gid)

    def host_uid(self, uid: int) -> int | None:
        return _outside(self.uids, uid)

    def host_gid(self, gid: int) -> int | None:
        return _outside(self.gids, gid)

    def host_pid(self, pid: int) -> int | None:
        if self.pid_space == HOST_PID:
            return pid if os.path.exists(f"/proc/{pid}") else None
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                status = status_of(int(entry))
                ids = numbers(status.get(b"NSpid"))
                if len(ids) >= self.depth and ids[self.depth - 1] == pid:
                    chain = _chain(int(entry))
                    if self.pid_space in chain:
                        return int(entry)
        return None

    def pids(self, facts: Facts) -> tuple[int, int, int]:
        spaces = facts.spaces
        if not isinstance(spaces, Spaces) or facts.pids is None:
            return super().pids(facts)
        if self.pid_space == HOST_PID:
            return facts.pids
        pid = self._number(spaces.tgids, spaces.pid, spaces.tid)
        tid = self._number(spaces.tids, spaces.pid, spaces.tid)
        parent = 0
        if pid and spaces.parent:
            above = numbers(status_of(spaces.parent).get(b"NStgid"))
            parent = self._number(above, pid_namespace(spaces.parent), spaces.parent)
        return pid, tid, parent

    def _number(self, ids: Sequence[int], space: bytes | None, tid: int) -> int:
        """A process's id in the receiver's namespace, out of its ids in all of its own."""
        if len(ids) < self.depth:
            return 0
        if space is not None and space == self.pid_space:
            return ids[-1]
        chain = _chain(tid)
        return ids[self.depth - 1] if self.pid_space in chain else 0

    def caps(self, facts: Facts) -> tuple[int, int, int, int]:
        spaces = facts.spaces
        if facts.caps is None or not isinstance(spaces, Spaces):
            return (0, 0, 0, 0)
        # Ours is around all the others; what is in one beside the receiver's says nothing to it.
        if spaces.user is not None and spaces.user in (self.user, HOST_USER):
            return facts.caps
        return (0, 0, 0, 0)

    def same_root(self, facts: Facts) -> bool:
        return facts.root == self.root

    def sees(self, facts: Facts) -> bool:
        return bool(self.pids(facts)[1])


def _map(text: bytes) -> list[tuple[int, int, int]]:
    out = []
    for line in text.splitlines():
        inside, outside, count = map(int, line.split())
        out.append((inside, outside, count))
    return out


def _inside(entries: list[tuple[int, int, int]], number: int) -> int:
    for inside, outside, count in entries:
        if outside <= number < outside + count:
            return inside + number - outside
    return OVERFLOW


def _outside(entries: list[tuple[int, int, int]], number: int) -> int | None:
    if number < KEEP:
        for inside, outside, count in entries:
            if inside <= number < inside + count:
                return outside + number - inside
    return None


_views: dict[tuple[bytes | None, ...], ClientNamespaces] = {}


def view_of(tid: int) -> ClientNamespaces:
    """How this client sees others; one object for all that see alike."""
    user, pid = namespace(tid, "user"), pid_namespace(tid)
    maps = (read(f"/proc/{tid}/uid_map") or b"", read(f"/proc/{tid}/gid_map") or b"")
    root = link(f"/proc/{tid}/root")
    key = (user, pid, *maps, root)
    found = _views.get(key)
    if found is None:
        depth = len(numbers(status_of(tid).get(b"NSpid")))
        found = ClientNamespaces(user, pid, depth, maps)
        found.root = root
        if len(_views) > 256:
            _views.clear()
        _views[key] = found
    return found


class ProcCreds(Creds):
    """The kernel's word for uid and gid; the groups are looked up when a policy asks for them."""

    def __init__(self, tid: int, uid: int, gid: int) -> None:
        super().__init__(uid, uid, gid)
        self.tid = tid
        self.looked = False

    def in_group(self, gid: int) -> bool:
        if not self.looked:
            self.looked = True
            self.groups = numbers(status_of(self.tid).get(b"Groups"))
        return gid in self.groups


class OpenerCreds(Creds):
    """Those of who opened a node, and which process that was."""

    process = 0


def opener(tid: int, uid: int, gid: int) -> OpenerCreds:
    """Credentials of who opens a node, to be kept."""
    status = status_of(tid)
    uids = numbers(status.get(b"Uid"))
    effective = int(status.get(b"CapEff", b"0"), 16)
    privileged = bool(effective >> IPC_OWNER & 1) and namespace(tid, "user") == HOST_USER
    groups = numbers(status.get(b"Groups"))
    creds = OpenerCreds(uids[0] if uids else uid, uid, gid, groups, privileged)
    creds.process = int(status.get(b"Tgid", b"0"))
    return creds


_kept: dict[int, tuple[float, tuple[bytes | None, ...], Facts]] = {}


class ProcCaller(Caller):
    """The thread that waits in an ioctl. Facts are what `gather()` was asked for."""

    def __init__(self, tid: int, uid: int, gid: int) -> None:
        self.tid = tid
        self.creds: Creds = ProcCreds(tid, uid, gid)
        self._facts: Facts | None = None
        self._view: ClientNamespaces | None = None

    @property
    def namespaces(self) -> ClientNamespaces:  # type: ignore[override]
        if self._view is None:
            self._view = view_of(self.tid)
        return self._view

    def facts(self) -> Facts:
        return self._facts if self._facts is not None else Facts()

    def gather(self, mask: int) -> None:
        """Reads what receivers may ask for; the part that costs most is read once a second."""
        tid = self.tid
        status = status_of(tid)
        uids, gids = numbers(status.get(b"Uid")), numbers(status.get(b"Gid"))
        if len(uids) != 4 or len(gids) != 4:
            return
        exe = link(f"/proc/{tid}/exe") if mask & c.ATTACH_EXE else None
        same = (
            status.get(b"Tgid"), status.get(b"PPid"), status.get(b"NSpid"), status.get(b"Uid"),
            status.get(b"Name"), exe, b"%d" % mask,
        )  # fmt: skip
        now = time.monotonic()
        kept = _kept.get(tid)
        facts = Facts()
        if kept is not None and kept[0] > now and kept[1] == same:
            old = kept[2]
            facts.cmdline, facts.cgroup, facts.audit = old.cmdline, old.cgroup, old.audit
            facts.root, facts.seclabel, facts.spaces = old.root, old.seclabel, old.spaces
            facts.pid_comm = old.pid_comm
        else:
            self.gather_rest(facts, status, mask)
            if len(_kept) > 1024:
                _kept.clear()
            _kept[tid] = (now + KEPT, same, facts)
        # As the kernel has them: what it took when the request was made is in its header.
        facts.uids, facts.gids = uids, gids
        tgid = int(status[b"Tgid"])
        facts.pids = (tgid, tid, int(status[b"PPid"]))
        facts.groups = numbers(status.get(b"Groups"))
        facts.tid_comm = status.get(b"Name", b"")
        if tgid == tid:
            facts.pid_comm = facts.tid_comm
        facts.exe = exe
        facts.caps = tuple(  # type: ignore[assignment]
            int(status.get(name, b"0"), 16) for name in (b"CapInh", b"CapPrm", b"CapEff", b"CapBnd")
        )
        facts.last_cap = _LAST_CAP
        self._facts = facts

    def gather_rest(self, facts: Facts, status: dict[bytes, bytes], mask: int) -> None:
        tid = self.tid
        facts.spaces = Spaces(tid, status)
        facts.root = link(f"/proc/{tid}/root")
        tgid = int(status[b"Tgid"])
        if tgid != tid:
            comm = read(f"/proc/{tgid}/comm")
            facts.pid_comm = comm.rstrip(b"\n") if comm is not None else None
        if mask & c.ATTACH_CMDLINE:
            words = read(f"/proc/{tid}/cmdline")
            # kdbus stops at the first zero byte as well.
            facts.cmdline = words.partition(b"\0")[0] if words else None
        if mask & c.ATTACH_CGROUP:
            facts.cgroup = _cgroup(read(f"/proc/{tid}/cgroup"))
        if mask & c.ATTACH_AUDIT:
            login, session = read(f"/proc/{tid}/loginuid"), read(f"/proc/{tid}/sessionid")
            if login and session:
                facts.audit = (int(session), int(login))
        if mask & c.ATTACH_SECLABEL:
            label = read(f"/proc/{tid}/attr/current")
            facts.seclabel = label.rstrip(b"\0\n") if label else None


def _cgroup(text: bytes | None) -> bytes | None:
    if not text:
        return None
    lines = text.splitlines()
    for line in lines:
        if line.startswith(b"0::"):
            return line[3:]
    return lines[0].split(b":", 2)[2]


def fatal_pending(tid: int) -> bool:
    """Whether a signal waits for the thread that it neither blocks, ignores nor catches."""
    status = status_of(tid)
    if not status:
        return True

    def bits(name: bytes) -> int:
        return int(status.get(name, b"0"), 16)

    pending = (bits(b"SigPnd") | bits(b"ShdPnd")) & ~bits(b"SigBlk") & ~bits(b"SigIgn")
    # CHLD, CONT, URG and WINCH do nothing where they are not caught.
    harmless = 1 << 16 | 1 << 17 | 1 << 22 | 1 << 27
    return bool(pending & ~bits(b"SigCgt") & ~harmless)
