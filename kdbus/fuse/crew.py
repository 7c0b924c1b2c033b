"""Crew: the threads that read /dev/fuse, one after the other.

Invariant: at most one thread leads, and only the leader reads requests, so they are begun in the
order in which the kernel sent them. The leader does a whole request itself, without handing it to
anybody. If it is kept longer than PATIENCE by something that a client may draw out
(`Worker.away()`), it is deposed: another thread leads, and the old one goes on alone and then waits
for its turn again.

So a client that makes us wait for its memory keeps one thread, and others from us for a moment,
once: what it opened is not trusted after that, and the leader steps down before it looks there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from ..jobs import Jobs
from .leading import lead
from .worker import Worker

PATIENCE = 0.02
LIMIT = 0.2
"""For one that is kept by nobody but the machine, which has others to run."""
TICK = 0.01
REST = 1.0


class Crew(Jobs):
    """`handle(worker, size)` is called for each request in the worker's buffer that `quick` has not
    done; `suspect(what)` when somebody was deposed while busy with that."""

    def __init__(
        self, device: int, handle: Callable[[Worker, int], None], suspect: Callable[[Any], None]
    ) -> None:
        super().__init__()
        self.device = device
        self.handle = handle
        self.suspect = suspect
        self.quick: Any = None
        self.turn = threading.Lock()
        self.leader: Worker | None = None
        self.ended = threading.Event()
        self.waiting = 0
        self.threads = 0
        self.deposed = 0
        self.beats = 0
        self.resting = False
        self.called = threading.Event()

    def start(self) -> None:
        self.hire()
        self.hire()
        threading.Thread(target=self.supervise, name="supervisor", daemon=True).start()

    def hire(self) -> None:
        self.threads += 1
        threading.Thread(target=self.work, name="fuse", daemon=True).start()

    # Leading

    def work(self) -> None:
        me = Worker()
        me.tid = threading.get_native_id()
        while True:
            with self.guard:
                self.waiting += 1
            self.turn.acquire()
            with self.guard:
                self.waiting -= 1
                self.leader = me
                me.leading = True
            if not lead(self, me):
                self.ended.set()
                self.called.set()
                self.turn.release()
                return
            with self.guard:
                # Enough others wait for their turn.
                if self.waiting >= 2:
                    self.threads -= 1
                    return

    def step_down(self, me: Worker) -> None:
        """Lets another one lead, if `me` does."""
        with self.guard:
            self.replace(me)

    def replace(self, me: Worker) -> None:
        if me.leading:
            me.leading = False
            self.leader = None
            if not self.waiting:
                self.hire()
            self.turn.release()

    def supervise(self) -> None:
        beats = -1
        quiet = 0.0
        while not self.ended.is_set():
            time.sleep(TICK)
            leader = self.leader
            since = leader.since if leader is not None else 0.0
            kept = time.monotonic() - since if since else 0.0
            if leader is not None and kept > PATIENCE and (kept > LIMIT or is_kept(leader)):
                what = leader.busy_with
                deposed = False
                with self.guard:
                    if leader.leading and leader.since == since:
                        self.deposed += 1
                        deposed = True
                        self.replace(leader)
                if deposed:
                    self.suspect(what)
            if self.beats != beats or since:
                beats = self.beats
                quiet = 0.0
                continue
            quiet += TICK
            if quiet >= REST:
                # Nobody is served: sleep until the next request.
                self.called.clear()
                self.resting = True
                if self.beats == beats:
                    self.called.wait()
                self.resting = False
                quiet = 0.0

    def hangs(self, seconds: float) -> bool:
        """Whether the leader has been at one request for so long without being deposed."""
        leader = self.leader
        began = leader.began if leader is not None else 0.0
        return bool(began) and time.monotonic() - began > seconds


def is_kept(worker: Worker) -> bool:
    """Whether a thread sleeps in a system call, and is not just waiting for a processor."""
    try:
        with open(f"/proc/self/task/{worker.tid}/stat", "rb", 0) as file:
            return file.read(512).rpartition(b") ")[2][:1] != b"R"
    except OSError:
        return True
