"""Loop: asyncio's event loop over the poller that the hub drains.

Invariant: to asyncio this is its own selector loop, with nothing changed but where it waits. The
hub's sockets are in the same set; while only they are ready, `Hub.wait()` serves them
without coming back here, so that a message costs no second poll and no Python callback. It comes
back as soon as anything else is ready, due, or has been asked of the loop (`stirred`).
"""

from __future__ import annotations

import asyncio
import math
import selectors
import traceback
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVarTuple

from . import ways

_Ts = TypeVarTuple("_Ts")

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class _Selector(ways.Selector):  # type: ignore[misc, valid-type]
    """A selector that leaves the waiting to the hub, once there is one."""

    hub: Any = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.hub is None:
            return super().select(timeout)
        if timeout is None:
            milliseconds = -1
        elif timeout <= 0:
            milliseconds = 0
        else:
            # Rounded up: never before its time, never a busy wait.
            milliseconds = min(math.ceil(timeout * 1000), 0x7FFFFFFF)
        keys = self.get_map()
        ready = []
        for fd, events in self.wait(milliseconds):
            key = keys.get(fd)
            if key is not None:
                # An error or hang-up is worth a read as well as a write.
                mask = (_WRITE if events & ~ways.IN else 0) | (_READ if events & ~ways.OUT else 0)
                ready.append((key, mask & key.events))
        return ready

    def wait(self, milliseconds: int) -> list[tuple[int, int]]:
        try:
            found: list[tuple[int, int]] = self.hub.wait(milliseconds)
        except Exception:
            # An exception out of a selector would end the loop, and with it the bus.
            self.hub.front.log("warning", "In the round of a bus: " + traceback.format_exc())
            return []
        return found


class BusLoop(asyncio.SelectorEventLoop):
    """The event loop of a daemon with one bus."""

    def __init__(self) -> None:
        self._poll = _Selector()
        super().__init__(self._poll)

    def __del__(self) -> None:
        # One that the kernel had no room for was never whole, and has nothing to close.
        if hasattr(self, "_signal_handlers"):
            super().__del__()

    def adopt(self, hub: Any) -> Any:
        """From now on `hub` does the waiting, in the set that this returns (`ways.share()`)."""
        self._poll.hub = hub
        return ways.share(self._poll)

    def release(self) -> None:
        """The hub is going; the loop waits for itself again."""
        self._poll.hub = None

    def _stir(self) -> None:
        hub = self._poll.hub
        if hub is not None:
            hub.stirred = True

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        self._stir()
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self._stir()
        return super().call_at(when, callback, *args, context=context)
