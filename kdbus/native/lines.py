"""Command lines of clients, read by other threads, for it may last; and why a socket waits.

Invariant: /proc/PID/cmdline is memory of the client, which may be another file system's or its own
to answer for. Nobody waits for it longer than PATIENCE, a user has at most a few threads in it, and
who would need more is told of without a command line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..process import KEPT, read

PATIENCE = 0.1
USER_MAX = 4
TOTAL_MAX = 64
PIDS_MAX = 1024


class CommandLines:
    """`later` runs a job on a thread, `call` something on the loop's."""

    def __init__(self, later: Callable[[Callable[[], None]], None], call: Callable[..., None]):
        self.later = later
        self.call = call
        self.kept: dict[int, tuple[float, bytes | None]] = {}
        self.asked: dict[int, list[Callable[[], None]]] = {}
        self.users: dict[int, int] = {}

    def known(self, pid: int) -> bool:
        kept = self.kept.get(pid)
        return kept is not None and kept[0] > time.monotonic()

    def get(self, pid: int) -> bytes | None:
        kept = self.kept.get(pid)
        return kept[1] if kept is not None else None

    def ask(self, pid: int, uid: int, then: Callable[[], None]) -> bool:
        """Has it read, and `then()` called; False if nobody is free for that."""
        waiting = self.asked.get(pid)
        if waiting is not None:
            waiting.append(then)
            return True
        if self.users.get(uid, 0) >= USER_MAX or len(self.asked) >= TOTAL_MAX:
            self.keep(pid, None)
            return False
        self.users[uid] = self.users.get(uid, 0) + 1
        self.asked[pid] = [then]

        def job() -> None:
            words = read(f"/proc/{pid}/cmdline")
            # kdbus stops at the first zero byte as well.
            self.call(self.told, pid, uid, words.partition(b"\0")[0] if words else None)

        self.later(job)
        return True

    def told(self, pid: int, uid: int, line: bytes | None) -> None:
        self.users[uid] -= 1
        if not self.users[uid]:
            del self.users[uid]
        self.keep(pid, line)
        for then in self.asked.pop(pid):
            then()

    def keep(self, pid: int, line: bytes | None) -> None:
        if len(self.kept) >= PIDS_MAX:
            self.kept.clear()
        self.kept[pid] = (time.monotonic() + KEPT, line)


class Stalled:
    """In place of a frame: nothing is read, for its user keeps us closing descriptors."""

    fds: tuple[int, ...] = ()


class Paused:
    """A frame that waits for the command line of its sender, with all that came with it."""

    __slots__ = ("fds", "frame", "lost_fds", "said", "timer")

    def __init__(self, frame: bytes, fds: Any, said: Any, lost_fds: bool) -> None:
        self.frame = frame
        self.fds = fds
        self.said = said
        self.lost_fds = lost_fds
        self.timer: Any = None
