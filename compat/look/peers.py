"""`jitney peers`: who is on the bus, and what waits for whom.

Invariant: a row is a connection, in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import asking, closer, figures
from .asking import Bus, Record

_HEAD = (
    "NAME", "USER", "PID", "COMMAND", "SENT", "RECEIVED", "QUEUED", "FOR", "CALLS", "OWES",
    "MATCHES", "DROPPED", "OWNS",
)  # fmt: skip
_RIGHT = "PID SENT RECEIVED QUEUED FOR CALLS OWES MATCHES DROPPED"


def main(words: Sequence[str]) -> int:
    """Runs the command with these words; the exit status."""
    parser = asking.parser(
        "peers",
        "Lists the connections of a running bus: messages sent and received, bytes that wait in "
        "the queue and the age of the oldest message there, calls whose reply it waits for and "
        "calls that it owes a reply.",
    )
    asking.add_json(parser)
    parser.add_argument("peer", nargs="*", metavar="NAME", help="these, and all about them")
    options = parser.parse_args(words)

    def show(bus: Bus) -> None:
        if options.peer:
            found = [asking.identified(bus.peer(name)) for name in options.peer]
        else:
            found = [asking.identified(record) for record in bus.list("Peers")]
        if options.json:
            print(figures.dumped(found))
        elif options.peer:
            print("\n\n".join(closer.describe(record) for record in found))
        else:
            print(text(found))

    return asking.run("peers", options, show)


def text(found: Sequence[Record]) -> str:
    return figures.table(_HEAD, [_row(record) for record in found], _RIGHT)


def _row(record: Record) -> list[str]:
    counted = "sent" in record
    queued = record["queued_messages"]
    names = [*record["names"]]
    if record["n_names"] > len(names):
        names.append(f"and {record['n_names'] - len(names)} more")
    if record["n_waits_for"]:
        names.append(f"(waits for {record['n_waits_for']})")
    if record["monitor"]:
        names.append("(monitor)")
    if "endpoint" in record:
        names.append(f"(by endpoint {record['endpoint']})")
    return [
        record["name"],
        record["user"],
        str(record["pid"] or ""),
        record["command"],
        figures.count(sum(record["sent"])) if counted else "",
        figures.count(sum(record["received"])) if counted else "",
        figures.size(record["queued_bytes"]) if queued else "",
        figures.duration(record["queued_us"]) if queued else "",
        str(record["calls"] or ""),
        str(record["owes"] or ""),
        str(record["matches"] or ""),
        str(record["dropped"] or ""),
        " ".join(names),
    ]
