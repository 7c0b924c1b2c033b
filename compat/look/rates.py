"""Rates: what happened between two looks at a bus.

Invariant: a row tells about a connection that is there now; what it did before we first saw it is
not in its rates. Numbers that go back (a bus that was started anew) count as nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from . import figures
from .asking import Bus, Record, cgroup, command, user


@dataclass
class Look:
    """All connections of a bus at one time, in seconds of whatever clock."""

    when: float
    peers: dict[str, Record] = field(default_factory=dict)
    status: Record = field(default_factory=dict)


@dataclass
class Row:
    """One connection, and what it did since the look before. Rates are by second."""

    peer: str
    name: str
    user: str
    pid: int | None
    command: str
    cgroup: str
    messages: float
    nbytes: float
    queued: int
    oldest_us: int
    holds: int
    held_at: str
    calls: int
    owes: int
    owes_us: int
    p50: float | None
    p99: float | None
    dropped: float
    monitor: bool
    throttled: bool


class Watcher:
    """Looks at a bus again and again. What /proc says of a process is asked once."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.before: Look | None = None
        self.known: dict[tuple[str, int | None], tuple[str, str]] = {}

    def look(self, when: float) -> tuple[list[Row], Record]:
        """The rows, and the bus's status. Raises NoAnswer."""
        peers = {record["name"]: record for record in self.bus.list("Peers")}
        now = Look(when, peers, self.bus.status())
        found = rows(self.before, now, self.identity)
        self.before = now
        self.known = {key: value for key, value in self.known.items() if key[0] in peers}
        return found, now.status

    def identity(self, record: Record) -> tuple[str, str]:
        key = record["name"], record["pid"]
        if key not in self.known:
            self.known[key] = command(record["pid"]), cgroup(record["pid"])
        return self.known[key]


def rows(
    before: Look | None, now: Look, identity: Callable[[Record], tuple[str, str]]
) -> list[Row]:
    """A row for each connection that is there now."""
    seconds = now.when - before.when if before is not None else 0.0
    found = []
    for name, record in now.peers.items():
        earlier = before.peers.get(name) if before is not None else None
        waits = record.get("waits_at", [])
        program, group = identity(record)
        replies = _since(
            record.get("replies"), earlier.get("replies") if earlier is not None else None
        )
        found.append(
            Row(
                peer=name,
                name=record["names"][0] if record["names"] else "",
                user=user(record["uid"]),
                pid=record["pid"],
                command=program,
                cgroup=group,
                messages=_rate(record, earlier, seconds, _messages),
                nbytes=_rate(record, earlier, seconds, _bytes),
                queued=record["queued_bytes"],
                oldest_us=record["queued_us"],
                holds=sum(nbytes for _, nbytes in waits),
                held_at=" ".join(
                    f"{user(uid)}:{figures.size(nbytes).replace(' ', '')}" for uid, nbytes in waits
                ),
                calls=record["calls"],
                owes=record["owes"],
                owes_us=record["owes_us"],
                p50=figures.percentile(replies, 0.5),
                p99=figures.percentile(replies, 0.99),
                dropped=_rate(record, earlier, seconds, lambda one: one["dropped"]),
                monitor=record["monitor"],
                throttled=record["held"],
            )
        )
    return found


def _messages(record: Record) -> int:
    return sum(record.get("sent", ())) + sum(record.get("received", ()))


def _bytes(record: Record) -> int:
    total: int = record.get("sent_bytes", 0) + record.get("received_bytes", 0)
    return total


def _rate(
    record: Record, earlier: Record | None, seconds: float, of: Callable[[Record], int]
) -> float:
    if earlier is None or seconds <= 0:
        return 0.0
    return max(0.0, of(record) - of(earlier)) / seconds


def _since(now: Sequence[int] | None, before: Sequence[int] | None) -> list[int]:
    """Histograms by bucket: what came since, or all there is if nothing did."""
    if not now:
        return []
    grown = [max(0, a - b) for a, b in zip(now, before or [0] * len(now), strict=True)]
    return grown if sum(grown) else list(now)


COLUMNS: dict[str, tuple[str, Callable[[Row], str], Callable[[Row], object], bool]] = {
    "peer": ("PEER", lambda r: r.peer, lambda r: int(r.peer.rpartition(".")[2] or 0), False),
    "name": ("NAME", lambda r: r.name or (f"({r.command})" if r.command else ""),
             lambda r: (not r.name, r.name or r.command), False),
    "user": ("USER", lambda r: r.user, lambda r: r.user, False),
    "cgroup": ("CGROUP", lambda r: r.cgroup, lambda r: r.cgroup, False),
    "messages": ("MSG/S", lambda r: figures.count(round(r.messages)) if r.messages else "",
                 lambda r: r.messages, True),
    "bytes": ("BYTES/S", lambda r: figures.size(round(r.nbytes)) if r.nbytes else "",
              lambda r: r.nbytes, True),
    "queued": ("QUEUED", lambda r: figures.size(r.queued) if r.queued else "",
               lambda r: r.queued, True),
    "oldest": ("OLDEST", lambda r: figures.duration(r.oldest_us) if r.queued else "",
               lambda r: r.oldest_us, True),
    "holds": ("HOLDS", lambda r: r.held_at, lambda r: r.holds, True),
    "calls": ("CALLS", lambda r: str(r.calls or ""), lambda r: r.calls, True),
    "owes": ("OWES", lambda r: str(r.owes or ""), lambda r: r.owes, True),
    "p50": ("P50", lambda r: "" if r.p50 is None else figures.duration(r.p50),
            lambda r: r.p50 or 0.0, True),
    "p99": ("P99", lambda r: "" if r.p99 is None else figures.duration(r.p99),
            lambda r: r.p99 or 0.0, True),
}  # fmt: skip
"""By key: the head, what is shown, what is sorted by, and whether the greatest comes first (and the
text stands at the right)."""


def ordered(found: Sequence[Row], key: str, reverse: bool, wanted: str = "") -> list[Row]:
    """The rows in which `wanted` stands somewhere, sorted by a column; `reverse`: the other way."""
    _, _, value, greatest_first = COLUMNS[key]
    wanted = wanted.lower()
    kept = [
        row
        for row in found
        if wanted in f"{row.peer} {row.name} {row.user} {row.command} {row.cgroup}".lower()
    ]
    kept.sort(key=lambda row: int(row.peer.rpartition(".")[2] or 0))
    kept.sort(key=value, reverse=greatest_first != reverse)  # type: ignore[arg-type]
    return kept


def summary(status: Record) -> str:
    """The bus in one line."""
    return (
        f"{status['connections']} peers, {status['names']} names, {status['matches']} matches, "
        f"{status['calls']} calls in flight, {figures.size(status['queued_bytes'])} queued, "
        f"{figures.count(status['denied'])} refused, {figures.count(status['dropped'])} dropped, "
        f"{figures.size(status['memory_bytes'])}, up {figures.duration(status['uptime_us'])}"
    )
