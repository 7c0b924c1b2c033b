"""Helpers for tests of the shim: `jitney sockets` on a directory, and programs that are preloaded.

Invariant: what is served here ends again, whatever a test did: the server has a time to live.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nativeserver
from foreground import TIME_TO_LIVE

from jitney.kdbus import preload


def why_not() -> str:
    """Why nothing can be preloaded here; empty if it can."""
    if preload.library() is None:
        return "jitney was built without a C compiler: there is no shim"
    return ""


@contextmanager
def served(path: Path, time_to_live: int = TIME_TO_LIVE) -> Iterator[tuple[Path, dict[str, str]]]:
    """A directory of `jitney sockets`, and the environment of programs that are to use it."""
    shim = preload.library()
    assert shim is not None
    with nativeserver.served(path, time_to_live=time_to_live):
        yield path, preload.environment(shim)
