"""Waiting for what another process does.

Invariant: a limit is a guard against a test that never ends, never what is tested: it is far above
what a busy machine needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], object], what: str = "it came to that", seconds: float = 20) -> None:
    """Waits until something is so.

    Raises AssertionError: it was not, for all that time.
    """
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)
