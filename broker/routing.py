# cython: infer_types=True
"""Routing: the one way that every message takes.

Invariant: `dispatch()` takes a parsed message from its sender to the queue of every
receiver before it returns; nothing in it waits, and nothing a peer did can make it raise
(MemoryError alone passes, before anything was queued for that receiver). So all receivers
see messages in one order: the order in which the bus read them.

The front (classic D-Bus: `jitney.compat.front`) is told what the core does not know how to
say: errors to the caller, the driver's methods, what a refusal looks like in words.
"""

from __future__ import annotations

import time
from typing import Any

try:
    import cython
except ImportError:
    from ._cython import cython

from .accounting import Accounts, Pool, Tally, User
from .atoms import Atoms
from .connection import ACTIVE, CLOSED, MONITOR, NEW, Connection
from .errors import ACCESS_DENIED, LIMITS, NO_OWNER, NOT_SUPPORTED, Refused
from .limits import KEPT_BYTES, KEPT_FDS, USER_OBJECTS, USER_SHARE, Limits
from .match import MatchIndex
from .mem import Buffer, Map64
from .message import Message, clean
from .names import Registry
from .queue import sender_field
from .replies import Replies
from .security import Guard

if not cython.compiled:
    from .mem import load32, of_bytes, same, take, view

# Copies that are C integers when compiled.
_NEW, _ACTIVE, _MONITOR, _CLOSED = NEW, ACTIVE, MONITOR, CLOSED

DRIVER = b"org.freedesktop.DBus"
NOT_ACTIVE = b":not.active.yet"

# What a refused sender is told first; dbus-daemon's words.
SEND_DENIED = "Rejected send message"
RECEIVE_DENIED = "Rejected receive message"
FULL = "Rejected: destination has a full message queue"


class Router:
    """What a bus needs to pass messages on; `bus.Bus` adds who is on it.

    `dirty` holds the connections that got something queued since the front last flushed;
    `flushing`: the front is in the midst of its round and will look there before it rests.
    `metered`: what passes is counted, see `meter`; connections take that from here.
    `first`: the id of ":1.0"; 0 where the number in a unique name is the id itself.
    `guard`: what security modules say, None without any.
    `outside`: told of each broadcast of a connection without `taker`, `outside(msg, sender)`."""

    def __init__(self, limits: Limits | None = None, front: Any = None, guid: str = "") -> None:
        self.front = front
        self.guid = guid
        self.clock = time.monotonic
        self.accounts = Accounts()
        self.atoms = Atoms()
        self.names = Registry(self.atoms, self)
        self.match_index = MatchIndex(self.atoms)
        self.monitor_index = MatchIndex(self.atoms)
        self.monitors: list[Connection] = []
        # The tracer that wants everything, if there is no other monitor: nothing to look up then.
        self.sole: Any = None
        self.replies = Replies()
        self.table = Map64()
        self.connections: dict[int, Connection] = {}
        self.last_id = 0
        self.first = 1
        self.outside: Any = None
        self.guard: Guard | None = None
        self.last_rule = 0
        self.dirty: list[Connection] = []
        self.flushing = False
        self.metered = True
        self.field_inactive_le = sender_field(NOT_ACTIVE, False)
        self.field_inactive_be = sender_field(NOT_ACTIVE, True)
        self.head: bytes | None = None
        self.greeting: Message | None = None
        self.own = Message()
        self.n_messages = 0
        self.n_denied = 0
        self.n_dropped = 0
        self.peak_rules = 0
        self.peak_names = 1
        self.set_limits(limits if limits is not None else Limits())

    def set_limits(self, limits: Limits) -> None:
        """Takes new limits; the hot ones are copied out of the object."""
        self.limits = limits
        nbytes = min(limits.max_outgoing_bytes, KEPT_BYTES)
        fds = min(limits.max_outgoing_unix_fds, KEPT_FDS)
        self.pool = Pool(nbytes, fds, nbytes * USER_SHARE, fds * USER_SHARE)
        self.max_replies = limits.max_replies_per_connection
        self.max_connections = limits.max_completed_connections
        self.max_connections_per_user = limits.max_connections_per_user
        self.reply_timeout = limits.reply_timeout / 1000 if limits.reply_timeout > 0 else 0.0

    def lookup(self, text: bytes) -> Connection | None:
        """Who gets messages sent to this name: a unique name's or well-known name's owner."""
        return self.find_dest(of_bytes(text), 0, len(text))

    def find_dest(self, p, off: int, n: int) -> Connection | None:
        if p[off] == 58:
            # ":1.N": the number is the id, less `first`.
            if n < 4 or n > 22 or p[off + 1] != 49 or p[off + 2] != 46:
                return None
            number = 0
            for i in range(off + 3, off + n):
                c = p[i]
                if c < 48 or c > 57:
                    return None
                number = number * 10 + (c - 48)
            if p[off + 3] == 48 and n > 4:
                return None
            return self.table.get(number + self.first)
        atom = self.atoms.find(p, off, n)
        if atom is None:
            return None
        name = atom.name
        if name is None:
            return None
        return name.owner

    # Messages

    def dispatch(self, conn: Connection, msg: Message) -> None:
        """Routes one valid message that `conn` sent."""
        self.n_messages += 1
        if self.metered and not self.flushing:
            self.look_at_clock()
        counts = conn.counts
        if counts is not None:
            counts.sent[msg.type if msg.type < 5 else 0] += 1
            counts.sent_bytes += msg.size
        self.head = None
        if conn.state != _ACTIVE:
            self.dispatch_inactive(conn, msg)
            return
        if msg.dest_len < 0:
            if msg.type != 4:
                # Not for anybody: libdbus itself answers such a call, as the front does.
                self.front.undirected(conn, msg)
                return
            if self.monitors:
                self.capture(msg, conn, None)
            self.broadcast(msg, conn, None)
            if self.outside is not None and conn.taker is None:
                self.outside(msg, conn)
            return
        dest = self.find_dest(msg.p, msg.dest_off, msg.dest_len)
        endpoint = conn.endpoint
        if endpoint is not None and not endpoint.lets_out(self, conn, msg, dest):
            return
        if dest is not None:
            if self.monitors:
                self.capture(msg, conn, dest)
            self.unicast(conn, dest, msg)
            return
        if same(msg.p, msg.dest_off, msg.dest_len, DRIVER):
            # A signal to the driver is news for others (an activation failed): as with dbus-daemon,
            # monitors see what it brings about before they see the signal.
            if self.monitors and msg.type != 4:
                self.capture(msg, conn, None)
            done = self.may_send(conn, None, None, msg, False) and self.front.driver_call(conn, msg)
            if self.monitors and msg.type == 4:
                self.capture(msg, conn, None)
            if done and self.match_index.n_eavesdrop:
                self.broadcast(msg, conn, None)
            return
        self.no_owner(conn, msg)

    def dispatch_inactive(self, conn: Connection, msg: Message) -> None:
        # A connection that is not registered may say Hello and nothing else; a monitor nothing.
        if conn.state == _NEW:
            if msg.dest_len >= 0 and same(msg.p, msg.dest_off, msg.dest_len, DRIVER):
                if (
                    msg.type == 1
                    and same(msg.p, msg.member_off, msg.member_len, b"Hello")
                    and (msg.iface_len < 0 or same(msg.p, msg.iface_off, msg.iface_len, DRIVER))
                ):
                    if self.guard is not None and not self.guard.passes(
                        self, conn, None, msg, False
                    ):
                        return
                    self.greeting = msg
                    if self.front.driver_call(conn, msg) and self.match_index.n_eavesdrop:
                        self.broadcast(msg, conn, None)
                    self.greeting = None
                else:
                    if self.monitors:
                        self.capture(msg, conn, None)
                    self.refuse(
                        conn,
                        msg,
                        ACCESS_DENIED,
                        "Client tried to send a message other than Hello without being registered",
                    )
                return
            if msg.dest_len < 0 and msg.type != 4:
                self.front.undirected(conn, msg)
                return
            if self.monitors:
                self.capture(msg, conn, None)
            self.front.misbehaved(conn, msg)
        elif conn.state == _MONITOR:
            self.front.misbehaved(conn, msg)

    def no_owner(self, conn: Connection, msg: Message) -> None:
        text = msg.destination
        problem = None
        if msg.flags & 2:
            problem = Refused(NO_OWNER, f'Name "{text.decode()}" does not exist')
        else:
            # Monitors see what starts the service before what asked for it, as with dbus-daemon.
            problem = self.front.activate(conn, msg, text)
        if self.monitors:
            self.capture(msg, conn, None)
        if problem is not None:
            self.front.refused(conn, msg, problem)

    def deliver_kept(self, conn: Connection, msg: Message, dest: Connection) -> None:
        """Routes a message that waited for an activation to the name's new owner."""
        if conn.state == _ACTIVE and dest.state == _ACTIVE:
            self.head = None
            self.unicast(conn, dest, msg)
            self.head = None

    def unicast(self, conn: Connection, dest: Connection, msg: Message) -> None:
        slot = None
        if msg.reply_serial:
            slot = self.replies.find(dest, conn, msg.reply_serial)
            if slot is not None and conn.counts is not None:
                conn.counts.answered(self.accounts.moment - slot.since)
        self.unicast_for(conn, dest, msg, slot is not None)
        # Not before: without memory the sender goes, and then whoever waits for it is told. Another
        # front that took the reply may have ended the slot itself, and it may be in use again.
        if slot is not None and slot.of(dest, conn, msg.reply_serial):
            self.replies.end(slot)

    def unicast_for(
        self, conn: Connection, dest: Connection, msg: Message, requested: bool
    ) -> None:
        endpoint = dest.endpoint
        if endpoint is not None and not endpoint.lets_in(dest, msg, conn, requested):
            return
        if not self.may_send(conn, dest, dest, msg, requested):
            return
        if not self.may_receive(conn, dest, dest, msg, requested):
            return
        queue = dest.queue
        tally = conn.tally
        if tally is None or tally.receiver is not dest.user:
            tally = self.tally_of(conn, dest.user)
        if not self.pool.admits(queue.size, queue.n_fds, tally, msg.size, msg.n_fds):
            self.complain(conn, dest, msg, LIMITS, FULL, None, requested)
            return
        if msg.fds is not None and not dest.accepts_fds:
            # The missing space is dbus-daemon's.
            self.refuse(
                conn,
                msg,
                NOT_SUPPORTED,
                "Tried to send message with Unix file descriptors"
                "to a client that doesn't support that.",
            )
            return
        if msg.type == 1 and not msg.flags & 1 and not self.expect_reply(conn, dest, msg):
            return
        self.enqueue(dest, msg, conn, tally)
        if self.match_index.n_eavesdrop:
            self.broadcast(msg, conn, dest)

    def tally_of(self, conn: Connection, receiver: User) -> Tally:
        """The tally of what the connection has waiting at this user's connections."""
        tallies = conn.tallies
        if tallies is None:
            tallies = conn.tallies = {}
        tally = tallies.get(receiver.index)
        if tally is None:
            tally = self.accounts.tally(conn.user, receiver, conn)
            tallies[receiver.index] = tally
            if receiver is conn.user:
                conn.own_tally = tally
        conn.tally = tally
        return tally

    def expect_reply(self, conn: Connection, dest: Connection, msg: Message) -> bool:
        if conn.n_calls >= self.max_replies or conn.user.replies >= self.max_replies * USER_OBJECTS:
            self.front.log(
                "warning",
                f'The maximum number of pending replies for "{conn.label}" has been reached '
                f"(max_replies_per_connection={self.max_replies})",
                "limit",
                conn=conn,
                dest=dest,
                msg=msg,
                reason="max_replies_per_connection",
            )
            self.refuse(
                conn,
                msg,
                LIMITS,
                "The maximum number of pending replies per connection has been reached",
            )
            return False
        deadline = 0.0
        if self.reply_timeout > 0:
            deadline = self.clock() + self.reply_timeout
            if self.replies.first is None:
                self.front.deadline(deadline)
        if not self.replies.expect(conn, dest, msg.serial, deadline, self.accounts.moment):
            self.refuse(
                conn,
                msg,
                ACCESS_DENIED,
                "Message has the same reply serial as a currently-outstanding existing method call",
            )
            return False
        return True

    def broadcast(self, msg: Message, sender: Connection | None, dest: Connection | None) -> None:
        """Queues `msg` for everyone whose match rules want it; `dest` has it already."""
        user = sender.user if sender is not None else self.accounts.bus
        for conn in self.match_index.collect(msg, sender, dest):
            endpoint = conn.endpoint
            if endpoint is not None and not endpoint.hears(conn, msg, sender):
                continue
            if self.guard is not None and not self.guard.hears(self, conn, msg, sender):
                continue
            plain = msg.reply_serial == 0 and msg.dest_len < 0
            if sender is not None and not (
                sender.send_open
                or (plain and (sender.send_types >> msg.type) & 1)
                or (plain and (conn.types_to(sender) >> msg.type) & 1)
            ):
                policy = sender.policy
                if not policy.may_send(self, msg, conn, False):
                    self.front.capture_denied(sender, conn, msg, SEND_DENIED, policy)
                    continue
            if not (
                conn.receive_open
                or (plain and (conn.receive_types >> msg.type) & 1)
                or (plain and sender is not None and (sender.types_from(conn) >> msg.type) & 1)
            ):
                policy = conn.policy
                if not policy.may_receive(self, msg, sender, dest, conn, False):
                    self.front.capture_denied(sender, conn, msg, RECEIVE_DENIED, policy)
                    continue
            queue = conn.queue
            tally = self.accounts.to_many(user, conn.user)
            if not self.pool.admits(queue.size, queue.n_fds, tally, msg.size, msg.n_fds):
                conn.dropped += 1
                self.n_dropped += 1
                self.front.dropped(sender, conn, msg)
                continue
            if msg.fds is not None and not conn.accepts_fds:
                self.front.unfit(sender, conn, msg)
                continue
            self.enqueue(conn, msg, sender, tally)

    def emit(
        self, dest: Connection | None, wire: bytes, fds: Any = None, captured: bool = False
    ) -> None:
        """Sends a message of the driver's own, whole as it goes out; dest None: a broadcast.

        `captured`: monitors have seen it already."""
        msg = Message()
        if not msg.load(wire):
            raise ValueError("the driver made an invalid message")
        msg.fds = fds
        if dest is None:
            self.tell(msg)
            return
        if self.monitors and not captured:
            self.capture(msg, None, dest)
        if dest.state == _CLOSED or dest.state == _MONITOR:
            return
        if dest.id and not dest.receive_open:
            policy = dest.policy
            if not policy.may_receive(self, msg, None, dest, dest, msg.reply_serial != 0):
                self.front.denied_own(dest, msg, policy)
                return
        # A full queue swallows even the driver's word, as in dbus-daemon, but says so.
        queue = dest.queue
        tally = self.accounts.to_many(self.accounts.bus, dest.user)
        if not self.pool.admits(queue.size, queue.n_fds, tally, msg.size, msg.n_fds):
            dest.dropped += 1
            self.n_dropped += 1
            self.front.dropped(None, dest, msg)
            return
        self.enqueue(dest, msg, None, tally)

    def post(self, dest: Connection, data: Buffer) -> None:
        """emit() of what the driver wrote into a buffer, one message without descriptors.

        The buffer is free again afterwards. Nothing is parsed where nobody looks at fields; what
        the driver writes is held against the parser by its tests."""
        size = data.end - data.head
        queue = dest.queue
        tally = self.accounts.to_many(self.accounts.bus, dest.user)
        if (
            self.monitors
            or not (
                dest.id == 0
                or dest.receive_open
                or (dest.receive_types >> data.p[data.head + 1]) & 1
            )
            or size >= 16384
            or not self.pool.admits(queue.size, queue.n_fds, tally, size, 0)
        ):
            self.emit(dest, take(data.p, data.head, size))
            return
        if dest.state == _CLOSED:
            return
        msg = self.own
        msg.p = view(data.p, data.head, size)
        msg.size = size
        msg.type = data.p[data.head + 1]
        msg.fields_end = 16 + load32(msg.p, 12, False)
        msg.body_off = (msg.fields_end + 7) & ~7
        msg.body_len = size - msg.body_off
        self.enqueue(dest, msg, None, tally)

    def heard(self) -> bool:
        """Whether a broadcast could reach anybody."""
        return self.match_index.count > 0 or len(self.monitors) > 0

    def tell(self, msg: Message) -> None:
        """Broadcasts a message of the driver's own."""
        if self.monitors:
            self.capture(msg, None, None)
        self.broadcast(msg, None, None)

    def enqueue(
        self, dest: Connection, msg: Message, sender: Connection | None, tally: Tally
    ) -> None:
        """Puts `msg` on the receiver's queue, with the sender's name in it, charged to `tally`."""
        if dest.taker is not None:
            dest.taker(dest, msg, sender)
            return
        queue = dest.queue
        if self.metered and not self.flushing:
            self.look_at_clock()
        field = None
        if sender is not None:
            if sender.id == 0:
                field = self.field_inactive_be if msg.big else self.field_inactive_le
            else:
                if msg.big and sender.field_be is None:
                    sender.field_be = sender_field(sender.unique_name, True)
                field = sender.field_be if msg.big else sender.field_le
        if msg.unclean and sender is not None:
            if self.head is None:
                self.head = clean(msg)
            head = self.head
            size = queue.push(msg, of_bytes(head), len(head), field, tally)
        else:
            size = queue.push(msg, msg.p, msg.fields_end, field, tally)
        counts = dest.counts
        if counts is not None:
            counts.received[msg.type if msg.type < 5 else 0] += 1
            counts.received_bytes += size
        if queue.size > dest.peak_size:
            dest.peak_size = queue.size
        if queue.n_fds > dest.peak_fds:
            dest.peak_fds = queue.n_fds
        if not queue.dirty:
            self.stir(dest)

    def look_at_clock(self) -> None:
        """It is none of the front's rounds, which do so at their start."""
        self.accounts.moment = int(self.clock() * 1000000)

    def stir(self, conn: Connection) -> None:
        """The connection's queue has something new in it."""
        if not self.flushing and not self.dirty:
            # Not in answer to a message: a timer or a child process made this one.
            self.front.wake()
        conn.queue.dirty = True
        self.dirty.append(conn)

    # Monitors

    def show(self, wire: bytes) -> None:
        """Gives monitors a message of the driver's own that goes out later, if at all."""
        if self.monitors:
            msg = Message()
            if not msg.load(wire):
                raise ValueError("the driver made an invalid message")
            self.capture(msg, None, None)

    def capture(self, msg: Message, sender: Connection | None, dest: Connection | None) -> None:
        """Gives monitors their copy, at their own expense."""
        if self.sole is not None:
            self.sole.note(msg, sender, dest)
            return
        for conn in self.monitor_index.collect(msg, sender, dest):
            tracer = conn.tracer
            if tracer is not None:
                tracer.note(msg, sender, dest)
                continue
            tally = self.accounts.to_many(conn.user, conn.user)
            if not self.pool.admits(conn.queue.size, 0, tally, msg.size, 0):
                conn.dropped += 1
                self.n_dropped += 1
                continue
            self.enqueue(conn, msg, sender, tally)

    # Policy

    def may_send(
        self,
        conn: Connection,
        addressed: Connection | None,
        proposed: Connection | None,
        msg: Message,
        requested: bool,
    ) -> bool:
        if msg.type > 4:
            self.refuse(
                conn, msg, ACCESS_DENIED, "Message bus will not accept messages of unknown type\n"
            )
            return False
        guard = self.guard
        if guard is not None and not guard.passes(self, conn, proposed, msg, requested):
            return False
        if conn.send_open:
            return True
        if requested or msg.reply_serial == 0:
            if (conn.send_types >> msg.type) & 1:
                return True
            if proposed is not None and (proposed.types_to(conn) >> msg.type) & 1:
                return True
        policy = conn.policy
        if policy.may_send(self, msg, proposed, requested):
            if policy.log:
                self.front.would_reject(conn, proposed, msg, policy, requested)
            return True
        self.complain(conn, proposed, msg, ACCESS_DENIED, SEND_DENIED, policy, requested)
        return False

    def may_receive(
        self,
        conn: Connection,
        addressed: Connection,
        proposed: Connection,
        msg: Message,
        requested: bool,
    ) -> bool:
        if proposed.receive_open:
            return True
        if requested or msg.reply_serial == 0:
            if (proposed.receive_types >> msg.type) & 1:
                return True
            if addressed is proposed and (conn.types_from(proposed) >> msg.type) & 1:
                return True
        policy = proposed.policy
        if policy.may_receive(self, msg, conn, addressed, proposed, requested):
            return True
        self.complain(conn, proposed, msg, ACCESS_DENIED, RECEIVE_DENIED, policy, requested)
        return False

    def complain(
        self,
        conn: Connection,
        proposed: Connection | None,
        msg: Message,
        code: str,
        complaint: str,
        policy: Any,
        requested: bool,
    ) -> None:
        """Tells the sender, and the log; `policy` (None: it was not about one) has just decided."""
        self.n_denied += 1
        matched = policy.matched if policy is not None else 0
        text = self.front.complaint(conn, proposed, msg, complaint, matched, requested)
        event = "denied" if policy is not None else "full"
        self.front.denied(text, policy, event, conn=conn, dest=proposed, msg=msg, reason=complaint)
        if self.monitors:
            self.front.judged(conn, proposed, msg, code, complaint, policy)
        self.refuse(conn, msg, code, text)

    def refuse(self, conn: Connection, msg: Message, code: str, text: str) -> None:
        if conn.counts is not None:
            conn.counts.refused(code)
        self.front.refused(conn, msg, Refused(code, text))
