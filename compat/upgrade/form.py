"""What a state looks like on its way: a head, a JSON text, and bytes that the text tells by number.

Invariant: what `unpack()` gives back is what `pack()` was given, or it raises BadState; nothing in
a state is code, and no reader needs the version of Python that wrote it. Each version that was ever
written has a reader here for good, which makes a state of the latest version of it.

    head    MAGIC, version (u32), CRC-32 of all behind the head (u32), bytes of text (u64), bytes
            behind the text (u64); little-endian
    text    JSON, in ASCII: {"document": ..., "blobs": [size of each], "sets": [[place, ...], ...]}
    blobs   one behind the other
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

from jitney.broker.restore import BadState

MAGIC = b"JITNEY STATE\n\0\0\0"
VERSION = 2
"""What is written."""
OLDEST, WITH_ENDPOINTS = 1, 2
"""What an older jitney may get, if it reads no later one: without endpoints that is no less."""

_HEAD = struct.Struct("<16sIIQQ")

Record = dict[str, Any]


def pack(
    document: Record, blobs: list[bytes], sets: list[list[int]], version: int = VERSION
) -> list[bytes]:
    """The pieces of a state. `sets`: descriptors that belong to a message, by their places."""
    whole = {"document": document, "blobs": [len(blob) for blob in blobs], "sets": sets}
    text = json.dumps(whole, separators=(",", ":"), check_circular=False).encode("ascii")
    checksum = zlib.crc32(text)
    size = 0
    for blob in blobs:
        checksum = zlib.crc32(blob, checksum)
        size += len(blob)
    return [_HEAD.pack(MAGIC, version, checksum, len(text), size), text, *blobs]


def unpack(data: bytes) -> tuple[Record, list[memoryview], list[list[int]]]:
    """The document in its latest version, the blobs and the sets. Raises BadState."""
    if len(data) < _HEAD.size:
        raise BadState("that is no state")
    magic, version, checksum, n_text, n_blobs = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise BadState("that is no state")
    reader = READERS.get(version)
    if reader is None:
        known = ", ".join(map(str, sorted(READERS)))
        raise BadState(f"a state of version {version}; this jitney reads {known}")
    rest = memoryview(data)[_HEAD.size :]
    if len(rest) != n_text + n_blobs or zlib.crc32(rest) != checksum:
        raise BadState("the state is damaged")
    try:
        whole = json.loads(bytes(rest[:n_text]))
        blobs = _cut(rest[n_text:], whole["blobs"])
        return reader(whole["document"]), blobs, whole["sets"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadState(f"the state makes no sense: {error!r}") from None


def _cut(data: memoryview, sizes: list[int]) -> list[memoryview]:
    blobs = []
    pos = 0
    for size in sizes:
        blobs.append(data[pos : pos + size])
        pos += size
    if pos != len(data):
        raise ValueError("blobs of other sizes")
    return blobs


def _read_1(document: Record) -> Record:
    """There were no endpoints."""
    document["bus"]["endpoints"] = []
    document["doors"] = None
    return _read_2(document)


def _read_2(document: Record) -> Record:
    return document


READERS: dict[int, Callable[[Record], Record]] = {1: _read_1, 2: _read_2}
"""By version. A new version gets a new reader, and the old ones go through it: each makes of its
document one of the next version."""
