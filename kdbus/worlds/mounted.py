"""A classic bus that is a bus of kdbus as well, under a file system of its own process.

Invariant: from `Mounted()` to `close()` the classic side's thread holds the domain's lock but while
it sleeps; the threads that serve the file system hold it while they touch the bus. What was mounted
is unmounted.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.domain import Domain
from jitney.broker.kdbus.metadata import Facts

from ..fuse.daemon import Daemon
from ..fuse.mount import Mount
from ..process import ProcCaller, Spaces, opener, status_of
from .front import attach
from .lock import Lock

NAMES = {"session": "user", "system": "system"}
"""What sd-bus calls the buses that classic configurations call so."""


def bus_name(kind: str | None) -> bytes:
    """The name of the bus in the tree; `kind` is the configuration's <type>."""
    return f"{os.geteuid()}-{NAMES.get(kind or '', 'bus')}".encode()


def mount_at(path: str) -> Mount:
    """Mounts the tree, which is not served yet: who looks into it waits. OSError."""
    os.makedirs(path, exist_ok=True)
    return Mount(path)


def place(facts: Facts) -> None:
    """Notes which namespaces a classic sender is in, for receivers that are in others."""
    if facts.pids is not None:
        pid = facts.pids[0]
        facts.spaces = Spaces(pid, status_of(pid))


class Mounted:
    """`bus`: the core's, before anybody is on it; `poller`: where its thread sleeps; `mount`: what
    `mount_at()` gave. `lost()`: somebody unmounted it."""

    def __init__(
        self,
        mount: Mount,
        kind: str | None,
        bus: Any,
        loop: Any,
        poller: Any,
        startable: Callable[[bytes], bool],
        lost: Callable[[], None],
        pool: str = "auto",
    ) -> None:
        domain = Domain()
        self.lock = domain.lock = Lock()
        self.poller = poller
        self.closed = False
        self.fuse = Daemon(mount, pool, domain=domain)
        # This process has a bus to serve: others make theirs elsewhere.
        self.fuse.filesystem.nodes.control_mode = 0o600
        me = ProcCaller(os.getpid(), os.geteuid(), os.getegid())
        me.gather(c.ATTACH_ALL)
        self.bus = attach(
            bus,
            domain,
            bus_name(kind),
            opener(os.getpid(), os.geteuid(), os.getegid()),
            flags=c.ACCESS_WORLD if kind == "system" else 0,
            facts=me.facts(),
            later=self.call,
            startable=startable,
            place=place,
        )
        self.loop = loop
        self.lock.acquire()
        poller.lock = self.lock
        self.lost = lost
        self.fuse.start(loop, self.ended)

    def call(self, job: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(job)
        except RuntimeError:
            pass  # the loop has ended, and with it the bus

    def ended(self) -> None:
        if not self.closed:
            self.lost()

    def close(self) -> None:
        """Ends what is served; to be called on the classic side's thread, when its loop is over."""
        self.closed = True
        self.poller.lock = None
        self.lock.release()
        self.fuse.stop()
