"""Crew: the threads that read /dev/fuse, one after the other.

Invariant: at most one thread leads, and only the leader reads requests, so they are begun in the
order in which the kernel sent them. The leader does a whole request itself, without handing it to
anybody. If it is kept longer than PATIENCE by something that a client may draw out (`away()`), it
is deposed: another thread leads, and the old one goes on alone and then waits for its turn again.

So a client that makes us wait for its memory keeps one thread, and others from us for a moment,
once: what it opened is not trusted after that, and the leader steps down before it looks there.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from ..jobs import Jobs
from . import protocol as p

PATIENCE = 0.02
TICK = 0.01
REST = 1.0


class Worker:
    """One thread. `began`: when it took up a request, `since`: when it began what may last; both 0
    while it does nothing of that kind."""

    def __init__(self) -> None:
        self.buffer = bytearray(p.BUFFER)
        self.view = memoryview(self.buffer)
        self.leading = False
        self.since = 0.0
        self.began = 0.0
        self.busy_with: Any = None


class Crew(Jobs):
    """`handle(worker, size)` is called for each request in the worker's buffer; `suspect(what)`
    when somebody was deposed while busy with that."""

    def __init__(
        self, device: int, handle: Callable[[Worker, int], None], suspect: Callable[[Any], None]
    ) -> None:
        super().__init__()
        self.device = device
        self.handle = handle
        self.suspect = suspect
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
        while True:
            with self.guard:
                self.waiting += 1
            self.turn.acquire()
            with self.guard:
                self.waiting -= 1
                self.leader = me
                me.leading = True
            while me.leading:
                try:
                    size = os.readv(self.device, (me.buffer,))
                except OSError as error:
                    if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                        continue
                    size = 0
                if self.ended.is_set() or size == 0:
                    self.ended.set()
                    self.called.set()
                    self.turn.release()
                    return
                self.beats += 1
                if self.resting:
                    self.resting = False
                    self.called.set()
                me.began = time.monotonic()
                self.handle(me, size)
                me.began = 0.0
            with self.guard:
                # Enough others wait for their turn.
                if self.waiting >= 2:
                    self.threads -= 1
                    return

    def away(self, me: Worker, what: Any) -> None:
        """What follows may last as long as a client likes; `back()` ends it."""
        me.busy_with = what
        me.since = time.monotonic()

    def back(self, me: Worker) -> None:
        me.since = 0.0
        me.busy_with = None

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
            if leader is not None and since and time.monotonic() - since > PATIENCE:
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
