"""The daemon behind `jitney sockets`: a domain, its sockets, and a loop of its own.

Invariant: when `ready()` is called, clients can connect; when it ends, the sockets are gone.
"""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Callable

from jitney.broker.kdbus.domain import Domain
from jitney.compat.loop import BusLoop

from .front import Front


class Daemon:
    def __init__(self, directory: str, stream: bool = False) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.front = Front(Domain(), directory, stream)

    def run(self, ready: Callable[[], None]) -> int:
        with asyncio.Runner(loop_factory=BusLoop) as runner:
            return runner.run(self.main(ready))

    async def main(self, ready: Callable[[], None]) -> int:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, over.set)
        self.front.start(loop, waits=True)
        try:
            ready()
            await over.wait()
        finally:
            self.front.close()
        return 0
