# cython: infer_types=True
"""Bus: the one way that every message takes.

Invariant: `dispatch()` takes a parsed message from its sender to the queue of every
receiver before it returns; nothing in it waits, and nothing a peer did can make it raise
(MemoryError alone passes, before anything was queued for that receiver). So all receivers
see messages in one order: the order in which the bus read them.

The front (classic D-Bus: `jitney.compat.front`) is told what the core does not know how to
say: errors to the caller, the driver's methods, what a name change looks like on the wire.
"""

from __future__ import annotations

import time
from typing import Any

try:
    import cython
except ImportError:
    from ._cython import cython

from .accounting import Accounts, User
from .atoms import Atoms
from .connection import ACTIVE, CLOSED, MONITOR, NEW, Connection
from .errors import (
    ACCESS_DENIED,
    INVALID_ARGS,
    LIMITS,
    NO_OWNER,
    NOT_FOUND,
    NOT_SUPPORTED,
    Refused,
)
from .limits import Limits
from .match import MatchIndex, Rule, unique_id
from .mem import Map64
from .message import Message, clean
from .names import Name, Registry
from .queue import sender_field
from .replies import Replies
from .syntax import is_bus_name

if not cython.compiled:
    from .mem import of_bytes, same

DRIVER = b"org.freedesktop.DBus"
NOT_ACTIVE = b":not.active.yet"


class Bus:
    """A bus: connections, names, matches, replies, monitors and the accounts of its users.

    `dirty` holds the connections that got something queued since the front last flushed;
    `flushing`: the front is in the midst of its round and will look there before it rests."""

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
        self.replies = Replies()
        self.table = Map64()
        self.connections: dict[int, Connection] = {}
        self.last_id = 0
        self.dirty: list[Connection] = []
        self.flushing = False
        self.field_inactive_le = sender_field(NOT_ACTIVE, False)
        self.field_inactive_be = sender_field(NOT_ACTIVE, True)
        self.head = None
        self.n_messages = 0
        self.n_denied = 0
        self.n_dropped = 0
        self.peak_rules = 0
        self.peak_names = 1
        self.set_limits(limits if limits is not None else Limits())

    def set_limits(self, limits: Limits) -> None:
        """Takes new limits; the hot ones are copied out of the object."""
        self.limits = limits
        self.max_outgoing_bytes = limits.max_outgoing_bytes
        self.max_outgoing_unix_fds = limits.max_outgoing_unix_fds
        self.max_replies = limits.max_replies_per_connection
        self.reply_timeout = limits.reply_timeout / 1000 if limits.reply_timeout > 0 else 0.0

    # Coming and going

    def connect(self, uid: int | None) -> Connection:
        """A new connection of this user, not yet registered."""
        return Connection(self.accounts, self.accounts.user(uid))

    def hello(self, conn: Connection) -> None:
        """Registers `conn`: from here on it has an id and a unique name (kdbus: HELLO).

        Raises Refused(LIMITS) where the bus or the user has as many connections as may be.
        Announcing the unique name is `announce()`, which follows the front's reply."""
        limits = self.limits
        if len(self.connections) >= limits.max_completed_connections:
            raise Refused(LIMITS, "The maximum number of active connections has been reached")
        if (
            conn.user.uid is not None
            and conn.user.connections >= limits.max_connections_per_user
        ):
            raise Refused(
                LIMITS,
                f"The maximum number of active connections for UID {conn.user.uid} has been reached",
            )
        self.last_id += 1
        conn.id = self.last_id
        conn.unique_name = b":1.%d" % (self.last_id - 1)
        conn.field_le = sender_field(conn.unique_name, False)
        conn.field_be = sender_field(conn.unique_name, True)
        conn.state = ACTIVE
        conn.user.connections += 1
        self.connections[conn.id] = conn
        self.table.put(conn.id, conn)
        self.front.registered(conn)

    def announce(self, conn: Connection) -> None:
        """Tells the bus about a connection that `hello()` registered (kdbus: ID_ADD)."""
        self.owner_changed(conn.unique_name, None, conn)

    def set_policy(self, conn: Connection, policy: Any) -> None:
        """Sets what the connection may do; see `policy.ClientPolicy`."""
        conn.policy = policy
        conn.send_open = policy.send_open
        conn.receive_open = policy.receive_open

    def disconnect(self, conn: Connection) -> None:
        """Ends a connection: matches, names, and the replies it was to give or to get."""
        if conn.state == CLOSED:
            return
        state = conn.state
        conn.state = CLOSED
        conn.queue.clear()
        if conn.id == 0:
            return
        if state == MONITOR:
            self.drop_rules(conn, self.monitor_index)
            self.monitors.remove(conn)
        else:
            self.drop_rules(conn, self.match_index)
            self.names.release_all(conn)
            self.table.pop(conn.id)
            self.owner_changed(conn.unique_name, conn, None)
        self.replies.drop_caller(conn)
        owed = self.replies.owed_by(conn)
        del self.connections[conn.id]
        conn.user.connections -= 1
        for caller, serial in owed:
            self.front.no_reply(
                caller,
                serial,
                "Message recipient disconnected from message bus without replying",
            )

    def drop_rules(self, conn: Connection, index: MatchIndex) -> None:
        for rule in conn.rules:
            index.remove(rule)
            conn.user.matches -= 1
        conn.rules.clear()
        # Rules of others that name this connection can never match again: ids do not come back.
        if conn.referers is not None:
            for rule in list(conn.referers):
                owner = rule.owner
                if owner is not None:
                    self.match_index.remove(rule)
                    owner.rules.remove(rule)
                    owner.user.matches -= 1
            conn.referers = None

    def expire(self) -> float:
        """Ends replies whose time is over; when to call again (bus clock), 0 for no need."""
        for caller, serial in self.replies.expired(self.clock()):
            self.front.no_reply(
                caller, serial, "Message did not receive a reply (timeout by message bus)"
            )
        return self.replies.next_deadline()

    # Names

    def lookup(self, text: bytes) -> Connection | None:
        """Who gets messages sent to this name: a unique name's or well-known name's owner."""
        return self.find_dest(of_bytes(text), 0, len(text))

    def find_dest(self, p, off: int, n: int) -> Connection | None:
        if p[off] == 58:
            # ":1.N": the number is the id, less one.
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
            return self.table.get(number + 1)
        atom = self.atoms.find(p, off, n)
        if atom is None:
            return None
        name = atom.name
        if name is None:
            return None
        return name.owner

    def request_name(self, conn: Connection, text: bytes, flags: int) -> int:
        """RequestName (kdbus: NAME_ACQUIRE); one of names.PRIMARY_OWNER and so on, or Refused."""
        shown = text.decode(errors="replace")
        if not is_bus_name(text):
            raise Refused(INVALID_ARGS, f'Requested bus name "{shown}" is not valid')
        if text[:1] == b":":
            raise Refused(
                INVALID_ARGS, f"Cannot acquire a service starting with ':' such as \"{shown}\""
            )
        if text == DRIVER:
            # The missing space is dbus-daemon's.
            raise Refused(
                INVALID_ARGS,
                f'Connection "{conn.label}" is not allowed to own the service "{shown}"because '
                "it is reserved for D-Bus' use only",
            )
        if not conn.policy.may_own(text):
            raise Refused(
                ACCESS_DENIED,
                f'Connection "{conn.label}" is not allowed to own the service "{shown}" due '
                "to security policies in the configuration file",
            )
        limit = self.limits.max_names_per_connection
        # The unique name counts, as in dbus-daemon.
        if len(conn.names) + 1 >= limit:
            refused = Refused(
                LIMITS,
                f'Connection "{conn.label}" is not allowed to own more services '
                "(increase limits in configuration file if required; "
                f"max_names_per_connection={limit})",
            )
            self.front.log("warning", refused.text)
            raise refused
        result = self.names.request(conn, text, flags)
        held = len(conn.names)
        conn.peak_names = max(conn.peak_names, held)
        self.peak_names = max(self.peak_names, held + 1)
        return result

    def release_name(self, conn: Connection, text: bytes) -> int:
        """ReleaseName; one of names.RELEASED and so on, or Refused."""
        shown = text.decode(errors="replace")
        if not is_bus_name(text):
            raise Refused(INVALID_ARGS, f'Given bus name "{shown}" is not valid')
        if text[:1] == b":":
            raise Refused(
                INVALID_ARGS, f"Cannot release a service starting with ':' such as \"{shown}\""
            )
        if text == DRIVER:
            raise Refused(
                INVALID_ARGS, f"Cannot release the {shown} service because it is owned by the bus"
            )
        return self.names.release(conn, text)

    def owner_changed(self, text: bytes, old: Connection | None, new: Connection | None) -> None:
        """A name has another owner; the order of the three signals is dbus-daemon's."""
        front = self.front
        if old is not None:
            front.name_lost(old, text)
        front.name_owner_changed(text, old, new)
        if new is not None:
            front.name_acquired(new, text)

    # Matches

    def add_match(self, conn: Connection, rule: Rule) -> None:
        """AddMatch (kdbus: MATCH_ADD); Refused(LIMITS) where the connection has too many."""
        limit = self.limits.max_match_rules_per_connection
        if len(conn.rules) >= limit:
            raise Refused(
                LIMITS,
                f'Connection "{conn.label}" is not allowed to add more match rules '
                "(increase limits in configuration file if required; "
                f"max_match_rules_per_connection={limit})",
            )
        self.match_index.add(rule, conn)
        conn.rules.append(rule)
        conn.user.matches += 1
        held = len(conn.rules)
        conn.peak_rules = max(conn.peak_rules, held)
        self.peak_rules = max(self.peak_rules, held)
        for name in (rule.sender, rule.destination):
            if name is not None and name[:1] == b":":
                peer = self.lookup(name)
                if peer is not None and peer is not conn:
                    if peer.referers is None:
                        peer.referers = set()
                    peer.referers.add(rule)

    def remove_match(self, conn: Connection, rule: Rule) -> None:
        """RemoveMatch: removes the latest rule equal to `rule`, or Refused(NOT_FOUND)."""
        identity = rule.identity()
        rules = conn.rules
        for i in range(len(rules) - 1, -1, -1):
            have = rules[i]
            if have.identity() == identity:
                self.match_index.remove(have)
                del rules[i]
                conn.user.matches -= 1
                for name in (have.sender, have.destination):
                    if name is not None and name[:1] == b":":
                        peer = self.lookup(name)
                        if peer is not None and peer.referers is not None:
                            peer.referers.discard(have)
                return
        raise Refused(NOT_FOUND, "The given match rule wasn't found and can't be removed")

    # Monitors

    def become_monitor(self, conn: Connection, rules: list[Rule]) -> None:
        """Turns `conn` into a monitor with these filters (kdbus: HELLO with the MONITOR flag)."""
        for rule in rules:
            rule.eavesdrop = True
        self.drop_rules(conn, self.match_index)
        for rule in rules:
            self.monitor_index.add(rule, conn)
            conn.rules.append(rule)
            conn.user.matches += 1
        self.names.release_all(conn)
        self.table.pop(conn.id)
        self.owner_changed(conn.unique_name, conn, None)
        self.replies.drop_caller(conn)
        owed = self.replies.owed_by(conn)
        conn.state = MONITOR
        self.monitors.append(conn)
        for caller, serial in owed:
            self.front.no_reply(
                caller,
                serial,
                "Message recipient disconnected from message bus without replying",
            )

    def show(self, wire: bytes) -> None:
        """Gives monitors a message of the driver's own that goes out later, if at all."""
        if self.monitors:
            msg = Message()
            if not msg.load(wire):
                raise ValueError("the driver made an invalid message")
            self.capture(msg, None, None)

    def capture(self, msg: Message, sender: Connection | None, dest: Connection | None) -> None:
        """Gives monitors their copy, at their own expense."""
        for conn in self.monitor_index.collect(msg, sender, dest):
            if conn.queue.size > self.max_outgoing_bytes:
                conn.dropped += 1
                self.n_dropped += 1
                continue
            self.enqueue(conn, msg, sender, conn.user)

    # Messages

    def dispatch(self, conn: Connection, msg: Message) -> None:
        """Routes one valid message that `conn` sent."""
        self.n_messages += 1
        self.head = None
        if conn.state != ACTIVE:
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
            return
        dest = self.find_dest(msg.p, msg.dest_off, msg.dest_len)
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
        if conn.state == NEW:
            if msg.dest_len >= 0 and same(msg.p, msg.dest_off, msg.dest_len, DRIVER):
                if self.monitors:
                    self.capture(msg, conn, None)
                if (
                    msg.type == 1
                    and same(msg.p, msg.member_off, msg.member_len, b"Hello")
                    and msg.iface_len >= 0
                    and same(msg.p, msg.iface_off, msg.iface_len, DRIVER)
                ):
                    self.front.driver_call(conn, msg)
                else:
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
        elif conn.state == MONITOR:
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
        if conn.state == ACTIVE and dest.state == ACTIVE:
            self.head = None
            self.unicast(conn, dest, msg)
            self.head = None

    def unicast(self, conn: Connection, dest: Connection, msg: Message) -> None:
        requested = False
        if msg.reply_serial:
            slot = self.replies.find(dest, conn, msg.reply_serial)
            if slot is not None:
                requested = True
                self.replies.end(slot)
        if not self.may_send(conn, dest, dest, msg, requested):
            return
        if not self.may_receive(conn, dest, dest, msg, requested):
            return
        queue = dest.queue
        if queue.size > self.max_outgoing_bytes or queue.n_fds > self.max_outgoing_unix_fds:
            self.complain(
                conn, dest, msg, LIMITS, "Rejected: destination has a full message queue", 0, requested
            )
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
        self.enqueue(dest, msg, conn, conn.user)
        if self.match_index.n_eavesdrop:
            self.broadcast(msg, conn, dest)

    def expect_reply(self, conn: Connection, dest: Connection, msg: Message) -> bool:
        if conn.n_calls >= self.max_replies:
            self.front.log(
                "warning",
                f'The maximum number of pending replies for "{conn.label}" has been reached '
                f"(max_replies_per_connection={self.max_replies})",
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
        if not self.replies.expect(conn, dest, msg.serial, deadline):
            self.refuse(
                conn,
                msg,
                ACCESS_DENIED,
                "Message has the same reply serial as a currently-outstanding existing method call",
            )
            return False
        return True

    def broadcast(self, msg: Message, sender: Connection | None, dest: Connection | None) -> None:
        """Queues `msg` for everyone whose match rules want it, `dest` (who has it already) left out."""
        for conn in self.match_index.collect(msg, sender, dest):
            if sender is not None and not sender.send_open:
                policy = sender.policy
                if not policy.may_send(self, msg, conn, False):
                    self.front.capture_denied(sender, conn, msg, "Rejected send message", policy)
                    continue
            if not conn.receive_open:
                policy = conn.policy
                if not policy.may_receive(self, msg, sender, dest, conn, False):
                    self.front.capture_denied(sender, conn, msg, "Rejected receive message", policy)
                    continue
            queue = conn.queue
            if queue.size > self.max_outgoing_bytes or queue.n_fds > self.max_outgoing_unix_fds:
                conn.dropped += 1
                self.n_dropped += 1
                self.front.dropped(sender, conn, msg)
                continue
            if msg.fds is not None and not conn.accepts_fds:
                continue
            self.enqueue(conn, msg, sender, sender.user if sender is not None else self.accounts.bus)

    def emit(
        self, dest: Connection | None, wire: bytes, fds: Any = None, captured: bool = False
    ) -> None:
        """Sends a message of the driver's own, whole as it goes out; dest None: a broadcast.

        `captured`: monitors have seen it already."""
        msg = Message()
        if not msg.load(wire):
            raise ValueError("the driver made an invalid message")
        msg.fds = fds
        if self.monitors and not captured:
            self.capture(msg, None, dest)
        if dest is None:
            self.broadcast(msg, None, None)
            return
        if dest.state == CLOSED or dest.state == MONITOR:
            return
        if dest.id and not dest.receive_open:
            policy = dest.policy
            if not policy.may_receive(self, msg, None, dest, dest, msg.reply_serial != 0):
                self.front.denied_own(dest, msg, policy)
                return
        # A full queue swallows even the driver's word, as in dbus-daemon, but says so.
        queue = dest.queue
        if queue.size > self.max_outgoing_bytes or queue.n_fds > self.max_outgoing_unix_fds:
            dest.dropped += 1
            self.n_dropped += 1
            self.front.dropped(None, dest, msg)
            return
        self.enqueue(dest, msg, None, self.accounts.bus)

    def enqueue(self, dest: Connection, msg: Message, sender: Connection | None, user: User) -> None:
        """Puts `msg` on the receiver's queue, with the sender's name in it, charged to `user`."""
        queue = dest.queue
        field = None
        if sender is not None:
            if sender.id == 0:
                field = self.field_inactive_be if msg.big else self.field_inactive_le
            else:
                field = sender.field_be if msg.big else sender.field_le
        if msg.unclean and sender is not None:
            if self.head is None:
                self.head = clean(msg)
            head = self.head
            queue.push(msg, of_bytes(head), len(head), field, user.index)
        else:
            queue.push(msg, msg.p, msg.fields_end, field, user.index)
        if queue.size > dest.peak_size:
            dest.peak_size = queue.size
        if queue.n_fds > dest.peak_fds:
            dest.peak_fds = queue.n_fds
        if not queue.dirty:
            if not self.flushing and not self.dirty:
                # Not in answer to a message: a timer or a child process made this one.
                self.front.wake()
            queue.dirty = True
            self.dirty.append(dest)

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
        if conn.send_open:
            return True
        policy = conn.policy
        if policy.may_send(self, msg, proposed, requested):
            if policy.log:
                self.front.would_reject(conn, proposed, msg, policy, requested)
            return True
        self.complain(
            conn, proposed, msg, ACCESS_DENIED, "Rejected send message", policy.matched, requested
        )
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
        policy = proposed.policy
        if policy.may_receive(self, msg, conn, addressed, proposed, requested):
            return True
        self.complain(
            conn, proposed, msg, ACCESS_DENIED, "Rejected receive message", policy.matched, requested
        )
        return False

    def complain(
        self,
        conn: Connection,
        proposed: Connection | None,
        msg: Message,
        code: str,
        complaint: str,
        matched: int,
        requested: bool,
    ) -> None:
        self.n_denied += 1
        text = self.front.complaint(conn, proposed, msg, complaint, matched, requested)
        self.front.log("security", text)
        self.refuse(conn, msg, code, text)

    def refuse(self, conn: Connection, msg: Message, code: str, text: str) -> None:
        self.front.refused(conn, msg, Refused(code, text))

