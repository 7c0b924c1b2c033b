"""The bus as a participant of itself: the object org.freedesktop.DBus and its interfaces.

Invariant: each call gets one reply, error or result, before `Driver.call()` returns, unless its
handler has taken it over (StartServiceByName) or the caller wants none and the result says
nothing. What is refused, in which order, and in which words is dbus-daemon's.

Each interface has a file of its own with handlers and a table; this one looks up, checks, calls
and sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from jitney.broker.errors import Refused
from jitney.broker.fds import FdSet
from jitney.broker.message import Message

from .. import wire
from ..errors import (
    ACCESS_DENIED,
    INVALID_ARGS,
    NAMES,
    UNKNOWN_INTERFACE,
    UNKNOWN_METHOD,
    DBusError,
)
from ..front import loginfo
from . import bus as bus_interface
from . import introspectable, monitoring, peer, properties, signals, stats
from .table import DRIVER, DRIVER_PATH, Interface, Method

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from jitney.broker.bus import Bus
    from jitney.broker.connection import Connection

INTERFACES = (
    bus_interface.INTERFACE,
    properties.INTERFACE,
    introspectable.INTERFACE,
    monitoring.INTERFACE,
    stats.INTERFACE,
    peer.INTERFACE,
)
"""In the order in which they are described, and searched when a call names none."""

NOT_ACTIVE = b":not.active.yet"
"""Whom the bus answers if he has not said Hello."""

_SYSTEMD_ACTIVATOR = b"org.freedesktop.systemd1.Activator"
_PEER = b"org.freedesktop.DBus.Peer"


def _by_name() -> dict[tuple[bytes | None, bytes], tuple[Interface, Method]]:
    found: dict[tuple[bytes | None, bytes], tuple[Interface, Method]] = {}
    for interface in INTERFACES:
        for method in interface.methods:
            entry = (interface, method)
            found[interface.name.encode(), method.name.encode()] = entry
            found.setdefault((None, method.name.encode()), entry)
    return found


METHODS = _by_name()
"""By interface and member; under None stands what a call without an interface means."""


def introspection_xml(path: bytes = DRIVER_PATH) -> str:
    """What Introspect says at `path`."""
    return introspectable.xml(INTERFACES, path)


class Context(Protocol):
    """What the driver asks of the daemon around it."""

    guid: str
    """GetId's answer: the bus's own id, not an address's."""
    systemd_activation: bool
    uid: int
    """Who the bus runs as. This user and root are privileged."""

    def reload(self) -> None:
        """Reads the configuration again, ActivatableServicesChanged included. Raises DBusError."""

    def stats(self) -> Mapping[str, int]:
        """Numbers for GetStats, by its keys; what is missing is 0, further keys are listed too."""

    def connection_stats(self, conn: Connection) -> Mapping[str, int]:
        """The same for GetConnectionStats."""


class Activation(Protocol):
    """What the driver asks of activation; see jitney.compat.activation."""

    def start_service(self, conn: Any, msg: Any, name: bytes) -> None: ...

    def update_environment(self, variables: Mapping[str, str]) -> None: ...

    def activatable_names(self) -> list[bytes]: ...

    def systemd_failure(self, conn: Any, msg: Any) -> None: ...


class Driver:
    """The driver of one bus.

    Serials count for all receivers together: a client only needs those of one connection to
    differ. `stats_serial` and `connection_stats_serial` are how often each was asked for.
    """

    def __init__(self, bus: Bus, activation: Activation, context: Context) -> None:
        self.bus = bus
        self.activation = activation
        self.context = context
        self.interfaces = INTERFACES
        self.id_body = wire.string(context.guid)
        self.serial = 0
        self.stats_serial = 0
        self.connection_stats_serial = 0

    @property
    def front(self) -> Any:
        return self.bus.front

    def next_serial(self) -> int:
        """A serial for a message of the bus's own; 0 is none."""
        self.serial = self.serial + 1 & 0xFFFFFFFF or 1
        return self.serial

    def find(self, name: bytes) -> Connection | None:
        """The connection that owns a name, which need not be a valid one."""
        return self.bus.lookup(name) if name else None

    # What comes in

    def call(self, conn: Connection, msg: Message) -> bool:
        """Handles a message to org.freedesktop.DBus; False if it was answered with an error."""
        if msg.type != wire.CALL:
            return self._not_a_call(conn, msg)
        try:
            method = self._method(conn, msg)
            body = method.handler(self, conn, msg)
        except DBusError as error:
            self.error(conn, msg.serial, error.name, error.text)
            return False
        except Refused as refused:
            self.error(conn, msg.serial, NAMES[refused.code], refused.text)
            return False
        if body is not None and not (method.ack and msg.flags & wire.NO_REPLY):
            self.reply(conn, msg.serial, method.out_sig, body)
        return True

    def _method(self, conn: Connection, msg: Message) -> Method:
        """What the call means, if the caller may call it there and like this; or DBusError."""
        member = msg.member or b""
        found = METHODS.get((msg.interface, member))
        if found is None:
            raise self._unknown(msg)
        interface, method = found
        if not method.any_path and msg.path != DRIVER_PATH:
            if not interface.any_path:
                raise self._unknown(msg)
            if method.privileged:
                self.check_privileged(conn, method.name)
            raise DBusError(
                ACCESS_DENIED,
                f"Method '{method.name}' is only available at the canonical object path"
                f" '{DRIVER_PATH.decode()}'",
            )
        if method.privileged:
            self.check_privileged(conn, method.name)
        signature = msg.signature
        if signature != method.in_sig:
            raise DBusError(
                INVALID_ARGS,
                f"Call to {method.name} has wrong args ({signature.decode()},"
                f" expected {method.in_sig.decode()})\n",
            )
        return method

    def _unknown(self, msg: Message) -> DBusError:
        text = f"{DRIVER.decode()} does not understand message {(msg.member or b'').decode()}"
        wanted = msg.interface
        if wanted is None:
            return DBusError(UNKNOWN_METHOD, text)
        canonical = msg.path == DRIVER_PATH
        for interface in INTERFACES:
            if interface.name.encode() == wanted and (canonical or interface.any_path):
                return DBusError(UNKNOWN_METHOD, text)
        return DBusError(UNKNOWN_INTERFACE, text)

    def _not_a_call(self, conn: Connection, msg: Message) -> bool:
        # The bus calls nobody, so no reply is its business, and of signals only this one.
        if (
            msg.type == wire.SIGNAL
            and msg.interface == _SYSTEMD_ACTIVATOR
            and msg.member == b"ActivationFailure"
        ):
            try:
                self.check_privileged(conn, "ActivationFailure")
            except DBusError as error:
                self.error(conn, msg.serial, error.name, error.text)
                return False
            self.activation.systemd_failure(conn, msg)
        return True

    def undirected(self, conn: Connection, msg: Message) -> None:
        """A call to nobody: it is libdbus, below dbus-daemon, that answers it, and so without
        sender or destination, and whether the caller wants it or not."""
        if msg.type != wire.CALL:
            return
        member = (msg.member or b"").decode()
        if msg.interface == _PEER:
            if member == "Ping":
                self._bare(conn, msg, None, "", b"")
            elif member == "GetMachineId":
                try:
                    self._bare(conn, msg, None, "s", wire.string(peer.machine_id()))
                except DBusError as error:
                    self._bare(conn, msg, error.name, "s", wire.string(error.text))
            else:
                text = "Unknown method invoked on org.freedesktop.DBus.Peer interface"
                self._bare(conn, msg, UNKNOWN_METHOD, "s", wire.string(text))
            return
        interface = (msg.interface or b"(null)").decode()
        text = (
            f'Method "{member}" with signature "{msg.signature.decode()}"'
            f' on interface "{interface}" doesn\'t exist\n'
        )
        self._bare(conn, msg, UNKNOWN_METHOD, "s", wire.string(text))

    def check_privileged(self, conn: Connection, method: str) -> None:
        """DBusError(AccessDenied), and a word in the log, unless root or our own user calls."""
        uid = conn.user.uid
        if uid is not None and (uid == self.context.uid or uid == 0):
            return
        who = "unknown uid" if uid is None else f"uid {uid}"
        text = (
            f"rejected attempt to call {method} by connection {conn.label}"
            f" ({loginfo(conn)}) with {who}"
        )
        self.front.log("security", text)
        raise DBusError(ACCESS_DENIED, text)

    # What goes out

    def reply(
        self, conn: Connection, serial: int, signature: str, body: bytes, fd: int | None = None
    ) -> None:
        """The result of call `serial`; `fd`, if any, is sent along and closed."""
        fds = None if fd is None else FdSet([fd])
        data = wire.message(
            wire.RETURN,
            self.next_serial(),
            flags=wire.NO_REPLY,
            destination=conn.unique_name or NOT_ACTIVE,
            reply_serial=serial,
            signature=signature,
            body=body,
            n_fds=0 if fd is None else 1,
        )
        if fds is None:
            self.bus.emit(conn, data)
        else:
            self.bus.emit(conn, data, fds)

    def _error(self, conn: Connection | None, serial: int, name: str, text: str) -> bytes:
        return wire.message(
            wire.ERROR,
            self.next_serial(),
            flags=wire.NO_REPLY,
            destination=DRIVER if conn is None else conn.unique_name or NOT_ACTIVE,
            error_name=name.encode(),
            reply_serial=serial,
            signature="s",
            body=wire.string(text),
        )

    def error(self, conn: Connection, serial: int, name: str, text: str) -> None:
        """The error `name` in reply to message `serial`, wanted or not, as dbus-daemon does."""
        self.bus.emit(conn, self._error(conn, serial, name, text))

    def capture_error(self, conn: Connection | None, serial: int, name: str, text: str) -> None:
        """Shows monitors an error that `conn` (None: the bus) might have got but does not."""
        msg = Message()
        if not msg.load(self._error(conn, serial, name, text)):
            raise ValueError(f"the driver made an invalid error {name}")
        self.bus.capture(msg, None, conn)

    def _bare(
        self, conn: Connection, msg: Message, error: str | None, signature: str, body: bytes
    ) -> None:
        data = wire.message(
            wire.RETURN if error is None else wire.ERROR,
            self.next_serial(),
            flags=wire.NO_REPLY,
            error_name=None if error is None else error.encode(),
            sender=None,
            reply_serial=msg.serial,
            signature=signature,
            body=body,
        )
        # It is libdbus's answer, not the bus's: monitors do not see it.
        self.bus.emit(conn, data, None, True)

    # What the core reports

    def name_owner_changed(
        self, name: bytes, old: Connection | None, new: Connection | None
    ) -> None:
        before = old.unique_name if old is not None else b""
        after = new.unique_name if new is not None else b""
        data = signals.name_owner_changed(self.next_serial(), name, before, after)
        self.bus.emit(None, data)

    def name_acquired(self, conn: Connection, name: bytes) -> None:
        data = signals.name_acquired(self.next_serial(), conn.unique_name, name)
        self.bus.emit(conn, data)

    def name_lost(self, conn: Connection, name: bytes) -> None:
        self.bus.emit(conn, signals.name_lost(self.next_serial(), conn.unique_name, name))

    def activatable_services_changed(self) -> None:
        """The service files, or where they are looked for, may have changed."""
        self.bus.emit(None, signals.activatable_services_changed(self.next_serial()))
