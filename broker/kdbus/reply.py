"""Replies: which call still waits for its answer, and until when.

Invariant: a reply is linked from the call's delivery to its answer, its deadline, or the end of
either side, and then never again. It counts for the caller until it is neither linked nor hanging
on a queued message: who does not read does not get its callers' places back early.

A caller that waits in the command itself (`done`) is told by a call of that; the others are told
by a notification. Deadlines are absolute, in nanoseconds of the bus's monotonic clock.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any

from . import constants as c
from .connection import Connection
from .errors import KdbusError
from .queue import Hanging

_REQUESTS_MAX = c.REQUESTS_MAX


class Reply(Hanging):
    """`callee` owes `caller` an answer to the message with this cookie."""

    __slots__ = (
        "callee", "caller", "cookie", "crossed", "deadline", "done", "linked", "name",
    )  # fmt: skip

    def __init__(
        self,
        caller: Any,
        callee: Any,
        cookie: int,
        deadline: int,
        name: Any,
        done: Callable[[int, Any], None] | None,
    ) -> None:
        if caller.requests >= c.REQUESTS_MAX:
            raise KdbusError(errno.EMLINK)
        caller.requests += 1
        self.caller = caller
        self.callee = callee
        self.cookie = cookie
        self.deadline = deadline
        self.name = name
        self.done = done
        # What another front knows of it; its `over()` is called when nobody waits any more.
        self.crossed: Any = None
        self.linked = False
        self.queued = False

    def settle(self) -> None:
        """To be called when it is no longer linked or queued."""
        if self.linked or self.queued:
            return
        if type(self.caller) is Connection:
            own = self.caller
            own.requests -= 1
        else:
            self.caller.requests -= 1


def new_reply(
    caller: Connection,
    callee: Any,
    cookie: int,
    deadline: int,
    name: Any,
    done: Callable[[int, Any], None] | None,
) -> Reply:
    """Reply(), without a detour."""
    if caller.requests >= _REQUESTS_MAX:
        raise KdbusError(errno.EMLINK)
    caller.requests += 1
    made = Reply.__new__(Reply)
    made.caller = caller
    made.callee = callee
    made.cookie = cookie
    made.deadline = deadline
    made.name = name
    made.done = done
    made.crossed = None
    made.linked = False
    made.queued = False
    return made


def awaited_by(caller: Any) -> dict[int, list[Any]]:
    if type(caller) is Connection:
        own = caller
        return own.awaited
    awaited: dict[int, list[Any]] = caller.awaited
    return awaited


def owed_by(callee: Any) -> dict[Any, None]:
    if type(callee) is Connection:
        own = callee
        return own.owed
    owed: dict[Any, None] = callee.owed
    return owed


class Awaiting:
    """Who waits in the command itself, where it is no plain function but told the short way."""

    def __call__(self, number: int, received: Any) -> None:
        self.tell(number, received)

    def tell(self, number: int, received: Any) -> None:
        raise NotImplementedError


def tell(done: Any, number: int, received: Any) -> None:
    if isinstance(done, Awaiting):
        quick = done
        quick.tell(number, received)
    else:
        done(number, received)


def still_linked(deadlines: list[tuple[int, int, Reply]]) -> list[tuple[int, int, Reply]]:
    return sorted(entry for entry in deadlines if entry[2].linked)


class Replies:
    """All awaited replies of a bus."""

    def __init__(self) -> None:
        self.deadlines: list[tuple[int, int, Reply]] = []
        self.last = 0
        # No deadline on the heap is later.
        self.latest = 0
        self.n_linked = 0

    def link(self, reply: Reply) -> None:
        reply.linked = True
        self.n_linked += 1
        waiting = awaited_by(reply.caller)
        found = waiting.get(reply.cookie)
        if found is None:
            waiting[reply.cookie] = [reply]
        else:
            found.append(reply)
        owed_by(reply.callee)[reply] = None
        self.last += 1
        if reply.deadline >= self.latest:
            # The last of all is in its place at the end of a heap.
            self.latest = reply.deadline
            self.deadlines.append((reply.deadline, self.last, reply))
        else:
            heappush(self.deadlines, (reply.deadline, self.last, reply))
        if len(self.deadlines) > 4 * self.n_linked + 64:
            self.deadlines = still_linked(self.deadlines)

    def unlink(self, reply: Reply) -> None:
        if not reply.linked:
            return
        reply.linked = False
        self.n_linked -= 1
        waiting = awaited_by(reply.caller)
        left = waiting[reply.cookie]
        if len(left) > 1:
            left.remove(reply)
        else:
            del waiting[reply.cookie]
        owed_by(reply.callee).pop(reply, None)
        reply.settle()
        if reply.crossed is not None:
            reply.crossed.over()

    def find(self, callee: Any, caller: Any, cookie: int) -> Reply | None:
        """The latest call with this cookie that `callee` is to answer."""
        calls = awaited_by(caller).get(cookie)
        if calls is None:
            return None
        for i in range(len(calls) - 1, -1, -1):
            reply = calls[i]
            if reply.callee is callee:
                return reply
        return None

    def move(self, reply: Reply, callee: Any) -> None:
        """Another connection is to answer it."""
        del reply.callee.owed[reply]
        reply.callee = callee
        callee.owed[reply] = None

    def expired(self, now: int) -> Iterator[Reply]:
        """Those whose time is over, in order; whoever asks unlinks them."""
        while self.deadlines and (not self.deadlines[0][2].linked or self.deadlines[0][0] <= now):
            reply = heappop(self.deadlines)[2]
            if reply.linked:
                yield reply

    def next_deadline(self) -> int | None:
        while self.deadlines and not self.deadlines[0][2].linked:
            heappop(self.deadlines)
        return self.deadlines[0][0] if self.deadlines else None
