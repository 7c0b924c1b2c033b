"""Targets for what a running bus leaves to its successor.

Invariant: a state comes from a process of ours, so nonsense may be answered with any exception, by
which the old bus goes on; but what is taken must be a whole bus, and nothing may end the process.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import corebus

from jitney.broker.export import Sink, export
from jitney.broker.restore import BadState, Source, restore
from jitney.compat.upgrade import form

from .registry import target

_ROOM = 1 << 20


def _mend(data: bytes) -> bytes:
    """A text with a head that fits, and as many bytes behind it as it says, if it is one."""
    if data.startswith(form.MAGIC):
        return data
    try:
        sizes = json.loads(data)["blobs"]
        behind = bytes(sum(sizes))[:_ROOM]
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError, RecursionError):
        behind = b""
    checksum = zlib.crc32(behind, zlib.crc32(data))
    head = form._HEAD.pack(form.MAGIC, form.VERSION, checksum, len(data), len(behind))
    return head + data + behind


def _moved(state: Any, blobs: list[Any]) -> tuple[Any, list[bytes]]:
    """What a bus that was restored from this says of itself."""
    bus = corebus.make_bus()
    bus.clock = lambda: 1000.0
    restore(bus, state, Source(blobs, []))
    sink = Sink()
    told, _ = export(bus, [], sink)
    return json.loads(json.dumps(told)), sink.blobs


@target(
    "state", 24000,
    (b'"connections":', b'"users":', b'"names":', b'"rules":', b'"replies":', b'"id":', b"-1",
     b"4294967296", b"18446744073709551616", b"null", b"[]", b"{}", b'"blobs":[', b"1e300"),
    short=300,
)  # fmt: skip
def saved_state(data: bytes) -> None:
    try:
        document, blobs, _ = form.unpack(_mend(data))
    except (BadState, RecursionError):
        return
    try:
        state, left = _moved(document["bus"], blobs)
    except Exception:
        return
    # What was taken can be handed on, and is the same then.
    assert _moved(state, left)[0] == state
