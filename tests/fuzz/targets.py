"""Targets: all of them, by name.

Invariant: what is in `TARGETS` is run by the tests, by `make fuzz` and by nothing else.
"""

from __future__ import annotations

from . import bus_targets, kdbus_targets, state_targets, text_targets, wire_targets
from .registry import TARGETS, Target

__all__ = [
    "TARGETS", "Target", "bus_targets", "kdbus_targets", "state_targets", "text_targets",
    "wire_targets",
]  # fmt: skip
