"""One connection in full, as text.

Invariant: nothing of it is cut that the bus has told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import asking, figures
from .asking import Record
from .figures import duration, size


def describe(record: Record) -> str:
    """`record` as `GetPeer` has it, identified."""
    kind = "monitor, " if record["monitor"] else ""
    names = " ".join(record["names"]) or "-"
    if record["n_waits_for"]:
        names += f", waits for {record['n_waits_for']} more"
    lines = [
        f"{record['name']}  {kind}here for {duration(record['age_us'])}",
        "",
        f"user      {record['user']} ({record['uid']})",
        f"process   {record['pid'] or '?'} {record['command']}",
        f"cgroup    {record['cgroup'] or '?'}",
        f"names     {names}",
        *([f"endpoint  {record['endpoint']}"] if "endpoint" in record else []),
        "",
        *_traffic(record),
        *_queue(record),
    ]
    replies = record.get("replies")
    if replies:
        parts = [(part, figures.percentile(replies, part)) for part in (0.5, 0.9, 0.99)]
        shown = ", ".join(f"p{part * 100:g} {duration(us or 0)}" for part, us in parts)
        lines.append(f"replies   {sum(replies)}: {shown}")
    for title, key in (("owes a reply to", "owed"), ("waits for replies of", "awaited")):
        calls = [f"  {who} #{serial} {duration(us)}" for who, serial, us in record[key]]
        if calls:
            lines += ["", title, *calls]
    if record["rules"]:
        lines += ["", f"match rules ({record['matches']})"]
        lines += [f"  {rule or '(everything)'}" for rule in record["rules"]]
    return "\n".join(figures.clean(line) for text in lines for line in text.split("\n"))


def _traffic(record: Record) -> list[str]:
    sent, received = record.get("sent"), record.get("received")
    if sent is None or received is None:
        return []
    head = ("", "calls", "replies", "errors", "signals", "bytes")
    rows = [
        ["sent", *map(str, sent[1:]), size(record["sent_bytes"])],
        ["received", *map(str, received[1:]), size(record["received_bytes"])],
    ]
    refused = f"{record['denied']} for the policy, {record['limited']} for limits"
    return [
        figures.table(head, rows, "calls replies errors signals bytes"),
        "",
        f"refused   {refused}; {record['dropped']} broadcasts missed",
    ]


def _queue(record: Record) -> list[str]:
    now = f"{record['queued_messages']} messages, {size(record['queued_bytes'])}"
    oldest = f", the first for {duration(record['queued_us'])}" if record["queued_messages"] else ""
    holds = _shares([(uid, nbytes) for uid, nbytes in record.get("waits_at", ())], "'s queues")
    if record["held"]:
        holds += "; is not read from until that is less"
    filled = _shares([(who, nbytes) for who, nbytes, _ in record["filled_by"]])
    return [
        f"queue     {now}{oldest}; at most {size(record['peak_bytes'])} so far",
        f"filled    by {filled} (its user's queues, all together)",
        f"holds     {holds}",
    ]


def _shares(shares: Sequence[tuple[Any, int]], after: str = "") -> str:
    parts = [
        f"{'the bus' if who == 'bus' else asking.user(who)}{after} {size(nbytes)}"
        for who, nbytes in shares
    ]
    return ", ".join(parts) or "nothing"
