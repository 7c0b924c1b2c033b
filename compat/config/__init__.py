"""Configuration: dbus-daemon's XML files, read into checked models.

Invariant: what leaves this room is a complete, immutable `Config` or a `ConfigError`; the files
are read once and never consulted again. Nothing outside this room sees XML.
"""

from __future__ import annotations

from .errors import ConfigError
from .loader import load
from .model import Config

__all__ = ["Config", "ConfigError", "load"]
