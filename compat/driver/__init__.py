"""The bus as a participant of itself: the object org.freedesktop.DBus and its interfaces.

Invariant: each interface has a file of its own with handlers and a table; `driver.py` looks up,
checks, calls and sends, and knows none of them by name.
"""

from __future__ import annotations

from .driver import NOT_ACTIVE, Activation, Context, Driver
from .table import DRIVER_PATH

# Only now: the interfaces' compiled modules need the driver's to be there.
from . import (  # isort: skip
    bus,
    containers,
    endpoints,
    inspect,
    introspectable,
    monitoring,
    peer,
    policy,
    properties,
    stats,
    trace,
    upgrade,
)

__all__ = ["INTERFACES", "NOT_ACTIVE", "Activation", "Context", "Driver", "introspection_xml"]

INTERFACES = (
    bus.INTERFACE,
    properties.INTERFACE,
    introspectable.INTERFACE,
    monitoring.INTERFACE,
    stats.INTERFACE,
    peer.INTERFACE,
    policy.INTERFACE,
    inspect.INTERFACE,
    trace.INTERFACE,
    upgrade.INTERFACE,
    endpoints.INTERFACE,
    containers.INTERFACE,
)
"""In the order in which they are described, and searched when a call names none. Our own come last:
what dbus-daemon describes is described as it does."""


def introspection_xml(path: bytes = DRIVER_PATH) -> str:
    """What Introspect says at `path`."""
    return introspectable.xml(INTERFACES, path)
