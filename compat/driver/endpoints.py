"""org.jitney.Endpoints1: opening more doors to the bus, with a policy for those who come by them.

Invariant: root and the bus's own user alone may, and nobody who came by an endpoint himself. An
endpoint is there when the reply to Add is sent; its end is told to who added it.

The interface is our own; dbus-daemon has none like it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import wire
from ..errors import INVALID_ARGS, DBusError
from .table import DRIVER, DRIVER_PATH, Interface, Method, arg

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

    from ..listen import Server
    from .driver import Driver

NAME = "org.jitney.Endpoints1"


def add(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    from ..endpoints.doors import check_creator

    check_creator(conn)
    name, path, lines, given = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)
    return _open(driver, conn, name, path, lines, given, None)


def add_with_socket(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    from ..endpoints.doors import check_creator
    from ..endpoints.passed import server_of

    check_creator(conn)
    name, place, lines, given = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)
    server = server_of(msg, place)
    try:
        return _open(driver, conn, name, "", lines, given, server)
    except DBusError:
        server.close()
        raise


def _open(
    driver: Driver,
    conn: Connection,
    name: str,
    path: str,
    lines: list[str],
    given: dict[str, tuple[str, Any]],
    server: Server | None,
) -> bytes:
    options = {}
    for key, (signature, value) in given.items():
        if signature != "b":
            raise DBusError(INVALID_ARGS, f'"{key}" must be of type b, not {signature}')
        options[key] = value
    doors = driver.context.endpoints()
    door = doors.open(conn, name, path, lines, options, server)
    if door.creator is not None:
        door.ended = ending(driver, conn, name)
    return wire.string(door.server.address)


def remove(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    from ..endpoints.doors import check_creator

    check_creator(conn)
    doors = driver.context.endpoints()
    doors.remove(doors.get(arg(msg).decode()))
    return b""


def list_endpoints(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    import json

    doors = driver.context.endpoints()
    found = [door.about() for door in doors.by_name.values()]
    return wire.string(json.dumps(found, separators=(",", ":")))


def learned(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    from ..endpoints.policy import written

    door = driver.context.endpoints().get(arg(msg).decode())
    if door.endpoint.learned is None:
        raise DBusError(INVALID_ARGS, f"Endpoint {door.name} does not learn")
    return wire.marshal("as", [written(door.endpoint.learned)])


def ending(driver: Driver, conn: Connection, name: str) -> Callable[[], None]:
    """What is to be done when the endpoint that `conn` added is over."""
    return functools.partial(_removed, driver, conn, name)


def _removed(driver: Driver, conn: Connection, name: str) -> None:
    if not conn.registered or conn.transport is None or conn.transport.conn is not conn:
        return
    driver.bus.emit(
        conn,
        wire.message(
            wire.SIGNAL,
            driver.next_serial(),
            flags=wire.NO_REPLY,
            path=DRIVER_PATH,
            interface=NAME.encode(),
            member=b"Removed",
            destination=conn.unique_name,
            sender=DRIVER,
            signature="s",
            body=wire.string(name),
        ),
    )


INTERFACE = Interface(
    NAME,
    [
        Method("Add", "ssasa{sv}", "s", add, privileged=True),
        Method("AddWithSocket", "shasa{sv}", "s", add_with_socket, privileged=True),
        Method("Remove", "s", "", remove, privileged=True, ack=True),
        Method("List", "", "s", list_endpoints, privileged=True),
        Method("Learned", "s", "as", learned, privileged=True),
    ],
    signals="""\
    <signal name="Removed">
      <arg type="s"/>
    </signal>
""",
    feature=True,
)
