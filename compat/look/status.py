"""`jitney status`: how a bus is, on one page.

Invariant: what is nearest to its limit comes first, and of what is far from its limit nothing is
said.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import asking, figures
from .asking import Bus, Record

_NEAREST = 10


def main(words: Sequence[str]) -> int:
    """Runs the command with these words; the exit status."""
    parser = asking.parser(
        "status",
        "Shows how a running bus is: how many are there, what waits and on whose account, "
        "and which limits are near.",
    )
    asking.add_json(parser)
    options = parser.parse_args(words)

    def show(bus: Bus) -> None:
        found = bus.status()
        found["near"] += bus.list("Pressed")
        found["near"].sort(key=lambda record: record["value"] / max(1, record["max"]), reverse=True)
        found["users"] = [
            record | {"user": "the bus" if record["bus"] else asking.user(record["uid"])}
            for record in bus.list("Users")
        ]
        print(figures.dumped(found) if options.json else text(found))

    return asking.run("status", options, show)


def text(found: Record) -> str:
    size, count = figures.size, figures.count
    refused, dropped = count(found["denied"]), count(found["dropped"])
    kind = "compiled" if found["compiled"] else "plain Python"
    lines = [
        f"jitney {found['version']} ({kind}), pid {found['pid']}, user {asking.user(found['uid'])}",
        f"at {figures.clean(found['address'])}",
        f"up for {figures.duration(found['uptime_us'])}, {size(found['memory_bytes'])} of memory",
        "",
        f"peers     {found['connections']}, {found['monitors']} of them monitors",
        f"names     {found['names']} owned or waited for, {len(found['starting'])} being started",
        f"matches   {found['matches']}",
        f"calls     {found['calls']} without a reply so far",
        f"queues    {size(found['queued_bytes'])}, {found['queued_fds']} descriptors",
        f"messages  {count(found['messages'])} came in; {refused} refused, {dropped} dropped",
    ]
    if found["log_lines_lost"]:
        lines.append(f"log       {found['log_lines_lost']} lines could not be written")
    if not found["counted"]:
        lines.append("messages are not counted by peer, user and name (--no-metrics)")
    lines.append("")
    if found["near"]:
        lines.append("limits that are near")
        rows = [
            [
                f"{100 * record['value'] // max(1, record['max'])} %",
                record["who"],
                record["limit"],
                f"{record['value']} of {record['max']}",
            ]
            for record in found["near"][:_NEAREST]
        ]
        lines += [
            f"  {line}" for line in figures.table(("USED", "WHO", "LIMIT", ""), rows).split("\n")
        ]
        if len(found["near"]) > _NEAREST:
            lines.append(f"  ... and {len(found['near']) - _NEAREST} more")
    else:
        lines.append("no limit is used to more than a half")
    lines += ["", _users(found["users"])]
    return "\n".join(lines)


def _users(users: Sequence[Record]) -> str:
    head = (
        "USER",
        "PEERS",
        "NAMES",
        "MATCHES",
        "CALLS",
        "QUEUED FOR IT",
        "QUEUED BY IT",
        "FILLED BY",
    )
    rows = []
    for record in users:
        if record["bus"] and not record["sent_waiting_bytes"]:
            continue
        filled = [
            f"{'the bus' if sender == 'bus' else asking.user(sender)} {figures.size(nbytes)}"
            for sender, nbytes, _ in record["filled_by"]
        ]
        rows.append(
            [
                record["user"],
                *(str(record[key]) for key in ("connections", "names", "matches", "calls")),
                figures.size(record["queued_bytes"]),
                figures.size(record["sent_waiting_bytes"]),
                ", ".join(filled),
            ]
        )
    return figures.table(head, rows, "PEERS NAMES MATCHES CALLS")
