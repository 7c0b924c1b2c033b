# cython: infer_types=True
"""Trace: compact records of the messages that pass, for a connection that asked for them.

Invariant: a record is built only for a message that the tracer's match rules found, after its other
filters let it pass, and only while the tracer keeps up; what it misses is counted in `lost` and
told to it. Nothing here waits, and nothing is charged to anybody but the tracer's own user.

Records wait in `pending`, which is one whole message all the time: `head` (what the front wrote:
fixed header and fields, padded), the number of lost records, the array's length, the records.
A record is a struct of `RECORD`, little-endian; see compat/trace/records.py for what reads it.
"""

from __future__ import annotations

from typing import Any

try:
    import cython
except ImportError:
    from ._cython import cython

from .connection import CLOSED, Connection
from .match import Rule
from .mem import Buffer, Map64
from .message import Message

if not cython.compiled:
    from .little import put32, put_copy
    from .mem import copy, of_bytes, zero
    from .ticks import now_ns

RECORD = "(tyyyyuuuuuusssssssssay)"
"""Time (ns, monotonic), kind, type, flags, cut; serial, reply serial, size, descriptors, uids of
sender and receiver; unique names of sender and receiver, destination, path, interface, member,
error name, verdict, why; the message, or as much of it as was asked for."""

PASSED, JUDGED = 1, 2
"""Kinds: a message that came by, and one that was kept from `receiver` by `verdict`."""

NO_UID = 0xFFFFFFFF
BATCH = 57344
"""Bytes from which on records wait no longer: each batch wakes the tracer, and that costs more than
what is in it."""
ROOM = 4194304
"""As much may wait in the queue of a tracer; from there on records are lost."""
LONGEST = 4096
"""Names are 255 bytes at most; a path has no end of its own, so it is cut here."""
FOLLOWED = 65536
"""Calls whose replies are waited for, before all of them are forgotten."""

DRIVER = b"org.freedesktop.DBus"
NOT_ACTIVE = b":not.active.yet"

# Copies that are C integers when compiled.
_CLOSED, _PASSED, _JUDGED, _NO_UID = CLOSED, PASSED, JUDGED, NO_UID
_BATCH, _ROOM, _LONGEST, _FOLLOWED = BATCH, ROOM, LONGEST, FOLLOWED


class Tracer:
    """What one tracer wants, and the records that it has yet to get.

    `rules`: its match rules, empty for everything; `users`: uids of which one must be the sender's
    or the receiver's, None for all; `every`: one in so many calls and signals, with their replies;
    `payload`: so many bytes of each message; `judged_only`: nothing but refusals. `ready(tracer)`
    is called when there is something to `ship()` and nobody has been told so."""

    def __init__(
        self,
        bus: Any,
        conn: Connection,
        head: bytes,
        ready: Any,
        rules: list[Rule],
        users: Any = None,
        every: int = 1,
        payload: int = 0,
        judged_only: bool = False,
    ) -> None:
        self.bus = bus
        self.conn = conn
        self.head = head
        self.ready = ready
        self.rules = rules
        self.users = users
        self.every = every
        self.payload = payload
        self.judged_only = judged_only
        # With all messages wanted, all replies are.
        self.follows = bool(rules) or every > 1
        self.calls = Map64()
        self.pending = Buffer()
        self.count = 0
        self.lost = 0
        self.turn = 0
        self.serial = 0x80000000
        self.armed = False
        self.clear(False)

    def note(self, msg: Message, sender: Connection | None, dest: Connection | None) -> None:
        """A message passes that the match rules found, or a reply."""
        if self.judged_only:
            return
        if self.users is not None and not self.concerns(sender, dest):
            return
        if self.follows and not self.takes(msg, sender, dest):
            return
        self.record(_PASSED, msg, sender, dest, b"", b"")

    def verdict(
        self,
        msg: Message,
        sender: Connection | None,
        dest: Connection | None,
        error: bytes,
        why: bytes,
    ) -> None:
        """A message does not get to `dest`: the error that is said, or might be, and the reason."""
        if self.users is not None and not self.concerns(sender, dest):
            return
        self.record(_JUDGED, msg, sender, dest, error, why)

    def concerns(self, sender: Connection | None, dest: Connection | None) -> bool:
        return (sender is not None and sender.user.uid in self.users) or (
            dest is not None and dest.user.uid in self.users
        )

    def takes(self, msg: Message, sender: Connection | None, dest: Connection | None) -> bool:
        """Whether a message is one of those sampled, or the reply to one."""
        if msg.reply_serial:
            # All replies come by here, because a rule about calls does not fit their replies.
            if dest is not None and self.calls.pop((dest.id << 32) | msg.reply_serial) is not None:
                return True
            return self.every == 1 and self.asked_for(msg, sender, dest)
        if self.every > 1:
            self.turn += 1
            if self.turn < self.every:
                return False
            self.turn = 0
        if msg.type == 1 and not msg.flags & 1 and sender is not None:
            if self.calls.used >= _FOLLOWED:
                self.calls = Map64()
            self.calls.put((sender.id << 32) | msg.serial, self)
        return True

    def asked_for(self, msg: Message, sender: Connection | None, dest: Connection | None) -> bool:
        for rule in self.rules:
            if rule.matches(msg, sender, dest):
                return True
        return False

    # Writing

    def record(
        self,
        kind: int,
        msg: Message,
        sender: Connection | None,
        dest: Connection | None,
        error: bytes,
        why: bytes,
    ) -> None:
        if self.conn.queue.size > _ROOM:
            self.lost += 1
            self.arm()
            return
        out = self.pending
        path_len = min(_LONGEST, msg.path_len)
        n_payload = min(self.payload, msg.size)
        # The fixed part, ten lengths with their padding, and the names, five of which have an end.
        out.reserve(7 + 40 + 10 * 8 + 5 * 256 + 256 + path_len + len(error) + len(why) + n_payload)
        p = out.p
        pos = out.end
        # Where the last record's bytes end there may be anything.
        zero(p, pos, -pos & 7)
        pos = (pos + 7) & ~7
        stamp = now_ns()
        put32(p, pos, stamp & 0xFFFFFFFF)
        put32(p, pos + 4, stamp >> 32)
        cut = 1 if path_len < msg.path_len else 0
        if n_payload < msg.size and self.payload:
            cut |= 2
        put32(p, pos + 8, kind | (msg.type << 8) | (msg.flags << 16) | (cut << 24))
        put32(p, pos + 12, msg.serial)
        put32(p, pos + 16, msg.reply_serial)
        put32(p, pos + 20, msg.size)
        put32(p, pos + 24, msg.n_fds)
        put32(p, pos + 28, uid_of(sender))
        put32(p, pos + 32, uid_of(dest))
        name = DRIVER
        if sender is not None:
            name = sender.unique_name if sender.id else NOT_ACTIVE
        pos = put(p, pos + 36, of_bytes(name), 0, len(name))
        if dest is not None:
            name = dest.unique_name
            pos = put(p, pos, of_bytes(name), 0, len(name))
        else:
            pos = put(p, pos, msg.p, 0, 0)
        pos = put(p, pos, msg.p, msg.dest_off, msg.dest_len)
        pos = put(p, pos, msg.p, msg.path_off, path_len)
        pos = put(p, pos, msg.p, msg.iface_off, msg.iface_len)
        pos = put(p, pos, msg.p, msg.member_off, msg.member_len)
        pos = put(p, pos, msg.p, msg.error_off, msg.error_len)
        pos = put(p, pos, of_bytes(error), 0, len(error))
        pos = put(p, pos, of_bytes(why), 0, len(why))
        put32(p, pos, n_payload)
        put_copy(p, pos + 4, msg.p, 0, n_payload)
        out.end = pos + 4 + n_payload
        self.count += 1
        if out.end > _BATCH:
            self.ship()
        else:
            self.arm()

    def arm(self) -> None:
        if not self.armed:
            self.armed = True
            self.ready(self)

    def ship(self) -> None:
        """Queues what is pending for the tracer. Whoever was told that it is `ready` calls this."""
        self.armed = False
        conn = self.conn
        if conn.state == _CLOSED:
            return
        if self.count == 0 and (self.lost == 0 or conn.queue.size > _ROOM):
            if self.lost:
                # It is not reading: what it missed is told when it does.
                self.arm()
            return
        out = self.pending
        base = len(self.head)
        p = out.p
        self.serial = self.serial + 1 & 0xFFFFFFFF or 0x80000000
        put32(p, 4, out.end - base)
        put32(p, 8, self.serial)
        put32(p, base, self.lost)
        put32(p, base + 4, out.end - base - 8)
        if self.bus.hand(conn, out):
            self.lost = 0
        else:
            self.lost += self.count
            self.arm()
        self.clear(out.end > _BATCH)

    def clear(self, large: bool) -> None:
        """Starts another batch, which will be a large one if this one was."""
        # The last one's buffer may be in the queue.
        out = self.pending = Buffer()
        n = len(self.head)
        out.reserve(65536 if large else n + 8)
        copy(out.p, 0, of_bytes(self.head), 0, n)
        zero(out.p, n, 8)
        out.end = n + 8
        self.count = 0


def uid_of(conn: Connection | None) -> int:
    if conn is None or conn.user.uid is None:
        return _NO_UID
    return conn.user.uid


def put(p, pos: int, src, off: int, n: int) -> int:
    """One string and the padding behind it, where the next thing starts: what that is, is aligned
    to four, always. A length below 0 stands for no string."""
    if n <= 0:
        put32(p, pos, 0)
        put32(p, pos + 4, 0)
        return pos + 8
    put32(p, pos, n)
    put_copy(p, pos + 4, src, off, n)
    pos += 4 + n
    put32(p, pos, 0)
    return (pos + 4) & ~3
