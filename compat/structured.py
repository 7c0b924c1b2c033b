"""Structured log entries: a JSON object a line, and systemd-journald's own protocol.

Invariant: an entry is one line or one datagram, whatever is in its text. The same fields have the
same names in both, but for the journal's habits: upper case, and JITNEY_ before what it has no
field for.

The journal's protocol is described in systemd's "Native Journal Protocol".
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

JOURNAL = "/run/systemd/journal/socket"
LONGEST = 65536
"""Bytes of text in an entry; a datagram takes somewhat more."""


def json_line(pid: int, tag: str, severity: str, text: str, fields: dict[str, Any]) -> bytes:
    """One line; what the text may have had of bytes that are no text is escaped."""
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="microseconds"),
        "tag": tag,
        "bus_pid": pid,
        "severity": severity,
        "message": text,
        **fields,
    }
    return json.dumps(entry).encode() + b"\n"


def journal_entry(pid: int, tag: str, priority: int, text: str, fields: dict[str, Any]) -> bytes:
    """One datagram; `priority` as in syslog, with the facility."""
    parts = [
        _field("MESSAGE", text),
        _field("PRIORITY", str(priority & 7)),
        _field("SYSLOG_FACILITY", str(priority >> 3)),
        _field("SYSLOG_IDENTIFIER", tag),
        _field("SYSLOG_PID", str(pid)),
    ]
    for key, value in fields.items():
        # A field that is there more than once has several values.
        for one in value if isinstance(value, list) else [value]:
            parts.append(_field(f"JITNEY_{key.upper()}", str(one)))
    return b"".join(parts)


def _field(name: str, value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")[:LONGEST]
    if b"\n" in raw:
        return name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"
    return name.encode() + b"=" + raw + b"\n"
