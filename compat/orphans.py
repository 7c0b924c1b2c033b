"""Orphans: as the first process of a container the bus becomes the parent of all who lose theirs.

Invariant: only a process that has been dead for a while is reaped here: whoever started one of the
bus's own children is told of its end first, with its status.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, TimerHandle

GRACE = 0.25
"""Seconds in which the bus reaps its own: their end is news of the same moment."""


class Orphans:
    """Takes away what ends and is nobody's, one at a time: who is dead can wait."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self.timer: TimerHandle | None = None
        self.dead = 0
        loop.add_signal_handler(signal.SIGCHLD, self.wait)

    def wait(self) -> None:
        """Somebody has ended."""
        if self.timer is None:
            self.timer = self.loop.call_later(GRACE, self.look)

    def look(self) -> None:
        self.timer = None
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None and found.si_pid == self.dead:
                os.waitpid(self.dead, os.WNOHANG)
        except ChildProcessError:
            found = None
        self.dead = found.si_pid if found is not None else 0
        if found is not None:
            self.wait()
