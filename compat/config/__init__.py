"""Configuration: dbus-daemon's XML files, read into checked models.

Invariant: what leaves this room is a complete, immutable `Config` (or `Plain`, the same for a
daemon) or a `ConfigError`; the files are read once and never consulted again. Nothing outside this
room sees XML. What reads, and the checker it needs, is loaded where `Config` or `load` is asked
for: a daemon asks `Reading` instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .child import Reading, read
from .errors import ConfigError
from .plain import Plain

if TYPE_CHECKING:
    from .loader import load
    from .model import Config

__all__ = ["Config", "ConfigError", "Plain", "Reading", "load", "read"]


def __getattr__(name: str) -> Any:
    # An unknown name, such as one that the import system tries, must not load anything.
    if name not in ("Config", "load"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import loader, model

    return loader.load if name == "load" else model.Config
