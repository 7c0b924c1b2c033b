# cython: infer_types=True
"""Export: the whole state of a bus as plain data, for another process to go on with.

Invariant: exporting changes nothing that anybody could notice (totals are brought up to date, as
whenever somebody looks); what comes out is made of dict, list, str, int, float, bool and None, and
knows nothing of processes. Bytes of names and the like are texts with one character a byte
(Latin-1). What is waiting to be written, and descriptors, are told by number; see `Sink`.

Connections are told by their place in the list "connections". docs/upgrade.md has all fields;
`restore` reads them.
"""

from __future__ import annotations

from typing import Any

from .accounting import User
from .bus import Bus
from .connection import MONITOR, Connection
from .endpoint import Endpoint, Grant
from .match import Arg, Rule
from .meter import Counts, Histogram
from .names import Name, Owner
from .replies import Slot
from .trace import Tracer

Record = dict[str, Any]

TO_MANY, ENDED = -1, -2
"""In place of a tally's owner: what a user says to everybody, and what is left of one who went."""

SHARED = 16384
"""From this size on, bytes that wait for several receivers are told once."""


class Sink:
    """What goes beside the plain data, by number: `blobs` of bytes, and `sets` of descriptors."""

    def __init__(self) -> None:
        self.blobs: list[bytes] = []
        self.sets: list[list[int]] = []
        self._known: dict[bytes, int] = {}
        self._places: dict[int, int] = {}

    def blob(self, data: bytes) -> int:
        number = len(self.blobs)
        if len(data) >= SHARED:
            known = self._known.setdefault(data, number)
            if known != number:
                return known
        self.blobs.append(data)
        return number

    def fd_set(self, fds: list[int]) -> int:
        """A set is told once, whoever refers to it: a descriptor is in one set alone."""
        number = self._places.setdefault(fds[0], len(self.sets))
        if number == len(self.sets):
            self.sets.append(list(fds))
        return number


def text(data: bytes | None) -> Any:
    """One character a byte; None for None."""
    return None if data is None else data.decode("latin-1")


def export(bus: Bus, newcomers: list[Connection], sink: Sink) -> tuple[Record, dict[Any, int]]:
    """The state of the bus, and the place of each connection. `newcomers` have not said Hello.

    To be called between rounds: nothing is dirty, nothing is loaned."""
    conns = list(bus.connections.values())
    conns += newcomers
    places = {}
    for place, conn in enumerate(conns):
        places[conn] = place
        bus.settle(conn)
    numbers: dict[int, int] = {}
    state: Record = {
        "guid": bus.guid,
        "last_id": bus.last_id,
        "last_rule": bus.last_rule,
        "messages": bus.n_messages,
        "denied": bus.n_denied,
        "dropped": bus.n_dropped,
        "peak_rules": bus.peak_rules,
        "peak_names": bus.peak_names,
        "moment": bus.accounts.moment,
        "users": [_user(user) for user in bus.accounts.users],
        "tallies": _tallies(bus, places, numbers),
        "connections": [_connection(conn, sink, numbers) for conn in conns],
        "endpoints": [_endpoint(endpoint) for endpoint in bus.endpoints],
        "names": [_name(name, places) for name in bus.names if name.queue],
        "rules": _rules(bus, conns, places),
        "replies": _replies(bus, conns, places),
        "monitors": [places[conn] for conn in bus.monitors],
        "totals": [
            [text(name), _counts(counts)] for name, counts in bus.name_totals.by_name.items()
        ],
        "totals_rest": _counts(bus.name_totals.rest),
    }
    _insiders(bus, conns, places, state)
    return state, places


def _insiders(bus: Bus, conns: list[Connection], places: dict[Any, int], state: Record) -> None:
    """Who came in by which endpoint, and whom they have seen."""
    if not bus.endpoints:
        return
    order = {id(endpoint): i for i, endpoint in enumerate(bus.endpoints)}
    for conn, record in zip(conns, state["connections"], strict=True):
        if conn.endpoint is not None:
            record["endpoint"] = order[id(conn.endpoint)]
        if conn.seen:
            record["seen"] = sorted([places[peer] for peer in conn.seen])


def _endpoint(endpoint: Endpoint) -> Record:
    record: Record = {
        "name": text(endpoint.name),
        "filtering": bool(endpoint.filtering),
        "sloppy": bool(endpoint.sloppy),
        "refused": endpoint.n_refused,
        "grants": [_grant(grant) for grant in endpoint.grants],
    }
    learned = endpoint.learned
    if learned is not None:
        record["learned"] = [
            [[kind, text(name), text(what), n] for (kind, name, what), n in learned.used.items()],
            [[kind, text(name), text(what), n] for (kind, name, what), n in learned.missed.items()],
            learned.n_nameless,
            learned.n_forgotten,
        ]
    return record


def _grant(grant: Grant) -> list[Any]:
    return [
        text(grant.name), grant.level, bool(grant.subtree), grant.what, text(grant.path),
        bool(grant.below), text(grant.interface), text(grant.member),
    ]  # fmt: skip


def _user(user: User) -> Record:
    """The sums are there to be compared with what the other side comes to."""
    record = {
        "uid": user.uid,
        "sums": [
            user.bytes, user.fds, user.kept_bytes, user.kept_fds,
            user.connections, user.matches, user.names, user.replies,
        ],
    }  # fmt: skip
    if user.totals is not None:
        record["totals"] = _counts(user.totals)
    return record


def _tallies(bus: Bus, places: dict[Any, int], numbers: dict[int, int]) -> list[list[Any]]:
    """Those that something is charged to; `numbers` becomes where each stands in the list."""
    found: list[list[Any]] = []
    for tally in bus.accounts.tallies:
        if tally is None or not (tally.bytes or tally.fds):
            continue
        owner = TO_MANY
        if tally.ended:
            owner = ENDED
        elif tally.owner is not None:
            owner = places[tally.owner]
        numbers[tally.index] = len(found)
        share = tally.share
        found.append(
            [share.sender.index, share.receiver.index, owner, tally.bytes, tally.fds, tally.held]
        )
    return found


def _connection(conn: Connection, sink: Sink, numbers: dict[int, int]) -> Record:
    record: Record = {"id": conn.id, "user": conn.user.index}
    if conn.state == MONITOR:
        record["monitor"] = True
    if conn.accepts_fds:
        record["fds"] = True
    if conn.since:
        record["since"] = conn.since
    if conn.counts is not None:
        record["counts"] = _counts(conn.counts)
    if conn.dropped:
        record["dropped"] = conn.dropped
    record["peaks"] = [conn.peak_size, conn.peak_fds, conn.peak_rules, conn.peak_names]
    if conn.names:
        record["names"] = [text(name) for name in conn.names]
        record["owned"] = [text(name) for name in conn.owned]
    queue = conn.queue
    if queue.size:
        record["queue"] = [
            [sink.blob(data), sink.fd_set(fds) if fds else -1] for data, fds in queue.runs()
        ]
        charges = []
        for left, size, fds, tally, when in queue.charges.entries():
            charges.append([left, size, fds, numbers[tally], when])
        record["charges"] = charges
    if conn.tracer is not None:
        record["tracer"] = _tracer(conn.tracer, sink)
    return record


def _tracer(tracer: Tracer, sink: Sink) -> Record:
    return {
        "head": text(tracer.head),
        "rules": len(tracer.rules),
        "users": None if tracer.users is None else sorted(tracer.users),
        "every": tracer.every,
        "payload": tracer.payload,
        "judged_only": bool(tracer.judged_only),
        "calls": list(tracer.calls.keys()),
        "pending": sink.blob(bytes(tracer.pending)),
        "count": tracer.count,
        "lost": tracer.lost,
        "turn": tracer.turn,
        "serial": tracer.serial,
        "armed": bool(tracer.armed),
    }


def _name(name: Name, places: dict[Any, int]) -> list[Any]:
    claims = []
    for claim in name.queue:
        claims.append(_claim(claim, places))
    return [text(name.text), claims]


def _claim(claim: Owner, places: dict[Any, int]) -> list[int]:
    return [places[claim.conn], claim.flags]


def _rules(bus: Bus, conns: list[Connection], places: dict[Any, int]) -> list[list[Any]]:
    """All rules, in the order in which they came."""
    found = []
    for conn in conns:
        if conn.n_rules:
            for rule in conn.rules:
                found.append(_rule(bus, rule, places[conn]))
    found.sort(key=_number)
    return found


def _number(record: list[Any]) -> int:
    return int(record[0])


def _rule(bus: Bus, rule: Rule, place: int) -> list[Any]:
    known = False
    for name in (rule.sender, rule.destination):
        if name is not None and name[:1] == b":":
            known = known or _refers(bus.lookup(name), rule)
    return [
        rule.number,
        place,
        rule.type,
        text(rule.sender),
        text(rule.interface),
        text(rule.member),
        text(rule.path),
        text(rule.path_namespace),
        text(rule.destination),
        [_arg(arg) for arg in rule.args],
        bool(rule.eavesdrop),
        known,
    ]


def _refers(peer: Connection | None, rule: Rule) -> bool:
    return peer is not None and peer.referers is not None and rule in peer.referers


def _arg(arg: Arg) -> list[Any]:
    return [arg.index, chr(arg.kind), text(arg.text)]


def _replies(bus: Bus, conns: list[Connection], places: dict[Any, int]) -> list[list[Any]]:
    """All awaited replies: of one callee in the order of the calls, those with a deadline in the
    order of the deadlines."""
    found = []
    slot = bus.replies.first
    while slot is not None:
        found.append(_slot(slot, places))
        slot = slot.later
    for conn in conns:
        slot = conn.owes_first
        while slot is not None:
            if slot.deadline <= 0:
                found.append(_slot(slot, places))
            slot = slot.prev
    found.sort(key=_since)
    return found


def _since(record: list[Any]) -> int:
    return int(record[4])


def _slot(slot: Slot, places: dict[Any, int]) -> list[Any]:
    return [places[slot.caller], places[slot.callee], slot.serial, slot.deadline, slot.since]


def _counts(counts: Counts) -> list[Any]:
    """Numbers in the order of docs/upgrade.md, then the histograms."""
    return [
        [counts.sent[i] for i in range(5)],
        [counts.received[i] for i in range(5)],
        counts.sent_bytes,
        counts.received_bytes,
        counts.denied,
        counts.limited,
        counts.dropped,
        counts.gone,
        _histogram(counts.replies),
        _histogram(counts.waits),
    ]


def _histogram(histogram: Histogram | None) -> list[Any] | None:
    if histogram is None:
        return None
    buckets = [histogram.buckets[i] for i in range(22)]
    while buckets and not buckets[-1]:
        buckets.pop()
    return [histogram.count, histogram.sum, buckets]
