# cython: infer_types=True
"""Connection: one participant of the bus, as the core sees it.

Invariant: `id` is given once, counts up and is never used again; 0 means "not yet said
Hello" (kdbus: HELLO gives the id, and the unique name is derived from it). A connection is
in exactly one state; only ACTIVE ones send, receive broadcasts and own names.
"""

from __future__ import annotations

from typing import Any

try:
    import cython
except ImportError:
    from ._cython import cython

from .accounting import Accounts, Tally, User
from .mem import Map64
from .meter import Counts
from .queue import Queue

NEW, ACTIVE, MONITOR, CLOSED = 0, 1, 2, 3

KEPT = 4
"""So many policies' verdicts about a connection are kept at once."""


class Connection:
    """`transport` and `creds` belong to the front and mean nothing to the core.

    `names`: every name it owns or is queued for, oldest first; `owned`: those it is primary
    owner of; `rules`: its match rules, oldest first, kept in `rule_table` by what they say;
    `calls`: replies it waits for; `owes`: replies it is to give, the latest call first,
    `owes_first` the first, `n_owes` how many; `referers`: rules of others that name it;
    `send_open` and the like: see `policy.ClientPolicy`. `since`: when it said Hello; `counts`: what
    it did since, see `meter`, None if nobody counts.

    `taker`: takes what is sent to it, at once, in place of its queue: `taker(conn, msg, sender)`.

    `tracer`: what it is told of messages, if it is a monitor that wants records (`trace.Tracer`).

    `tallies`: what it sent to single receivers and still waits there, by the receivers' user;
    `tally` is the one used last, `own_tally` that of its own user.

    `endpoint`: the one that it came in by (`endpoint.Endpoint`), None for the bus's own door;
    `seen`: peers that have shown themselves to it there, `seen_by` those to whom it has. `version`
    counts up when the names that it owns change.

    `subject`: what security modules know it by, `subject_number` a number for that; `subject_keys`:
    subjects whose messages to this one all pass, see `security.Guard`.

    `to_keys`, `to_types`: the message types that clients of a policy may always send to this
    connection, by the policy's number, in slot number % KEPT; `from_keys`, `from_types`: those that
    they may always receive from it. They hold as long as it has the same names."""

    def __init__(self, accounts: Accounts, user: User) -> None:
        self.id = 0
        self.state = NEW
        self.unique_name = b""
        self.field_le = b""
        self.field_be: bytes | None = None
        self.user = user
        self.queue = Queue(accounts)
        self.tally: Tally | None = None
        self.own_tally: Tally | None = None
        self.tallies: dict[int, Tally] | None = None
        self.policy: Any = None
        self.policy_number = 0
        self.accepts_fds = False
        self.send_open = False
        self.receive_open = False
        self.send_types = 0
        self.receive_types = 0
        self.names: dict[bytes, Any] = {}
        self.owned: dict[bytes, Any] = {}
        self.rule_table: Map64 | None = None
        self.n_rules = 0
        self.referers: set[Any] | None = None
        self.calls: Map64 | None = None
        self.n_calls = 0
        self.owes: Any | None = None
        self.owes_first: Any | None = None
        self.n_owes = 0
        self.since = 0
        self.counts: Counts | None = None
        self.stamp = 0
        self.dropped = 0
        self.peak_size = 0
        self.peak_fds = 0
        self.peak_rules = 0
        self.peak_names = 0
        self.taker: Any = None
        self.tracer: Any = None
        self.endpoint: Any = None
        self.seen: set[Any] | None = None
        self.seen_by: set[Any] | None = None
        self.version = 0
        self.transport: Any = None
        self.creds: Any = None
        self.subject: bytes | None = None
        self.subject_number = 0
        if not cython.compiled:
            self.to_keys, self.to_types = [0] * KEPT, [0] * KEPT
            self.from_keys, self.from_types = [0] * KEPT, [0] * KEPT
            self.subject_keys = [0] * KEPT

    def forget_verdicts(self) -> None:
        """Its names are others now."""
        for i in range(4):
            self.to_keys[i] = 0
            self.from_keys[i] = 0

    @property
    def registered(self) -> bool:
        return self.id != 0

    @property
    def monitor(self) -> bool:
        return self.state == MONITOR

    @property
    def queued(self) -> dict[bytes, Any]:
        """Names it waits for."""
        return {text: name for text, name in self.names.items() if text not in self.owned}

    @property
    def rules(self) -> list[Any]:
        found = []
        if self.rule_table is not None:
            for latest in self.rule_table.values():
                rule = latest
                while rule is not None:
                    found.append(rule)
                    rule = rule.earlier
        found.sort(key=lambda rule: rule.number)
        return found

    def types_to(self, sender: Connection) -> int:
        """The message types, as bits, that `sender` may send here, unrequested replies aside,
        whatever else is in them."""
        number = sender.policy_number
        slot = number & 3
        if self.to_keys[slot] != number:
            self.to_types[slot] = sender.policy.types_to(self)
            self.to_keys[slot] = number
        return self.to_types[slot]

    def types_from(self, receiver: Connection) -> int:
        """The message types that `receiver` may get from here, likewise, if sent to it or to
        everybody."""
        number = receiver.policy_number
        slot = number & 3
        if self.from_keys[slot] != number:
            self.from_types[slot] = receiver.policy.types_from(self)
            self.from_keys[slot] = number
        return self.from_types[slot]

    def some_rules(self, start: int, count: int) -> list[Any]:
        """Of its rules `count` from the `start`th on, in no order, but in the same as long as they
        are the same: for those who look through very many of them bit by bit."""
        found: list[Any] = []
        i = 0
        if self.rule_table is not None:
            for latest in self.rule_table.values():
                rule = latest
                while rule is not None:
                    if i >= start:
                        if len(found) == count:
                            return found
                        found.append(rule)
                    i += 1
                    rule = rule.earlier
        return found

    @property
    def label(self) -> str:
        """How logs call it."""
        return self.unique_name.decode() or "(inactive)"

    def __repr__(self) -> str:
        return f"<Connection {self.label} state={self.state} uid={self.user.uid}>"
