# cython: infer_types=True
"""Restore: makes a bus what another one was, from the plain data that `export` wrote.

Invariant: a bus is restored whole, and then says of itself what the exporting one said
(`verify()`), or BadState is raised and the bus is good for nothing. Nobody is told anything: no
signal is sent, no name changes hands. Policies and transports are the front's, which gives them
afterwards.
"""

from __future__ import annotations

from typing import Any

try:
    import cython
except ImportError:
    from ._cython import cython

from .accounting import Tally, User
from .bus import Bus
from .connection import ACTIVE, MONITOR, NEW, Connection
from .endpoint import Endpoint, Grant
from .fds import FdSet
from .learning import Learned
from .match import Rule
from .mem import Buffer
from .meter import Counts, Histogram
from .names import Owner
from .queue import sender_field
from .trace import Tracer

if not cython.compiled:
    from .queue import buffer_run

Record = dict[str, Any]

# Copies that are C integers when compiled.
_NEW, _ACTIVE, _MONITOR = NEW, ACTIVE, MONITOR


class BadState(Exception):
    """The data do not add up to a bus; the text says where."""


class Source:
    """What came beside the plain data: `blobs` of bytes, and `sets` of descriptors that are here
    now. Sets that nobody has taken are closed with the source."""

    def __init__(self, blobs: list[Any], sets: list[list[int]]) -> None:
        self.blobs = blobs
        self.sets = [FdSet(fds) for fds in sets]

    def blob(self, number: int) -> bytes:
        return bytes(self.blobs[number])

    def fd_set(self, number: int) -> FdSet:
        return self.sets[number]

    def claim(self, number: int) -> list[int]:
        """The descriptors of a set, which are the caller's to close from now on."""
        fds = self.sets[number].fds
        claimed = list(fds)
        fds.clear()
        return claimed


def raw(text: Any) -> Any:
    """The bytes that `export.text()` made a text of."""
    return None if text is None else text.encode("latin-1")


def restore(bus: Bus, state: Record, source: Source, ready: Any = None) -> list[Connection]:
    """Fills a bus that nobody was on so far; the connections, in their places.

    `ready` is what tracers call, see `trace.Tracer`. Raises BadState, or whatever a state that is
    nonsense makes it stumble over."""
    if bus.connections or bus.last_id:
        raise BadState("the bus has been in use")
    bus.guid = state["guid"]
    bus.last_id = state["last_id"]
    bus.n_messages = state["messages"]
    bus.n_denied = state["denied"]
    bus.n_dropped = state["dropped"]
    bus.peak_rules = state["peak_rules"]
    bus.peak_names = state["peak_names"]
    bus.accounts.moment = state["moment"]
    users = [_user(bus, i, record) for i, record in enumerate(state["users"])]
    conns = [_connection(bus, users, record) for record in state["connections"]]
    for record in state["endpoints"]:
        _endpoint(bus, record)
    for place, record in enumerate(state["connections"]):
        if "endpoint" in record:
            bus.endpoints[record["endpoint"]].enter(conns[place])
    for place, record in enumerate(state["connections"]):
        if "seen" in record:
            _see(bus, conns[place], [conns[i] for i in record["seen"]])
    tallies = [_tally(bus, users, conns, record) for record in state["tallies"]]
    for place, record in enumerate(state["connections"]):
        if "queue" in record:
            _fill(conns[place], record, source, tallies)
    for record in state["names"]:
        _name(bus, conns, record)
    for place, record in enumerate(state["connections"]):
        if "names" in record:
            _own(bus, conns[place], record)
    _monitors(bus, conns, state["monitors"])
    for record in state["rules"]:
        _rule(bus, conns, record)
    bus.last_rule = state["last_rule"]
    for record in state["replies"]:
        _reply(bus, conns, record)
    for place, record in enumerate(state["connections"]):
        if "tracer" in record:
            _tracer(bus, conns[place], record["tracer"], source, ready)
    bus.find_sole()
    for name, counts in state["totals"]:
        bus.name_totals.by_name[raw(name)] = _counts(counts)
    bus.name_totals.rest = _counts(state["totals_rest"])
    verify(bus, conns, tallies, state)
    return conns


def _user(bus: Bus, index: int, record: Record) -> User:
    user = bus.accounts.bus if index == 0 else bus.accounts.user(record["uid"])
    if user.index != index:
        raise BadState(f"user {index} is there twice")
    if "totals" in record:
        user.totals = _counts(record["totals"])
    return user


def _connection(bus: Bus, users: list[User], record: Record) -> Connection:
    user = users[record["user"]]
    if record["user"] == 0:
        raise BadState("a connection of the bus itself")
    conn = bus.connect(user.uid)
    conn.accepts_fds = record.get("fds", False)
    conn.dropped = record.get("dropped", 0)
    conn.since = record.get("since", 0)
    conn.peak_size, conn.peak_fds, conn.peak_rules, conn.peak_names = record["peaks"]
    if conn.counts is not None and "counts" in record:
        counts = _counts(record["counts"])
        counts.settle()
        conn.counts = conn.queue.counts = counts
    number = record["id"]
    if number == 0:
        return conn
    if number > bus.last_id or number in bus.connections:
        raise BadState(f"connection {number} is there twice, or of the future")
    conn.id = number
    conn.unique_name = b":1.%d" % (number - 1)
    conn.field_le = sender_field(conn.unique_name, False)
    conn.state = _MONITOR if record.get("monitor") else _ACTIVE
    conn.user.connections += 1
    bus.connections[number] = conn
    if conn.state == _ACTIVE:
        bus.table.put(number, conn)
    return conn


def _endpoint(bus: Bus, record: Record) -> None:
    learned = None
    if "learned" in record:
        learned = Learned()
        used, missed, learned.n_nameless, learned.n_forgotten = record["learned"]
        learned.used = {(kind, raw(name), raw(what)): n for kind, name, what, n in used}
        learned.missed = {(kind, raw(name), raw(what)): n for kind, name, what, n in missed}
    grants = []
    for name, level, subtree, what, path, below, interface, member in record["grants"]:
        grants.append(
            Grant(raw(name), level, subtree, what, raw(path), below, raw(interface), raw(member))
        )
    endpoint = Endpoint(raw(record["name"]), grants, record["filtering"], record["sloppy"], learned)
    endpoint.n_refused = record["refused"]
    bus.add_endpoint(endpoint)


def _see(bus: Bus, conn: Connection, seen: list[Connection]) -> None:
    """What a client of an endpoint has seen, it goes on to see."""
    if conn.endpoint is None:
        raise BadState(f"{conn.label} sees as by an endpoint, and came in by none")
    for peer in seen:
        if peer is conn or bus.connections.get(peer.id) is not peer:
            raise BadState(f"{conn.label} has seen one who is not there")
        if peer.seen_by is None:
            peer.seen_by = set()
        peer.seen_by.add(conn)
    conn.seen = set(seen)


def _tally(bus: Bus, users: list[User], conns: list[Connection], record: list[Any]) -> Tally:
    sender, receiver, owner, _, _, held = record
    if owner >= 0:
        tally = bus.tally_of(conns[owner], users[receiver])
        if conns[owner].user is not users[sender]:
            raise BadState("a tally of one user's connection on another's account")
    elif owner == -1:
        tally = bus.accounts.to_many(users[sender], users[receiver])
    else:
        tally = bus.accounts.tally(users[sender], users[receiver], None)
        tally.ended = True
    tally.held = held
    return tally


def _fill(conn: Connection, record: Record, source: Source, tallies: list[Tally]) -> None:
    """Queues what was queued, charged to whom it was charged to."""
    queue = conn.queue
    for number, fds in record["queue"]:
        buffer = Buffer()
        buffer.add(source.blob(number))
        queue.segments.append(buffer_run(buffer, source.fd_set(fds) if fds >= 0 else None))
        queue.size += len(buffer)
    first = True
    rest = 0
    for left, size, n_fds, number, when in record["charges"]:
        if not 0 < left <= size or (left < size and not first):
            raise BadState(f"a message of {size} bytes of which {left} are left")
        tally = tallies[number]
        queue.charges.push(size, n_fds, tally.index, when)
        if left < size:
            queue.charges.take_left(size - left)
        queue.accounts.charge(tally, size, n_fds)
        queue.n_fds += n_fds
        rest += left
        first = False
    if rest != queue.size:
        raise BadState(f"{queue.size} bytes are queued for {conn.label}, and {rest} charged")


def _name(bus: Bus, conns: list[Connection], record: list[Any]) -> None:
    text, claims = record
    name = bus.names.ensure(raw(text))
    if name.queue:
        raise BadState(f"the name {text} is there twice")
    for place, flags in claims:
        claim = Owner()
        claim.conn = conns[place]
        claim.flags = flags
        if claim.conn.state != _ACTIVE:
            raise BadState(f"{text} is claimed by one who may own no names")
        name.queue.append(claim)
        claim.conn.user.names += 1
    name.owner = conns[claims[0][0]]


def _own(bus: Bus, conn: Connection, record: Record) -> None:
    for text in record["names"]:
        name = bus.names.get(raw(text))
        if name is None or name.find(conn) is None:
            raise BadState(f"{conn.label} waits for {text}, which does not know it")
        conn.names[name.text] = name
    for text in record["owned"]:
        name = bus.names.get(raw(text))
        if name is None or name.owner is not conn:
            raise BadState(f"{conn.label} owns {text}, which is another's")
        conn.owned[name.text] = name


def _monitors(bus: Bus, conns: list[Connection], places: list[int]) -> None:
    for place in places:
        conn = conns[place]
        if conn.state != _MONITOR:
            raise BadState(f"{conn.label} is no monitor")
        bus.monitors.append(conn)


def _rule(bus: Bus, conns: list[Connection], record: list[Any]) -> None:
    number, place, kind, sender, interface, member, path, namespace, dest, args, eav, known = record
    conn = conns[place]
    rule = Rule(
        kind,
        raw(sender),
        raw(interface),
        raw(member),
        raw(path),
        raw(namespace),
        raw(dest),
        {i: (how, raw(value)) for i, how, value in args},
        eav,
    )
    if number <= bus.last_rule:
        raise BadState(f"match rule {number} is out of order")
    index = bus.monitor_index if conn.state == _MONITOR else bus.match_index
    index.add(rule, conn)
    bus.last_rule = number - 1
    bus.keep_rule(conn, rule)
    if known:
        for name in (rule.sender, rule.destination):
            if name is not None:
                bus.refer(rule, name)


def _reply(bus: Bus, conns: list[Connection], record: list[Any]) -> None:
    caller, callee, serial, deadline, since = record
    if not bus.replies.expect(conns[caller], conns[callee], serial, deadline, since):
        raise BadState(f"reply {serial} is awaited twice")


def _tracer(bus: Bus, conn: Connection, record: Record, source: Source, ready: Any) -> None:
    tracer = Tracer(
        bus,
        conn,
        raw(record["head"]),
        ready,
        conn.rules[: record["rules"]],
        None if record["users"] is None else frozenset(record["users"]),
        record["every"],
        record["payload"],
        record["judged_only"],
    )
    for key in record["calls"]:
        tracer.calls.put(key, tracer)
    pending = Buffer()
    pending.add(source.blob(record["pending"]))
    tracer.pending = pending
    tracer.count = record["count"]
    tracer.lost = record["lost"]
    tracer.turn = record["turn"]
    tracer.serial = record["serial"]
    tracer.armed = record["armed"]
    conn.tracer = tracer
    if tracer.armed:
        ready(tracer)


def _counts(record: list[Any]) -> Counts:
    counts = Counts()
    for i in range(5):
        counts.sent[i] = record[0][i]
        counts.received[i] = record[1][i]
    counts.sent_bytes = record[2]
    counts.received_bytes = record[3]
    counts.denied = record[4]
    counts.limited = record[5]
    counts.dropped = record[6]
    counts.gone = record[7]
    counts.replies = _histogram(record[8])
    counts.waits = _histogram(record[9])
    return counts


def _histogram(record: list[Any] | None) -> Histogram | None:
    if record is None:
        return None
    histogram = Histogram()
    histogram.count = record[0]
    histogram.sum = record[1]
    for i, count in enumerate(record[2]):
        histogram.buckets[i] = count
    return histogram


def verify(bus: Bus, conns: list[Connection], tallies: list[Tally], state: Record) -> None:
    """Raises BadState unless the bus comes to the sums that the other one had."""
    for i, record in enumerate(state["users"]):
        user = bus.accounts.users[i]
        sums = [
            user.bytes, user.fds, user.kept_bytes, user.kept_fds,
            user.connections, user.matches, user.names, user.replies,
        ]  # fmt: skip
        if sums != record["sums"]:
            raise BadState(f"the account of user {record['uid']} is {sums}, not {record['sums']}")
    for tally, record in zip(tallies, state["tallies"], strict=True):
        if [tally.bytes, tally.fds] != record[3:5]:
            raise BadState(f"a tally of {tally.bytes} bytes, not {record[3]}")
    for name in bus.names:
        for claim in name.queue:
            if name.text not in claim.conn.names:
                raise BadState(f"{name.text!r} is claimed by one who does not know")
        if name.text not in name.owner.owned:
            raise BadState(f"{name.text!r} is owned by one who does not know")
    if len(bus.monitors) != len([conn for conn in conns if conn.monitor]):
        raise BadState("a monitor is missing")
    if len(bus.replies) != len(state["replies"]):
        raise BadState("a reply is missing")
