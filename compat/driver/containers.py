"""org.jitney.Containers1: sandbox launchers get a socket for each container.

Invariant: an instance's path is never used again; it is listed from AddServer's reply until its
socket is gone and its last client has left, which InstanceRemoved tells, once. What a container is
called is what its launcher said; who its clients are is what the kernel says.

The interface is modelled on org.freedesktop.DBus.Containers1 of dbus's development branch, which no
release has, and does not go by that name as long as it may change. There, the launcher's end stops
the listening and leaves the clients alone, and so it does here. The named arguments are ours.
`org.jitney.Policy` (as): lines as in jitney.compat.endpoints.policy. Without it all may be done in
a container that its user may do on the bus, but for opening further ones. `org.jitney.Socket` (h):
the launcher's own listening socket, in place of one that the bus makes.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from .. import wire
from ..errors import (
    FAILED,
    INVALID_ARGS,
    NOT_CONTAINER,
    DBusError,
)
from .bus import peer_of
from .table import DRIVER_PATH, Interface, Method, Property, arg

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

    from ..endpoints.doors import Door, Doors
    from .driver import Driver

NAME = "org.jitney.Containers1"
_PATH = "/org/jitney/Containers1/c"
_POLICY = "org.jitney.Policy"
_SOCKET = "org.jitney.Socket"
_ARGUMENTS = {_POLICY: "as", _SOCKET: "h"}


class Container:
    """What a launcher said of one, and who it was."""

    def __init__(
        self, instance: str, kind: str, name: str, metadata: dict[str, Any], creator: dict[str, Any]
    ) -> None:
        self.instance = instance
        self.kind = kind
        self.name = name
        self.metadata = metadata
        self.creator = creator


def add_server(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    from ..endpoints.doors import check_creator
    from ..endpoints.passed import server_of

    check_creator(conn)
    kind, name, metadata, given = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)
    if "." not in kind or not kind.replace(".", "").replace("_", "").replace("-", "").isalnum():
        raise DBusError(
            INVALID_ARGS, f"'{kind}' is not a container type: it is a name like a bus's"
        )
    for key, (signature, _) in given.items():
        if key not in _ARGUMENTS:
            raise DBusError(INVALID_ARGS, f"Named argument {key} is not understood")
        wanted = _ARGUMENTS[key]
        if signature != wanted:
            raise DBusError(INVALID_ARGS, f"{key} must be of type {wanted}, not {signature}")
    doors = driver.context.endpoints()
    server = server_of(msg, given[_SOCKET][1]) if _SOCKET in given else None
    try:
        path = f"{_folder(doors)}/dbus-{os.urandom(6).hex()}" if server is None else ""
        doors.last_container += 1
        number = doors.last_container
        lines = given[_POLICY][1] if _POLICY in given else []
        options = {"filter": _POLICY in given}
        door = doors.open(conn, f"container-{number}", path, lines, options, server)
    except DBusError:
        if server is not None:
            server.close()
        raise
    instance = f"{_PATH}{number}"
    describe(driver, door, Container(instance, kind, name, metadata, _creator(conn)))
    door.lingers = True
    # Who brought a socket knows where it is.
    return wire.marshal("oays", (instance, path.encode() + b"\0", door.server.address))


def describe(driver: Driver, door: Door, about: Container) -> None:
    """Makes a door that of a container."""
    door.container = about
    door.credentials |= {
        "org.jitney.ContainerInstance": ("o", about.instance),
        "org.jitney.ContainerType": ("s", about.kind),
        "org.jitney.ContainerName": ("s", about.name),
    }
    door.ended = functools.partial(_removed, driver, about.instance)


def stop_instance(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    doors, door = _instance(driver, conn, msg)
    doors.remove(door)
    return b""


def stop_listening(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    doors, door = _instance(driver, conn, msg)
    door.lingers = True
    doors.shut_or_remove(door)
    return b""


def describe_instance(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    _, door = _instance(driver, conn, msg)
    about = door.container
    assert about is not None
    return wire.marshal("a{sv}ssa{sv}", (about.creator, about.kind, about.name, about.metadata))


def get_connection_instance(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    name = arg(msg)
    peer = peer_of(driver, name, "container instance")
    about = None
    if peer is not None and peer.endpoint is not None and peer.endpoint.holder is not None:
        about = peer.endpoint.holder.container
    if about is None:
        raise DBusError(NOT_CONTAINER, f"Connection '{name.decode()}' is not in a container")
    return wire.marshal(
        "oa{sv}ssa{sv}", (about.instance, about.creator, about.kind, about.name, about.metadata)
    )


def _instance(driver: Driver, conn: Connection, msg: Message) -> tuple[Doors, Door]:
    from ..endpoints.doors import check_creator

    check_creator(conn)
    doors = driver.context.endpoints()
    wanted = arg(msg).decode()
    for door in doors.by_name.values():
        if door.container is not None and door.container.instance == wanted:
            return doors, door
    raise DBusError(NOT_CONTAINER, f"There is no container instance '{wanted}'")


def _folder(doors: Doors) -> str:
    """Where sockets of containers are made, for this bus alone."""
    if doors.folder is None or not os.path.isdir(doors.folder):
        # What nobody has touched for long may have been cleared away.
        import tempfile  # a third of a MB, which a bus without containers does without

        runtime = os.environ.get("XDG_RUNTIME_DIR")
        for place in (runtime, "/run/dbus", tempfile.gettempdir()):
            if place and os.access(place, os.W_OK | os.X_OK):
                try:
                    doors.folder = tempfile.mkdtemp(prefix="dbus-containers-", dir=place)
                    os.chmod(doors.folder, 0o711)
                except OSError:
                    continue
                break
        else:
            raise DBusError(FAILED, "There is no folder to make sockets of containers in")
    assert doors.folder is not None
    return doors.folder


def _creator(conn: Connection) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if conn.creds is not None and conn.creds.pid is not None:
        found["ProcessID"] = ("u", conn.creds.pid)
    if conn.user.uid is not None:
        found["UnixUserID"] = ("u", conn.user.uid)
    return found


def _removed(driver: Driver, instance: str) -> None:
    driver.bus.emit(
        None,
        wire.message(
            wire.SIGNAL,
            driver.next_serial(),
            flags=wire.NO_REPLY,
            path=DRIVER_PATH,
            interface=NAME.encode(),
            member=b"InstanceRemoved",
            signature="o",
            body=wire.string(instance),
        ),
    )


INTERFACE = Interface(
    NAME,
    [
        Method("AddServer", "ssa{sv}a{sv}", "oays", add_server, privileged=True),
        Method("StopInstance", "o", "", stop_instance, privileged=True, ack=True),
        Method("StopListening", "o", "", stop_listening, privileged=True, ack=True),
        Method("DescribeInstance", "o", "a{sv}ssa{sv}", describe_instance, privileged=True),
        Method("GetConnectionInstance", "s", "oa{sv}ssa{sv}", get_connection_instance),
    ],
    properties=[Property("SupportedArguments", "as", lambda driver: list(_ARGUMENTS))],
    signals="""\
    <signal name="InstanceRemoved">
      <arg type="o"/>
    </signal>
""",
    feature=True,
)
