# cython: infer_types=True
"""Gather: what goes out to a receiver in one system call.

Invariant: descriptors go out with the first byte of their message and with nothing before it; the
order is the queue's. Nothing is copied: the outlet refers to the queue's blocks until it has sent.
"""

from __future__ import annotations

from jitney.broker.queue import Queue

from .sysio import Outlet


def gather(outlet: Outlet, queue: Queue) -> int:
    """Fills the outlet with the queue's first run; its size in bytes."""
    first = True
    for segment in queue.segments:
        if first:
            outlet.start(segment.fds)
            first = False
        elif segment.fds is not None:
            return outlet.size
        if segment.buffer is not None:
            more = outlet.add(segment.buffer.p, segment.off, segment.end - segment.off)
        else:
            more = outlet.add(segment.payload.p, segment.off, segment.end - segment.off)
        if not more:
            return outlet.size
    tail = queue.tail
    if tail is not None:
        if first:
            outlet.start(queue.tail_fds)
        elif queue.tail_fds is not None:
            return outlet.size
        outlet.add(tail.p, tail.head, tail.end - tail.head)
    return outlet.size
