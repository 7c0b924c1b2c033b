"""Ticks: what time it is - the plain Python twin of `ticks.pyx`.

Invariant: same name, same meaning as the compiled module.
"""

from __future__ import annotations

import time


def now_ns() -> int:
    return time.monotonic_ns()
