"""Exposition: where the metrics of a bus can be read: a socket that speaks HTTP, or a text file.

Invariant: no reader makes the bus wait or grow: there are at most READERS of them, each has
PATIENCE for all that it does, and one that comes when there are as many ends the oldest. The text
is made at most once in FRESH, however often it is asked for. What goes wrong is a line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from . import openmetrics
from .places import READERS

PATIENCE = 5.0
FRESH = 1.0
PERIOD = 15.0
"""Seconds, all of them: for one reader, of a text's life, and between two text files."""
_LONGEST = 8192
"""Bytes of a request."""


class Exposition:
    """The metrics of one bus at these places; `log` as the front's."""

    def __init__(
        self,
        service: Any,
        loop: asyncio.AbstractEventLoop,
        places: Sequence[tuple[str, socket.socket | None]],
        log: Callable[[str, str], None],
    ) -> None:
        self.service = service
        self.loop = loop
        self.log = log
        self.readers: dict[Reader, None] = {}
        self.made_at = -FRESH
        self.made: openmetrics.Families | None = None
        self.making: asyncio.Task[openmetrics.Families] | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self.files = [TextFile(self, place.partition(":")[2]) for place, s in places if s is None]
        self.sockets = [sock for _, sock in places if sock is not None]
        self.servers: list[asyncio.Server] = []
        for sock in self.sockets:
            self.run(self.serve(sock))
        for file in self.files:
            file.timer = loop.call_later(0, file.due)

    def run(self, coroutine: Any) -> None:
        """Sees to it that somebody holds the task, and hears of its end."""
        task = self.loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.done)

    def done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.log("warning", f"Metrics: {task.exception()!r}")

    async def serve(self, sock: socket.socket) -> None:
        # A short backlog: asyncio accepts as many in one go, and messages wait meanwhile.
        server = await self.loop.create_server(lambda: Reader(self), sock=sock, backlog=4)
        self.servers.append(server)

    async def families(self) -> openmetrics.Families:
        """What there is to tell, not older than FRESH; made once for all who ask meanwhile."""
        if self.made is None or self.loop.time() - self.made_at >= FRESH:
            if self.making is None:
                self.making = self.loop.create_task(openmetrics.collect(self.service))
            try:
                self.made = await asyncio.shield(self.making)
                self.made_at = self.loop.time()
            finally:
                if self.making is not None and self.making.done():
                    self.making = None
        return self.made

    def close(self) -> None:
        for task in [*self.tasks, *([self.making] if self.making is not None else [])]:
            task.cancel()
        for server in self.servers:
            server.close()
        for reader in list(self.readers):
            reader.end()
        for file in self.files:
            if file.timer is not None:
                file.timer.cancel()


class Reader(asyncio.Protocol):
    """One HTTP request and its answer."""

    def __init__(self, exposition: Exposition) -> None:
        self.exposition = exposition
        self.transport: Any = None
        self.request = b""
        self.answered = False
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        readers = self.exposition.readers
        if len(readers) >= READERS:
            next(iter(readers)).end()
        readers[self] = None
        self.timer = self.exposition.loop.call_later(PATIENCE, self.end)

    def connection_lost(self, error: Exception | None) -> None:
        self.exposition.readers.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()

    def end(self) -> None:
        """At once, whatever is still to be written."""
        self.exposition.readers.pop(self, None)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.answered:
            return
        self.request += data
        if len(self.request) > _LONGEST:
            self.end()
        elif b"\r\n\r\n" in self.request or b"\n\n" in self.request:
            self.answered = True
            method, _, rest = self.request.split(b"\n", 1)[0].partition(b" ")
            path = rest.split(b" ", 1)[0].split(b"?", 1)[0].strip()
            if method not in (b"GET", b"HEAD"):
                self.answer("405 Method Not Allowed", b"GET only\n")
            elif path not in (b"/metrics", b"/"):
                self.answer("404 Not Found", b"see /metrics\n")
            else:
                self.exposition.run(self.tell(method == b"HEAD"))

    def eof_received(self) -> bool:
        # Who has said all may still want to hear the answer.
        return self.answered

    async def tell(self, head_only: bool) -> None:
        try:
            families = await self.exposition.families()
        except Exception:
            self.end()
            raise
        if not self.transport.is_closing():
            body = families.text(False)
            self.answer("200 OK", body, openmetrics.CONTENT_TYPE, head_only)

    def answer(
        self, status: str, body: bytes, kind: str = "text/plain", head_only: bool = False
    ) -> None:
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + (b"" if head_only else body))
        self.transport.close()


class TextFile:
    """A file for node_exporter's textfile collector, written anew every PERIOD by a thread: a disk
    may take its time. While it does, nothing else is written."""

    def __init__(self, exposition: Exposition, path: str) -> None:
        self.exposition = exposition
        self.path = path
        self.timer: asyncio.TimerHandle | None = None
        self.writer: threading.Thread | None = None
        self.failure = ""

    def due(self) -> None:
        self.timer = self.exposition.loop.call_later(PERIOD, self.due)
        if self.writer is None or not self.writer.is_alive():
            if self.failure:
                self.exposition.log("warning", f"Metrics: {self.path}: {self.failure}")
                self.failure = ""
            self.exposition.run(self.write())

    async def write(self) -> None:
        text = (await self.exposition.families()).text(True)
        self.writer = threading.Thread(target=self._write, args=(text,), daemon=True)
        self.writer.start()

    def _write(self, text: bytes) -> None:
        part = f"{self.path}.{os.getpid()}"
        try:
            with open(part, "wb") as file:
                file.write(text)
                os.fchmod(file.fileno(), 0o644)
            os.rename(part, self.path)
        except OSError as error:
            self.failure = error.strerror or str(error)
            with contextlib.suppress(OSError):
                os.unlink(part)
