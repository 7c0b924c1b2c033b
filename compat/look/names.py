"""`jitney names`: the well-known names, who owns them and who waits to.

Invariant: a row is a name that somebody owns or that is being started.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import asking, figures
from .asking import Bus, Record

_HEAD = ("NAME", "OWNER", "USER", "PID", "COMMAND", "IN QUEUE")


def main(words: Sequence[str]) -> int:
    """Runs the command with these words; the exit status."""
    parser = asking.parser(
        "names", "Lists the well-known names of a running bus, their owners, and who waits in line."
    )
    asking.add_json(parser)
    options = parser.parse_args(words)

    def show(bus: Bus) -> None:
        found = [asking.identified(record) for record in bus.list("Names")]
        found.sort(key=lambda record: record["name"])
        starting: list[Record] = bus.status()["starting"]
        if options.json:
            print(figures.dumped({"owned": found, "starting": starting}))
        else:
            print(text(found, starting))

    return asking.run("names", options, show)


def text(found: Sequence[Record], starting: Sequence[Record]) -> str:
    rows = [_row(record) for record in found]
    rows += [
        [record["name"], f"(starting, {record['messages']} messages wait)", "", "", "", ""]
        for record in starting
    ]
    return figures.table(_HEAD, rows, "PID")


def _row(record: Record) -> list[str]:
    queue = [*record["queue"]]
    if record["n_queue"] > len(queue):
        queue.append(f"and {record['n_queue'] - len(queue)} more")
    return [
        record["name"],
        record["owner"],
        record["user"],
        str(record["pid"] or ""),
        record["command"],
        " ".join(queue),
    ]
