"""Session: a connection that has become a tracer, and what it hears.

Invariant: filters are the bus's business; what comes here was wanted. `batches()` ends when the
bus is gone, when time is up, or when the reader is interrupted, and never in the middle of a batch.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Any

from ..client import Client, NoBus
from . import records
from .records import Record

INTERFACE = b"org.jitney.Trace1"

_SIGNAL = 4
_SIZES = Struct("<III")
_CHUNK = 1 << 18


class Session:
    """A tracer on the bus at `address`. Raises NoBus, or DBusError where the bus refuses it.

    `options` are those of org.jitney.Trace1.Start, as marshalled values."""

    def __init__(self, address: str, options: Mapping[str, tuple[str, Any]]) -> None:
        self.client = Client(address)
        self.lost = 0
        try:
            clock, now = self.client.call("Start", "a{sv}", options, interface=INTERFACE)
        except BaseException:
            self.client.close()
            raise
        self.offset = now - clock
        self.unread = bytearray(self.client.unread)

    def batches(self, seconds: float | None = None) -> Iterator[tuple[int, list[Record]]]:
        """How many records were lost, and those that came; for so long, or until the end."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            while (batch := self._next()) is not None:
                self.lost += batch[0]
                yield batch
            if not self._more(end):
                return

    def _next(self) -> tuple[int, list[Record]] | None:
        """The next batch that is here whole; other messages are passed over."""
        data = self.unread
        while len(data) >= 16:
            body, _, fields = _SIZES.unpack_from(data, 4)
            start = 16 + (fields + 7 & ~7)
            size = start + body
            if len(data) < size:
                return None
            kind, head = data[1], bytes(data[:start])
            content = bytes(data[start:size])
            del data[:size]
            # Its own leave-taking comes first: it was a client like others until then.
            if kind == _SIGNAL and INTERFACE in head:
                return records.read(content, self.offset)
        return None

    def _more(self, end: float | None) -> bool:
        sock = self.client.sock
        sock.settimeout(None if end is None else max(0.0, end - time.monotonic()) or 0.001)
        try:
            some = sock.recv(_CHUNK)
        except (TimeoutError, BlockingIOError):
            return end is not None and time.monotonic() < end
        except OSError as error:
            raise NoBus(f"the bus is gone: {error.strerror}") from None
        self.unread += some
        return bool(some)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.client.sock.shutdown(socket.SHUT_RDWR)
        self.client.close()
