# cython: infer_types=True
"""File descriptors in flight: a set that came with one message.

Invariant: each descriptor is closed exactly once, when the last holder (message, queue of a
receiver, kept copy) lets go of the set; nobody closes a member by hand.
"""

from __future__ import annotations

import os


class FdSet:
    """The descriptors of one message, shared by all receivers it is queued for."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = fds

    def __len__(self) -> int:
        return len(self.fds)

    def __iter__(self):
        return iter(self.fds)

    def __del__(self) -> None:
        for fd in self.fds:
            try:
                os.close(fd)
            except OSError:
                # A descriptor that cannot be closed is not a reason to end the bus.
                pass
