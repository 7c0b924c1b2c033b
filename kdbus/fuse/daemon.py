"""The daemon behind a mount: its main thread keeps the time, the crew does the work.

Invariant: the event loop never looks into a client's memory and takes the domain's lock only for
what the core does at once. It does deadlines, cancel descriptors, signals, the watchdog's beat.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable

from jitney.broker.kdbus.domain import Domain

from ..deadlines import Deadlines
from ..descriptors import FdHandle
from .filesystem import Filesystem
from .ioctls import Ioctls
from .mount import Mount
from .pools import passthrough_works
from .watchdog import BEAT, LIMIT, Watchdog

CHECK = 0.1


class Daemon:
    """`pool`: "auto", "passthrough" or "store". `ready()` is called when clients can come.

    `domain`: one that somebody else has a part in, who then calls `start()` and `stop()`."""

    def __init__(
        self, path: str | Mount, pool: str, limit: float = LIMIT, domain: Domain | None = None
    ) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.mount = path if isinstance(path, Mount) else Mount(path)
        try:
            device = self.mount.device
            self.watchdog = Watchdog(self.mount.path, device, self.mount.helper, limit)
            self.domain = domain if domain is not None else Domain()
            fs = self.filesystem = Filesystem(
                self.mount.fd, self.domain, os.geteuid(), os.getegid()
            )
            self.filesystem.greet(pool != "store")
            if fs.passthrough and not passthrough_works(self.mount.fd):
                fs.passthrough = False
            if pool == "passthrough" and not fs.passthrough:
                raise OSError(
                    "passthrough needs Linux 6.9 and CAP_SYS_ADMIN in the first user namespace"
                )
            self.ioctls = Ioctls(fs, device)
        except BaseException:
            self.mount.close()
            raise

    def run(self, ready: Callable[[], None]) -> int:
        return asyncio.run(self.main(ready))

    async def main(self, ready: Callable[[], None]) -> int:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, over.set)
        self.start(loop, over.set)
        ready()
        try:
            await over.wait()
        finally:
            self.stop()
        return 0

    def start(self, loop: asyncio.AbstractEventLoop, ended: Callable[[], object]) -> None:
        """Serves clients from now on; `ended()` when somebody else unmounted us."""
        self.loop = loop
        deadlines = Deadlines(self.domain, loop)
        self.checking = False
        self.domain.changed = lambda deadline: self.call(deadlines.arm, deadline)
        self.ioctls.watch = lambda fd, callback: self.call(self.watch, fd, callback)
        self.ioctls.unwatch = self.unwatch
        self.ioctls.check_later = lambda: self.call(self.check_later)
        self.filesystem.crew.start()
        self.beats = loop.create_task(self.beat(ended))

    def stop(self) -> None:
        self.beats.cancel()
        self.filesystem.crew.ended.set()
        self.mount.close()
        self.watchdog.close()

    def call(self, what: Callable[..., None], *arguments: object) -> None:
        try:
            self.loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            pass  # the loop has ended, and with it the mount

    async def beat(self, ended: Callable[[], object]) -> None:
        """Tells the watchdog that we live: that there is a leader, and that it is not stuck."""
        crew = self.filesystem.crew
        while True:
            # The lock may be had, so the core is not stuck either.
            if not crew.hangs(BEAT) and self.domain.lock.acquire(timeout=BEAT):
                self.domain.lock.release()
                self.watchdog.beat()
            if crew.ended.is_set():
                ended()
                return
            await asyncio.sleep(BEAT)

    # Signals

    def check_later(self) -> None:
        if not self.checking:
            self.checking = True
            self.loop.call_later(CHECK, self.check)

    def check(self) -> None:
        self.checking = False
        if self.ioctls.check_signals():
            self.check_later()

    # Cancel descriptors

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        try:
            self.loop.add_reader(fd, callback)
        except (OSError, ValueError) as error:
            print(f"jitney: a cancel descriptor cannot be watched: {error}", file=sys.stderr)

    def unwatch(self, handle: FdHandle) -> None:
        self.call(self.let_go, handle)

    def let_go(self, handle: FdHandle) -> None:
        # Only then may its number become another file's.
        self.loop.remove_reader(handle.fd)
        with self.domain.lock:
            handle.drop()
