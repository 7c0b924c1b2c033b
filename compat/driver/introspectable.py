"""org.freedesktop.DBus.Introspectable: the XML description of the bus's objects.

Invariant: the XML is derived from the same tables that calls are answered by.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .. import wire
from .table import DRIVER_PATH, Interface, Method

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

    from .driver import Driver

_HEAD = """\
<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>
"""
# How to find the bus's object from the paths above it.
_CHILDREN = {
    b"/": '  <node name="org/freedesktop/DBus"/>\n',
    b"/org": '  <node name="freedesktop/DBus"/>\n',
    b"/org/freedesktop": '  <node name="DBus"/>\n',
}


def xml(interfaces: Iterable[Interface], path: bytes) -> str:
    """Description of the object at `path`: away from the bus's own there is less of it."""
    canonical = path == DRIVER_PATH
    parts = [_HEAD]
    for interface in interfaces:
        if canonical or interface.any_path:
            parts.append(f'  <interface name="{interface.name}">\n')
            for method in interface.methods:
                parts.append(f'    <method name="{method.name}">\n')
                parts += _arguments(method.in_sig.decode(), "in")
                parts += _arguments(method.out_sig, "out")
                parts.append("    </method>\n")
            for item in interface.properties:
                parts.append(
                    f'    <property name="{item.name}" type="{item.signature}" access="read">\n'
                    '      <annotation name="org.freedesktop.DBus.Property.EmitsChangedSignal"'
                    ' value="const"/>\n'
                    "    </property>\n"
                )
            parts.append(interface.signals)
            parts.append("  </interface>\n")
    parts.append(_CHILDREN.get(path, ""))
    parts.append("</node>\n")
    return "".join(parts)


def _arguments(signature: str, direction: str) -> list[str]:
    return [
        f'      <arg direction="{direction}" type="{part}"/>\n'
        for part in wire.split_signature(signature)
    ]


def introspect(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    return wire.string(xml(driver.interfaces, msg.path or DRIVER_PATH))


INTERFACE = Interface(
    "org.freedesktop.DBus.Introspectable",
    [Method("Introspect", "", "s", introspect, any_path=True)],
    any_path=True,
)
