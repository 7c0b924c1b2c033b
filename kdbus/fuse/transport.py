"""Transport: an opened endpoint as its connection sees it: its pool, and those who poll it.

Invariant: who polls is told once, and asks again. FUSE cannot give descriptors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.kdbus.connection import Transport

if not cython.compiled:
    from .sysio import notify_poll

if TYPE_CHECKING:
    from .nodes import Node
    from .pools import Backing, Store


class FuseTransport(Transport):
    """`device`: where those who poll are told."""

    installs = False

    def __init__(self, device: int, node: Node, pool: Backing | Store) -> None:
        self.device = device
        self.node = node
        self.pool = pool
        self.polls: set[int] = set()

    def memory(self, size: int) -> Backing | Store:
        self.pool.resize(size)
        self.node.size = size
        return self.pool

    def wake(self) -> None:
        if self.polls:
            polls, self.polls = self.polls, set()
            for handle in polls:
                notify_poll(self.device, handle)
