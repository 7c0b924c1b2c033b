"""Bus: what a test holds in its hands.

Invariant: inside its block the bus is there and `address` is where; afterwards nothing of it is
left. A bus is used once; its configuration does not change.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import config
from .child import Child, Hosted
from .config import Allow, Deny
from .faults import Faults
from .journal import Journal

if TYPE_CHECKING:
    from .host import Host


class Bus:
    """A bus of one's own.

    With `async with` it runs in this process, on the running loop: whatever talks to it must not
    block that loop, and every step can be awaited. With `with`, or `child=True`, it runs in a child
    process. `host` is a `Child` that has other buses already.

    `policy`: rules, the last that fits decides, behind "everything is allowed"; `limits`: by
    dbus-daemon's names; `services`: commands that the bus starts for these names; `extra`: more XML
    for the configuration."""

    def __init__(
        self,
        *,
        type: str = "session",
        policy: Iterable[Allow | Deny] = (),
        limits: Mapping[str, int] | None = None,
        services: Mapping[str, str | Sequence[str]] | None = None,
        extra: str = "",
        child: bool = False,
        host: Child | None = None,
    ) -> None:
        self._about = config.described(type, policy, limits or {}, services or {}, extra)
        self._child = child or host is not None
        self._host = host
        self._own: Child | None = None
        self._side: Host | Hosted | None = None
        self.address = ""
        self.faults: Faults
        self.journal: Journal

    # Life

    async def __aenter__(self) -> Bus:
        if self._child:
            await asyncio.to_thread(self._start_apart)
        else:
            from .host import Host

            self._use(Host(asyncio.get_running_loop(), self._about, os.environ))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._child:
            await asyncio.to_thread(self.close)
        else:
            self.close()

    def __enter__(self) -> Bus:
        self._start_apart()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start_apart(self) -> None:
        child = self._host
        if child is None:
            child = self._own = Child()
        try:
            self._use(Hosted(child, self._about, os.environ))
        except BaseException:
            self.close()
            raise

    def _use(self, side: Host | Hosted) -> None:
        if self._side is not None:
            raise RuntimeError("a bus is used once: make another one")
        self._side = side
        self.address = side.address
        self.faults = Faults(side)
        self.journal = Journal(side)

    def close(self) -> None:
        """The end of the block: connections are cut, services that the bus started are ended."""
        if self._side is not None:
            _ = self.journal.entries
            self._side.close()
            self.journal.side = _Gone()
        if self._own is not None:
            self._own.close()
            self._own = None

    # Looking around

    @property
    def environ(self) -> dict[str, str]:
        """The environment for programs that shall find this bus."""
        return {**os.environ, "DBUS_SESSION_BUS_ADDRESS": self.address}

    def names(self) -> dict[str, list[str]]:
        """Who is on the bus: the names that each connection owns, by its unique one."""
        found: dict[str, list[str]] = self._there.ask("names")
        return found

    def log(self) -> list[tuple[str, str]]:
        """What the bus had to say: severity and text."""
        lines: list[tuple[str, str]] = self._there.ask("log")
        return lines

    def disconnect(self, name: str) -> None:
        """Cuts the connection that has this name."""
        self._there.ask("disconnect", name)

    @property
    def _there(self) -> Host | Hosted:
        if self._side is None:
            raise RuntimeError("the bus is there inside its block")
        return self._side


class _Gone:
    """Nothing more happens on a bus that is gone."""

    def ask(self, verb: str, *given: Any) -> Any:
        return []
