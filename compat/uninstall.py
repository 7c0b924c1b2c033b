"""`jitney uninstall`, as a subcommand of its own.

Invariant: it is in `install`, beside what it takes back.
"""

from __future__ import annotations

from .install import uninstall_main as main

__all__ = ["main"]
