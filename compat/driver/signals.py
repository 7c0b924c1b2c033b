"""The signals the bus sends of itself, as whole messages.

Invariant: each is exactly what dbus-daemon sends: no reply expected, path and interface of
the bus, and a destination if it concerns only one connection.
"""

from __future__ import annotations

from .. import wire
from .table import DRIVER, DRIVER_PATH

INTROSPECTION = """\
    <signal name="NameOwnerChanged">
      <arg type="s"/>
      <arg type="s"/>
      <arg type="s"/>
    </signal>
    <signal name="NameLost">
      <arg type="s"/>
    </signal>
    <signal name="NameAcquired">
      <arg type="s"/>
    </signal>
    <signal name="ActivatableServicesChanged">
    </signal>
"""


def _signal(
    serial: int, member: bytes, destination: bytes | None, signature: str, body: bytes
) -> bytes:
    return wire.message(
        wire.SIGNAL,
        serial,
        flags=wire.NO_REPLY,
        path=DRIVER_PATH,
        interface=DRIVER,
        member=member,
        destination=destination,
        signature=signature,
        body=body,
    )


def name_owner_changed(serial: int, name: bytes, old: bytes, new: bytes) -> bytes:
    """Broadcast: `name` went from the unique name `old` to `new`; nobody is b""."""
    return _signal(serial, b"NameOwnerChanged", None, "sss", wire.strings(name, old, new))


def name_acquired(serial: int, destination: bytes, name: bytes) -> bytes:
    return _signal(serial, b"NameAcquired", destination, "s", wire.string(name))


def name_lost(serial: int, destination: bytes, name: bytes) -> bytes:
    return _signal(serial, b"NameLost", destination, "s", wire.string(name))


def activatable_services_changed(serial: int) -> bytes:
    """Broadcast: the list of activatable names may be another one now (specification 0.38)."""
    return _signal(serial, b"ActivatableServicesChanged", None, "", b"")
