"""jitney.testing: a message bus for the tests of other programs.

Invariant: each `Bus` is one of its own, with its own address, files, faults and journal; when its
block ends, its socket, its directory and the services that it started are gone.

    async with Bus() as bus:        # in this process, on the running event loop
    with Bus() as bus:              # in a child process: for clients that block

`jitney.testing.plugin` has fixtures for pytest; docs/testing.md tells the whole story.
"""

from __future__ import annotations

from .bus import Bus
from .config import Allow, Deny
from .faults import Fault, Faults
from .journal import Entry, Journal

__all__ = ["Allow", "Bus", "Deny", "Entry", "Fault", "Faults", "Journal"]
