"""Deadlines: the one timer of a domain, on whatever loop its front has.

Invariant: it is armed for the earliest deadline that the domain has told of, or for an earlier one;
all calls are made on the loop's thread. What expires, expires with the domain's lock held.
"""

from __future__ import annotations

import asyncio
from typing import Any

from jitney.broker.kdbus.domain import Domain


class Deadlines:
    """`arm` is what `Domain.changed` leads to."""

    def __init__(self, domain: Domain, loop: Any) -> None:
        self.domain = domain
        self.loop = loop
        self.timer: asyncio.TimerHandle | None = None

    def arm(self, deadline: int) -> None:
        if self.timer is not None:
            self.timer.cancel()
        left = (deadline - self.domain.monotonic()) / 1e9
        self.timer = self.loop.call_later(max(left, 0), self.expire)

    def expire(self) -> None:
        self.timer = None
        with self.domain.lock:
            deadline = self.domain.expire()
        if deadline is not None:
            self.arm(deadline)

    def close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
