# cython: infer_types=True
"""Bus: who is on it, which names they own, what they listen for.

Invariant: a registered connection is in `connections` under its id from Hello to the end; when
`disconnect()` returns, nothing on the bus refers to it: no name, rule, awaited reply or charge.
Each coming, going and change of a name's owner is reported to the front once, in dbus-daemon's
order. Passing messages on is the Router's matter.
"""

from __future__ import annotations

from typing import Any

try:
    import cython
except ImportError:
    from ._cython import cython

from .accounting import room_for_one
from .connection import ACTIVE, CLOSED, MONITOR, Connection
from .endpoint import Endpoint
from .errors import ACCESS_DENIED, INVALID_ARGS, LIMITS, NOT_FOUND, Refused
from .limits import USER_OBJECTS, Limits
from .match import MatchIndex, Rule
from .mem import Buffer, Map64
from .message import Message
from .meter import EACH_NAME, Counts, NameTotals
from .queue import sender_field
from .routing import DRIVER, Router
from .syntax import is_bus_name

if not cython.compiled:
    from .endpoint import forget
    from .mem import load32, view


def _shown(text: bytes) -> str:
    return text.decode(errors="replace")


def _number(rule: Rule) -> int:
    return rule.number


class Bus(Router):
    """A bus: connections, names, matches, monitors and the accounts of its users."""

    def __init__(self, limits: Limits | None = None, front: Any = None, guid: str = "") -> None:
        super().__init__(limits, front, guid)
        self.name_totals = NameTotals(self.names)
        self.endpoints: list[Endpoint] = []

    # Coming and going

    def connect(self, uid: int | None) -> Connection:
        """A new connection of this user, not yet registered."""
        conn = Connection(self.accounts, self.accounts.user(uid))
        if self.metered:
            conn.counts = conn.queue.counts = Counts()
        return conn

    def settle(self, conn: Connection) -> None:
        """Brings the totals of its user and names up to date with what the connection did."""
        counts = conn.counts
        if counts is None:
            return
        counts.dropped = conn.dropped
        if not counts.changed():
            return
        user = conn.user
        if user.totals is None:
            user.totals = Counts()
        counts.add_to(user.totals)
        left = EACH_NAME
        for text in conn.owned:
            if left == 0:
                # One who owns very many must not make the bus go through all, each time.
                counts.add_to(self.name_totals.rest)
                break
            left -= 1
            total = self.name_totals.of(text)
            counts.add_to(total)
        counts.settle()

    def hello(self, conn: Connection) -> None:
        """Registers `conn`: from here on it has an id and a unique name (kdbus: HELLO).

        Raises Refused(LIMITS) where the bus or the user has as many connections as may be.
        Announcing the unique name is `announce()`, which follows the front's reply."""
        # A reserve is left to users who have few: one may not keep all others out.
        if not room_for_one(len(self.connections), self.max_connections, conn.user.connections):
            self.show_greeting(conn)
            raise Refused(LIMITS, "The maximum number of active connections has been reached")
        if conn.user.uid is not None and conn.user.connections >= self.max_connections_per_user:
            self.show_greeting(conn)
            raise Refused(
                LIMITS,
                f"The maximum number of active connections for UID {conn.user.uid} "
                "has been reached",
            )
        self.last_id += 1
        conn.id = self.last_id
        conn.unique_name = b":1.%d" % (self.last_id - self.first)
        conn.field_le = sender_field(conn.unique_name, False)
        conn.state = ACTIVE
        conn.since = self.accounts.moment
        conn.user.connections += 1
        self.connections[conn.id] = conn
        self.table.put(conn.id, conn)
        self.front.registered(conn)
        self.show_greeting(conn)

    def show_greeting(self, conn: Connection) -> None:
        # Monitors see the Hello as from the name that it brought, as with dbus-daemon.
        msg = self.greeting
        self.greeting = None
        if msg is not None and self.monitors:
            self.capture(msg, conn, None)

    def announce(self, conn: Connection) -> None:
        """Tells the bus about a connection that `hello()` registered (kdbus: ID_ADD)."""
        self.owner_changing(conn.unique_name, None, conn)

    def set_policy(self, conn: Connection, policy: Any) -> None:
        """Sets what the connection may do; see `policy.ClientPolicy`."""
        conn.policy = policy
        conn.policy_number = policy.number
        conn.send_open = policy.send_open
        conn.receive_open = policy.receive_open
        conn.send_types = policy.send_types
        conn.receive_types = policy.receive_types

    def disconnect(self, conn: Connection) -> None:
        """Ends a connection: matches, names, and the replies it was to give or to get."""
        if conn.state == CLOSED:
            return
        state = conn.state
        conn.state = CLOSED
        conn.queue.clear()
        self.settle(conn)
        if conn.endpoint is not None:
            conn.endpoint.leave(conn)
        if conn.id == 0:
            return
        self.settle_tallies(conn)
        if state == MONITOR:
            self.drop_rules(conn, self.monitor_index)
            self.monitors.remove(conn)
            self.find_sole()
        else:
            self.drop_rules(conn, self.match_index)
            self.names.release_all(conn, True)
            self.owner_changing(conn.unique_name, conn, None)
            self.table.pop(conn.id)
        self.replies.drop_caller(conn)
        owed = self.replies.owed_by(conn)
        del self.connections[conn.id]
        forget(conn)
        conn.user.connections -= 1
        for caller, serial in owed:
            self.front.no_reply(
                caller,
                serial,
                "Message recipient disconnected from message bus without replying",
            )

    def settle_tallies(self, conn: Connection) -> None:
        """What it sent and still waits somewhere is its user's debt alone now."""
        if conn.tallies is not None:
            for tally in conn.tallies.values():
                self.accounts.end(tally)
            conn.tallies = None
            conn.tally = None
            conn.own_tally = None

    def drop_rules(self, conn: Connection, index: MatchIndex) -> None:
        for rule in conn.rules:
            self.unrefer(rule)
            index.remove(rule)
        conn.user.matches -= conn.n_rules
        conn.rule_table = None
        conn.n_rules = 0
        # Rules of others that name this connection can never match again: ids do not come back.
        if conn.referers is not None:
            # The latest first: that one is found at once, however many say the same.
            for rule in sorted(conn.referers, key=_number, reverse=True):
                owner = rule.owner
                if owner is not None:
                    self.match_index.remove(rule)
                    self.drop_rule(owner, rule)
            conn.referers = None

    def expire(self) -> float:
        """Ends replies whose time is over; when to call again (bus clock), 0 for no need."""
        for caller, serial in self.replies.expired(self.clock()):
            self.front.no_reply(
                caller, serial, "Message did not receive a reply (timeout by message bus)"
            )
        return self.replies.next_deadline()

    # Names

    def request_name(self, conn: Connection, text: bytes, flags: int) -> int:
        """RequestName (kdbus: NAME_ACQUIRE); one of names.PRIMARY_OWNER and so on, or Refused."""
        if not is_bus_name(text):
            raise Refused(INVALID_ARGS, f'Requested bus name "{_shown(text)}" is not valid')
        if text[0] == 58:
            raise Refused(
                INVALID_ARGS,
                f"Cannot acquire a service starting with ':' such as \"{_shown(text)}\"",
            )
        if text == DRIVER:
            # The missing space is dbus-daemon's.
            raise Refused(
                INVALID_ARGS,
                f'Connection "{conn.label}" is not allowed to own the service "{_shown(text)}"'
                "because it is reserved for D-Bus' use only",
            )
        if self.guard is not None:
            self.guard.check_own(conn, text)
        endpoint = conn.endpoint
        if not conn.policy.may_own(text) or (endpoint is not None and not endpoint.may_own(text)):
            refused = Refused(
                ACCESS_DENIED,
                f'Connection "{conn.label}" is not allowed to own the service "{_shown(text)}" due '
                "to security policies in the configuration file",
            )
            self.front.denied(refused.text, conn.policy, conn=conn, reason="own", name=_shown(text))
            raise refused
        limit = self.limits.max_names_per_connection
        # The unique name counts, as in dbus-daemon.
        if len(conn.names) + 1 >= limit or conn.user.names >= limit * USER_OBJECTS:
            refused = Refused(
                LIMITS,
                f'Connection "{conn.label}" is not allowed to own more services '
                "(increase limits in configuration file if required; "
                f"max_names_per_connection={limit})",
            )
            self.front.log(
                "warning",
                refused.text,
                "limit",
                conn=conn,
                reason="max_names_per_connection",
                name=_shown(text),
            )
            raise refused
        result = self.names.request(conn, text, flags)
        held = len(conn.names)
        conn.peak_names = max(conn.peak_names, held)
        self.peak_names = max(self.peak_names, held + 1)
        return result

    def release_name(self, conn: Connection, text: bytes) -> int:
        """ReleaseName; one of names.RELEASED and so on, or Refused."""
        if not is_bus_name(text):
            raise Refused(INVALID_ARGS, f'Given bus name "{_shown(text)}" is not valid')
        if text[0] == 58:
            raise Refused(
                INVALID_ARGS,
                f"Cannot release a service starting with ':' such as \"{_shown(text)}\"",
            )
        if text == DRIVER:
            raise Refused(
                INVALID_ARGS,
                f"Cannot release the {_shown(text)} service because it is owned by the bus",
            )
        return self.names.release(conn, text)

    def owner_changing(self, text: bytes, old: Connection | None, new: Connection | None) -> None:
        """A name is about to have another owner; the order of the signals is dbus-daemon's."""
        if text[0] != 58:
            # What they have done until now, they have done without it, or as its owner.
            if old is not None:
                self.settle(old)
                for endpoint in self.endpoints:
                    endpoint.losing(text, old)
            if new is not None:
                self.settle(new)
        front = self.front
        if old is not None:
            front.name_lost(old, text)
        front.name_owner_changed(text, old, new)
        if new is not None:
            front.name_acquired(new, text)

    def owner_changed(self, text: bytes, new: Connection) -> None:
        """A well-known name has this owner now."""
        self.front.name_owned(new, text)

    # Endpoints

    def add_endpoint(self, endpoint: Endpoint) -> None:
        """Opens it to clients (kdbus: ENDPOINT_MAKE)."""
        endpoint.replies = self.replies
        endpoint.table = self.table
        endpoint.first = self.first
        self.endpoints.append(endpoint)

    def remove_endpoint(self, endpoint: Endpoint) -> None:
        """Nobody is to come in by it any more; who is there stays what he is."""
        self.endpoints.remove(endpoint)

    # Matches

    def add_match(self, conn: Connection, rule: Rule) -> None:
        """AddMatch (kdbus: MATCH_ADD); Refused(LIMITS) where the connection has too many."""
        limit = self.limits.max_match_rules_per_connection
        if conn.n_rules >= limit or conn.user.matches >= limit * USER_OBJECTS:
            raise Refused(
                LIMITS,
                f'Connection "{conn.label}" is not allowed to add more match rules '
                "(increase limits in configuration file if required; "
                f"max_match_rules_per_connection={limit})",
            )
        self.match_index.add(rule, conn)
        try:
            self.keep_rule(conn, rule)
        except MemoryError:
            # A rule that nobody has would get copies for ever.
            self.match_index.remove(rule)
            raise
        held = conn.n_rules
        conn.peak_rules = max(conn.peak_rules, held)
        self.peak_rules = max(self.peak_rules, held)
        if rule.sender is not None:
            self.refer(rule, rule.sender)
        if rule.destination is not None:
            self.refer(rule, rule.destination)

    def remove_match(self, conn: Connection, rule: Rule) -> None:
        """RemoveMatch: removes the latest rule equal to `rule`, or Refused(NOT_FOUND)."""
        have = None
        if conn.rule_table is not None:
            have = conn.rule_table.get(rule.content())
            while have is not None and not have.same_as(rule):
                have = have.earlier
        if have is None:
            raise Refused(NOT_FOUND, "The given match rule wasn't found and can't be removed")
        self.unrefer(have)
        self.match_index.remove(have)
        self.drop_rule(conn, have)

    def keep_rule(self, conn: Connection, rule: Rule) -> None:
        """Counts the rule as the connection's latest."""
        if conn.rule_table is None:
            conn.rule_table = Map64()
        self.last_rule += 1
        rule.number = self.last_rule
        rule.digest = rule.content()
        rule.earlier = conn.rule_table.get(rule.digest)
        conn.rule_table.put(rule.digest, rule)
        conn.n_rules += 1
        conn.user.matches += 1

    def drop_rule(self, conn: Connection, rule: Rule) -> None:
        """Undoes `keep_rule()`."""
        have = conn.rule_table.get(rule.digest)
        if have is not rule:
            while have.earlier is not rule:
                have = have.earlier
            have.earlier = rule.earlier
        elif rule.earlier is None:
            conn.rule_table.pop(rule.digest)
        else:
            conn.rule_table.put(rule.digest, rule.earlier)
        rule.earlier = None
        conn.n_rules -= 1
        conn.user.matches -= 1

    def refer(self, rule: Rule, name: bytes) -> None:
        """Notes with the connection of this unique name, if it is one, that a rule names it."""
        if name and name[0] == 58:
            peer = self.lookup(name)
            if peer is not None and peer is not rule.owner:
                if peer.referers is None:
                    peer.referers = set()
                peer.referers.add(rule)

    def unrefer(self, rule: Rule) -> None:
        """The rule goes: whom it names need not know of it any more."""
        for name in (rule.sender, rule.destination):
            if name is not None and name[:1] == b":":
                peer = self.lookup(name)
                if peer is not None and peer.referers is not None:
                    peer.referers.discard(rule)

    # Monitors

    def become_monitor(self, conn: Connection, rules: list[Rule]) -> None:
        """Turns `conn` into a monitor with these filters (kdbus: HELLO with the MONITOR flag)."""
        for rule in rules:
            rule.eavesdrop = True
        for rule in rules:
            self.monitor_index.add(rule, conn)
        # It hears of its own leave-taking, as the client that it was and as the monitor it will be.
        self.owner_changing(conn.unique_name, conn, None)
        self.table.pop(conn.id)
        self.names.release_all(conn, False)
        self.drop_rules(conn, self.match_index)
        for rule in rules:
            self.keep_rule(conn, rule)
        self.replies.drop_caller(conn)
        owed = self.replies.owed_by(conn)
        conn.state = MONITOR
        self.monitors.append(conn)
        self.find_sole()
        for caller, serial in owed:
            self.front.no_reply(
                caller,
                serial,
                "Message recipient disconnected from message bus without replying",
            )

    def find_sole(self) -> None:
        """To be called whenever monitors come or go."""
        self.sole = None
        if len(self.monitors) == 1:
            only = self.monitors[0]
            tracer = only.tracer
            if tracer is not None and not tracer.rules:
                self.sole = tracer

    def hand(self, conn: Connection, data: Buffer) -> bool:
        """Queues for a tracer the message in a buffer, at its own expense; False if it is full.

        The buffer belongs to the queue afterwards. Nothing is parsed; what is written there is held
        against the parser by tests."""
        size = data.end - data.head
        tally = self.accounts.to_many(conn.user, conn.user)
        if not self.pool.admits(conn.queue.size, 0, tally, size, 0):
            return False
        msg = Message()
        msg.owner = data
        msg.p = view(data.p, data.head, size)
        msg.fields_end = 16 + load32(msg.p, 12, False)
        msg.body_off = (msg.fields_end + 7) & ~7
        msg.body_len = size - msg.body_off
        self.enqueue(conn, msg, None, tally)
        return True
