"""Waiting for what another process does.

Invariant: a limit is a guard against a test that never ends, never what is tested: it is far above
what a busy machine needs. What can only be tested by a limit of the bus's is tried with longer ones
before it counts as wrong (`given_time`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

PATIENCE = 30.0
"""Seconds."""


def comes(true: Callable[[], object], seconds: float = PATIENCE, pause: float = 0.01) -> bool:
    """Whether something is so, or comes to be."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def until(
    true: Callable[[], object], what: str = "it came to that", seconds: float = PATIENCE
) -> None:
    """Waits until something is so.

    Raises AssertionError: it was not, for all that time.
    """
    assert comes(true, seconds), f"never happened: {what}"


async def until_async(true: Callable[[], object], what: str = "it came to that") -> None:
    """The same on an event loop, which goes on meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.002)


def given_time(test: Callable[[int], None], *limits: int) -> None:
    """A test of what the bus does when a time is over, which has others to be done before that: a
    busy machine may need longer for these than the first limit, a fault shows with each."""
    for limit in limits[:-1]:
        try:
            return test(limit)
        except (AssertionError, OSError):
            continue
    return test(limits[-1])


def state(pid: int) -> str:
    """The letter that the kernel has for it, or nothing if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether a process runs; the dead whom nobody has waited for do not."""
    return state(pid) not in ("", "Z", "X")


def stop(pid: int) -> None:
    """Returns when it has stopped, not only been told to."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state(pid) == "T", "it stops")
