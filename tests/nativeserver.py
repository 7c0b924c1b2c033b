"""Helpers for tests over sockets: `jitney sockets` in a process of its own.

Invariant: a server that complained on its standard error fails the test that ends it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import foreground
from foreground import Served as Server


def command_line(path: Path, *words: str) -> list[str]:
    return foreground.command_line("sockets", path, *words)


def served(
    path: Path, *words: str, quiet: bool = True, time_to_live: float = 3600
) -> AbstractContextManager[Server]:
    return foreground.foreground("sockets", path, *words, quiet=quiet, time_to_live=time_to_live)
