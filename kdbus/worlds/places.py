"""Places: where clients of kdbus come in to a classic bus, a mount of its own process or sockets.

Invariant: what was made here is taken away again. With a mount the classic side's thread holds the
domain's lock but while it sleeps, from `Open()` to `close()`; the threads that serve the mount hold
it while they touch the bus. Without, there is one thread.

A place is made while the process may (`reserve()`, before it becomes a daemon or another user), and
served by what it has become.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.domain import Domain
from jitney.broker.kdbus.metadata import Creds, Facts
from jitney.compat.errors import FAILED, DBusError

from ..process import ProcCaller, Spaces, opener, status_of
from .front import attach
from .lock import Lock

NAMES = {"session": "user", "system": "system"}
"""What sd-bus calls the buses that classic configurations call so."""
ONLY_OURS = 0o600
"""The control node's mode. This process has a bus to serve: others make theirs elsewhere."""


class Places:
    """`mount`, `root`: what is there, and not served yet, or None. `user`: (uid, gid) of whom we
    will become, if that is another; `owner`: of whom the bus belongs to; `name`: the bus's."""

    def __init__(self, kind: str | None, user: tuple[int, int] | None) -> None:
        self.kind = kind
        self.user = user if user is not None and user[0] != os.geteuid() else None
        self.mount: Any = None
        self.root: Any = None
        self.owner = (os.geteuid(), os.getegid())
        if user is not None and kind != "system":
            # But what everybody knows as 0-system is root's bus, whoever it runs as.
            self.owner = user
        self.name = f"{self.owner[0]}-{NAMES.get(kind or '', 'bus')}".encode()

    def close(self) -> None:
        if self.mount is not None:
            self.mount.close()
        if self.root is not None:
            self.root.close()


def reserve(
    mount: str | None, sockets: str | None, kind: str | None, user: tuple[str, int, int] | None
) -> Places:
    """Makes them, for clients who will wait until they are served. DBusError.

    `kind`: the configuration's <type>; `user`: (name, uid, gid) of whom we will become, and be
    without capabilities, or None."""
    places = Places(kind, user[1:] if user is not None else None)
    if mount is not None:
        if user is not None:
            raise DBusError(
                FAILED,
                f'--kdbus-mount needs a bus that stays who it is: as user "{user[0]}", without '
                "capabilities, it could not look into its clients; --kdbus-sockets does not",
            )
        from ..fuse.mount import Mount

        try:
            os.makedirs(mount, exist_ok=True)
            places.mount = Mount(mount)
        except OSError as error:
            raise DBusError(FAILED, f"Failed to mount kdbus's file system: {error}") from error
    if sockets is not None:
        from ..native.root import Root

        try:
            places.root = Root(sockets, user=places.user)
            mode = 0o666 if kind == "system" else 0o600
            places.root.prepare(ONLY_OURS, places.name, mode, places.owner)
        except OSError as error:
            places.close()
            raise DBusError(FAILED, f"Failed to make kdbus's sockets: {error}") from error
    return places


def place(facts: Facts) -> None:
    """Notes which namespaces a classic sender is in, for receivers that are in others."""
    if facts.pids is not None:
        pid = facts.pids[0]
        facts.spaces = Spaces(pid, status_of(pid))


class Open:
    """`bus`: the core's, before anybody is on it; `poller`: where its thread sleeps. `lost()`:
    somebody unmounted the mount. OSError."""

    def __init__(
        self,
        places: Places,
        bus: Any,
        loop: Any,
        poller: Any,
        startable: Callable[[bytes], bool],
        lost: Callable[[], None],
        pool: str = "auto",
    ) -> None:
        domain = Domain()
        self.loop = loop
        self.poller = poller
        self.lost = lost
        self.closed = False
        self.fuse: Any = None
        self.native: Any = None
        if places.mount is not None:
            from ..fuse.daemon import Daemon

            domain.lock = Lock()
            self.fuse = Daemon(places.mount, pool, domain=domain)
            self.fuse.filesystem.nodes.control_mode = ONLY_OURS
        if places.root is not None:
            from ..native.front import Front

            self.native = Front(domain, places.root)
            self.native.control_mode = ONLY_OURS
        self.lock = domain.lock
        self.bus = attach(
            bus,
            domain,
            places.name,
            self.identity(*places.owner),
            flags=c.ACCESS_WORLD if places.kind == "system" else 0,
            facts=self.facts,
            later=self.call if self.fuse is not None else None,
            startable=startable,
            place=place,
        )
        if self.native is not None:
            self.native.start(loop)
        if self.fuse is not None:
            self.lock.acquire()
            poller.lock = self.lock
            self.fuse.start(loop, self.ended)

    def identity(self, uid: int, gid: int) -> Creds:
        """Of whom the bus is: us, or whom we were."""
        me = ProcCaller(os.getpid(), os.geteuid(), os.getegid())
        me.gather(c.ATTACH_ALL)
        self.facts = me.facts()
        if uid == os.geteuid():
            return opener(os.getpid(), uid, gid)
        self.facts.uids, self.facts.gids = (uid,) * 4, (gid,) * 4
        return Creds(uid, uid, gid)

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
        if self.native is not None:
            self.native.close()
        if self.fuse is not None:
            self.poller.lock = None
            self.lock.release()
            self.fuse.stop()
