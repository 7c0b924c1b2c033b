"""`jitney matches`: who listens for what.

Invariant: a row is a match rule or a monitor's filter.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import asking, figures
from .asking import Bus, Record


def main(words: Sequence[str]) -> int:
    """Runs the command with these words; the exit status."""
    parser = asking.parser("matches", "Lists the match rules of all connections of a running bus.")
    asking.add_json(parser)
    options = parser.parse_args(words)

    def show(bus: Bus) -> None:
        found = bus.list("Matches")
        for record in found:
            record["user"] = asking.user(record["uid"])
        print(figures.dumped(found) if options.json else text(found))

    return asking.run("matches", options, show)


def text(found: Sequence[Record]) -> str:
    rows = []
    for record in found:
        rule = record["rule"] or "(everything)"
        rows.append(
            [record["name"], record["user"], f"(monitor) {rule}" if record["monitor"] else rule]
        )
    return figures.table(("NAME", "USER", "RULE"), rows)
