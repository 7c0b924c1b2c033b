"""Events: what a log line is about, for sinks that keep more than text.

Invariant: this runs only where a sink wants it, and asks nobody: no user database, and of /proc not
more than the line itself. Keys are plain words; values are text, numbers, or lists of text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.message import Message
    from jitney.broker.policy import ClientPolicy, PolicySet

Fields = dict[str, Any]

TYPES = {1: "method_call", 2: "method_return", 3: "error", 4: "signal"}


def fields(
    event: str,
    *,
    conn: Connection | None = None,
    dest: Connection | None = None,
    msg: Message | None = None,
    policy: ClientPolicy | PolicySet | None = None,
    **more: Any,
) -> Fields:
    """`conn`: whom it happened to, `dest`: who would have got the message; `policy`: what has just
    decided; `more` goes in as it is, if it is anything."""
    found: Fields = {"event": event}
    if conn is not None:
        found |= _peer("", conn)
    if dest is not None:
        found |= _peer("receiver_", dest)
    if msg is not None:
        found["type"] = TYPES.get(msg.type, "unknown")
        for key, value in (
            ("destination", msg.destination), ("path", msg.path), ("interface", msg.interface),
            ("member", msg.member), ("error", msg.error_name),
        ):  # fmt: skip
            if value is not None:
                found[key] = value.decode("utf-8", "replace")
    if policy is not None:
        rule = policy.rule
        found["rule"] = f"{rule.file}:{rule.line}" if rule is not None else "none allows it"
    found |= {key: value for key, value in more.items() if value not in (None, "")}
    return found


def _peer(start: str, conn: Connection) -> Fields:
    found: Fields = {f"{start}peer": conn.label}
    if conn.user.uid is not None:
        found[f"{start}uid"] = conn.user.uid
    creds = conn.creds
    if creds is not None and creds.pid is not None:
        found[f"{start}pid"] = creds.pid
    if conn.owned:
        found[f"{start}names"] = [name.decode() for name in conn.owned]
    return found
