"""Lines: records for people, and as JSON for programs, one a line.

Invariant: each record is one line (with `payload`, the arguments follow indented); a reply says
which call it answers and after how long; what was lost is said where it was lost.
"""

from __future__ import annotations

import json
import time
from typing import Any, TextIO

from jitney.broker.message import Message

from .. import wire
from .records import JUDGED, NO_REPLY, TYPES, Record

_WORDS = {1: "call", 2: "reply", 3: "error", 4: "signal"}
_ERRORS = "org.freedesktop.DBus.Error."
_FIELDS = (
    "sender", "destination", "receiver", "path", "interface", "member", "error", "serial",
    "reply_serial", "flags", "size", "fds", "verdict", "why",
)  # fmt: skip


class Lines:
    """For people."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def record(self, record: Record, call: Record | None) -> None:
        parts = [clock(record.time)]
        word = _WORDS.get(record.type, str(record.type))
        parts.append(f"{'REFUSED' if record.kind == JUDGED else word:7}")
        parts.append(f"{record.sender} -> {_target(record)}")
        if record.path:
            parts.append(record.path)
        about = record if call is None else call
        if about.what:
            parts.append(about.what)
        if record.error:
            parts.append(record.error.removeprefix(_ERRORS))
        if record.kind == JUDGED:
            parts.append(f"{record.verdict.removeprefix(_ERRORS)}: {record.why}")
        parts.append(f"#{record.reply_serial or record.serial}")
        if record.type == 1 and record.flags & NO_REPLY:
            parts.append("no reply wanted")
        if record.fds:
            parts.append(f"{record.fds} fds")
        parts.append(f"{record.size} bytes")
        if call is not None:
            parts.append(duration(record.time - call.time))
        self.out.write("  ".join(parts) + "\n")
        values = arguments(record)
        if values:
            for value in values:
                self.out.write(f"    {value!r}\n")
        elif values is None:
            self.out.write(f"    (the first {len(record.payload)} bytes)\n")

    def lost(self, count: int) -> None:
        self.out.write(f"-- {count} records lost: the tracer did not keep up --\n")

    def flush(self) -> None:
        self.out.flush()

    close = flush


class JsonLines:
    """For programs. A reply has `call` (the call's interface, member, path) and `latency_ns`."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def record(self, record: Record, call: Record | None) -> None:
        found: dict[str, Any] = {
            "time_ns": record.time,
            "event": "refused" if record.kind == JUDGED else "message",
            "type": TYPES.get(record.type, record.type),
        }
        for key in _FIELDS:
            value = getattr(record, key)
            if value or key in ("serial", "size"):
                found[key] = value
        for key in ("sender_uid", "receiver_uid"):
            value = getattr(record, key)
            if value is not None:
                found[key] = value
        if call is not None:
            found["call"] = {
                key: getattr(call, key) for key in ("path", "interface", "member", "destination")
            }
            found["latency_ns"] = record.time - call.time
        if record.payload:
            values = arguments(record)
            if values is not None:
                found["body"] = values
            else:
                found["cut"] = len(record.payload)
        self.out.write(json.dumps(found, default=_plain) + "\n")

    def lost(self, count: int) -> None:
        self.out.write(json.dumps({"event": "lost", "count": count}) + "\n")

    def flush(self) -> None:
        self.out.flush()

    close = flush


def arguments(record: Record) -> list[Any] | None:
    """The values of the body: [] if there is none or it was not asked for, None if it was cut."""
    if not record.payload:
        return []
    msg = Message()
    if record.cut & 2 or not msg.load(record.payload):
        return None
    return wire.unmarshal(msg.signature, msg.body(), msg.big_endian)


def clock(ns: int) -> str:
    """Local time of day, to the microsecond."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest // 1000:06}"


def duration(ns: int) -> str:
    return f"{ns / 1e6:.3f} ms"


def _target(record: Record) -> str:
    if not record.destination:
        return record.receiver or "all"
    if record.receiver and record.receiver != record.destination:
        return f"{record.destination} ({record.receiver})"
    return record.destination


def _plain(value: Any) -> Any:
    # Bytes have no place in JSON.
    return list(value) if isinstance(value, bytes) else str(value)
