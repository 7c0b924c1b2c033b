"""Chrome: a trace that Perfetto and chrome://tracing show, calls as spans by who was called.

Invariant: the file is one JSON object as soon as `close()` has been called; each call that was
answered is one pair of events (begin, end) with an id of its own, whatever overlaps.
"""

from __future__ import annotations

import json
from typing import Any, TextIO

from .records import DRIVER, JUDGED, Record


class Chrome:
    """Writes one file. A connection is a process there: its calls, and the signals it sends."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.pids: dict[str, int] = {}
        self.named: set[str] = set()
        self.n_spans = 0
        self.first = True
        out.write('{"displayTimeUnit":"ms","traceEvents":[\n')

    def record(self, record: Record, call: Record | None) -> None:
        about: dict[str, Any]
        if record.kind == JUDGED:
            about = {"error": record.verdict, "why": record.why, "destination": record.destination}
            self.instant(record, record.sender, f"refused: {record.what}", "refused", about)
        elif call is not None:
            self.span(call, record)
        elif record.type == 4:
            about = {"path": record.path, "size": record.size, "destination": record.destination}
            self.instant(record, record.sender, record.what, "signal", about)

    def span(self, call: Record, reply: Record) -> None:
        self.n_spans += 1
        pid = self.pid_of(call.receiver or call.destination, call.destination)
        args: dict[str, Any] = {"caller": call.sender, "path": call.path, "serial": call.serial}
        if reply.error:
            args["error"] = reply.error
        common = {"cat": "call", "id": self.n_spans, "pid": pid, "tid": pid, "name": call.what}
        self.event({"ph": "b", "ts": call.time / 1000, "args": args, **common})
        self.event({"ph": "e", "ts": reply.time / 1000, **common})

    def instant(self, record: Record, who: str, name: str, kind: str, args: dict[str, Any]) -> None:
        pid = self.pid_of(who, who)
        self.event(
            {"ph": "i", "s": "p", "ts": record.time / 1000, "pid": pid, "tid": pid,
             "cat": kind, "name": name, "args": args}
        )  # fmt: skip

    def lost(self, count: int) -> None:
        pid = self.pid_of(DRIVER, DRIVER)
        self.event({"ph": "M", "pid": pid, "name": "records lost", "args": {"count": count}})

    def pid_of(self, who: str, name: str) -> int:
        """A number for the connection, which is introduced, and again once a name is known."""
        pid = self.pids.get(who)
        known = pid is not None
        if pid is None:
            pid = self.pids[who] = len(self.pids) + 1
        if not known or (name != who and who not in self.named):
            label = who if name == who else f"{name} ({who})"
            self.event({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": label}})
        if name != who:
            self.named.add(who)
        return pid

    def event(self, event: dict[str, Any]) -> None:
        self.out.write(("" if self.first else ",\n") + json.dumps(event))
        self.first = False

    def flush(self) -> None:
        self.out.flush()

    def close(self) -> None:
        self.out.write("\n]}\n")
        self.out.flush()
