"""org.freedesktop.DBus.Properties: what this bus says it can do.

Invariant: Features lists what is true of this process, and nothing here can be set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import wire
from ..errors import PROPERTY_READ_ONLY, UNKNOWN_INTERFACE, UNKNOWN_PROPERTY, DBusError
from .table import Interface, Method, Property, arg

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

    from .driver import Driver


def features(driver: Driver) -> list[str]:
    """Specification, "Message Bus Properties": in alphabetical order, as dbus-daemon has them."""
    found = ["ActivatableServicesChanged", "HeaderFiltering"]
    if driver.bus.guard is not None:
        found += [module.feature for module in driver.bus.guard.modules]
    if driver.context.systemd_activation:
        found.append("SystemdActivation")
    return sorted(found)


def interfaces(driver: Driver) -> list[str]:
    """The optional interfaces of the bus's object."""
    return [interface.name for interface in driver.interfaces if interface.feature]


PROPERTIES = (Property("Features", "as", features), Property("Interfaces", "as", interfaces))
"""Those of org.freedesktop.DBus."""


def _interface(driver: Driver, msg: Message) -> Interface:
    name = arg(msg).decode()
    for interface in driver.interfaces:
        if interface.name == name:
            return interface
    raise DBusError(UNKNOWN_INTERFACE, f'Interface "{name}" not found')


def _property(driver: Driver, msg: Message) -> Property:
    interface = _interface(driver, msg)
    name = arg(msg, 1).decode()
    for found in interface.properties:
        if found.name == name:
            return found
    raise DBusError(UNKNOWN_PROPERTY, f'Property "{interface.name}.{name}" not found')


def get(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    found = _property(driver, msg)
    return wire.marshal("v", [(found.signature, found.getter(driver))])


def get_all(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    found = _interface(driver, msg).properties
    return wire.marshal("a{sv}", [{p.name: (p.signature, p.getter(driver)) for p in found}])


def set_(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    found = _property(driver, msg)
    interface = arg(msg).decode()
    raise DBusError(PROPERTY_READ_ONLY, f"Property '{interface}.{found.name}' cannot be set")


INTERFACE = Interface(
    "org.freedesktop.DBus.Properties",
    [
        Method("Get", "ss", "v", get),
        Method("GetAll", "s", "a{sv}", get_all),
        Method("Set", "ssv", "", set_),
    ],
    signals="""\
    <signal name="PropertiesChanged">
      <arg type="s" name="interface_name"/>
      <arg type="a{sv}" name="changed_properties"/>
      <arg type="as" name="invalidated_properties"/>
    </signal>
""",
)
