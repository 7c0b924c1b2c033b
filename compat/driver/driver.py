# cython: infer_types=True
"""Driver: what org.freedesktop.DBus does with a call, and how its word gets out.

Invariant: each call gets one reply, error or result, before `Driver.call()` returns, unless its
handler has taken it over (StartServiceByName) or the caller wants none and the result says
nothing. What is refused, in which order, and in which words is dbus-daemon's.

Each interface has a file of its own with handlers and a table; this one looks up, checks, calls
and sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.bus import Bus
from jitney.broker.connection import CLOSED, Connection
from jitney.broker.errors import ACCESS_DENIED as NOT_ALLOWED
from jitney.broker.errors import Refused
from jitney.broker.fds import FdSet
from jitney.broker.mem import Map64
from jitney.broker.message import Message

from .. import wire
from ..endpoints.guard import stops
from ..errors import (
    ACCESS_DENIED,
    INVALID_ARGS,
    NAMES,
    UNKNOWN_INTERFACE,
    UNKNOWN_METHOD,
    DBusError,
)
from ..front import loginfo
from . import peer
from .outgoing import Outgoing, error_field, tail
from .signals import Signals
from .table import DRIVER, DRIVER_PATH, Interface, Method

if not cython.compiled:
    from jitney.broker.mem import hash64, of_bytes, same

    from ..wire import string

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ..endpoints.doors import Doors

NOT_ACTIVE = b":not.active.yet"
"""Whom the bus answers if he has not said Hello."""

_SYSTEMD_ACTIVATOR = b"org.freedesktop.systemd1.Activator"
_PEER = b"org.freedesktop.DBus.Peer"


_STRING_TAIL = tail("s")


class Context(Protocol):
    """What the driver asks of the daemon around it."""

    guid: str
    """GetId's answer: the bus's own id, not an address's."""
    systemd_activation: bool
    uid: int
    """Who the bus runs as. This user and root are privileged."""

    def reload(self) -> None:
        """Reads the configuration again, ActivatableServicesChanged included. Raises DBusError."""

    def upgrade(self, conn: Connection, serial: int, command: str) -> None:
        """Begins to hand over to a new process, which answers the call. Raises DBusError."""

    def stats(self) -> Mapping[str, int]:
        """Numbers for GetStats, by its keys; what is missing is 0, further keys are listed too."""

    def connection_stats(self, conn: Connection) -> Mapping[str, int]:
        """The same for GetConnectionStats."""

    def about(self) -> Mapping[str, Any]:
        """What org.jitney.Inspect1 says of the daemon, beyond the bus itself."""

    def endpoints(self) -> Doors:
        """The bus's other doors."""


class Activation(Protocol):
    """What the driver asks of activation; see jitney.compat.activation."""

    def start_service(self, conn: Any, msg: Any, name: bytes) -> None: ...

    def update_environment(self, variables: Mapping[str, str]) -> None: ...

    def activatable_names(self) -> list[bytes]: ...

    def systemd_failure(self, conn: Any, msg: Any) -> None: ...


# A copy that is a C integer when compiled.
_CLOSED = CLOSED


class Driver:
    """The driver of one bus.

    Serials count for all receivers together: a client only needs those of one connection to
    differ. `stats_serial` and `connection_stats_serial` are how often each was asked for.
    """

    def __init__(
        self,
        bus: Bus,
        activation: Activation,
        context: Context,
        interfaces: tuple[Interface, ...],
    ) -> None:
        self.bus = bus
        self.activation = activation
        self.context = context
        self.interfaces = interfaces
        self.id_body = string(context.guid)
        self.out = Outgoing()
        self.signals = Signals()
        self.methods = Map64()
        for interface in interfaces:
            for method in interface.methods:
                self.learn(method)
        self.serial = 0
        self.stats_serial = 0
        self.connection_stats_serial = 0

    @property
    def front(self) -> Any:
        return self.bus.front

    def learn(self, method: Method) -> None:
        # By member; those of the same name in a chain, in the order of their interfaces.
        key = hash64(of_bytes(method.member), 0, len(method.member))
        before = self.methods.get(key)
        method.next = None
        if before is None:
            self.methods.put(key, method)
            return
        while before.next is not None:
            before = before.next
        before.next = method

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
            if conn.endpoint is not None and stops(self, conn, msg):
                return False
            method = self.method(conn, msg)
            body = method.handler(self, conn, msg)
        except DBusError as error:
            self.error(conn, msg.serial, error.name, error.text)
            return False
        except Refused as refused:
            if conn.counts is not None:
                conn.counts.refused(refused.code)
            if self.bus.monitors and refused.code == NOT_ALLOWED:
                # Owning a name is all that the core's policy refuses here.
                policy = conn.policy if type(refused) is Refused else None
                self.front.judged(conn, None, msg, refused.code, refused.text, policy)
            self.error(conn, msg.serial, NAMES[refused.code], refused.text)
            return False
        if body is not None and not (method.ack and msg.flags & 1):
            self.answer(conn, msg.serial, method.tail, body)
        return True

    def find_method(self, msg: Message) -> Method | None:
        """The method that the call names; without an interface, the first of its name."""
        p = msg.p
        method = self.methods.get(hash64(p, msg.member_off, msg.member_len))
        while method is not None:
            if same(p, msg.member_off, msg.member_len, method.member) and (
                msg.iface_len < 0 or same(p, msg.iface_off, msg.iface_len, method.interface)
            ):
                return method
            method = method.next
        return None

    def method(self, conn: Connection, msg: Message) -> Method:
        """What the call means, if the caller may call it there and like this; or DBusError."""
        method = self.find_method(msg)
        if method is None:
            raise self._unknown(msg)
        if not method.any_path and not same(msg.p, msg.path_off, msg.path_len, DRIVER_PATH):
            if not method.interface_any_path:
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
        in_sig = method.in_sig
        n = max(0, msg.sig_len)
        if n != len(in_sig) or (n and not same(msg.p, msg.sig_off, n, in_sig)):
            raise DBusError(
                INVALID_ARGS,
                f"Call to {method.name} has wrong args ({msg.signature.decode()},"
                f" expected {in_sig.decode()})\n",
            )
        return method

    def _unknown(self, msg: Message) -> DBusError:
        text = f"{DRIVER.decode()} does not understand message {(msg.member or b'').decode()}"
        wanted = msg.interface
        if wanted is None:
            return DBusError(UNKNOWN_METHOD, text)
        canonical = msg.path == DRIVER_PATH
        for interface in self.interfaces:
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
                    self._bare(conn, msg, None, "s", string(peer.machine_id()))
                except DBusError as error:
                    self._bare(conn, msg, error.name, "s", string(error.text))
            else:
                text = "Unknown method invoked on org.freedesktop.DBus.Peer interface"
                self._bare(conn, msg, UNKNOWN_METHOD, "s", string(text))
            return
        interface = (msg.interface or b"(null)").decode()
        text = (
            f'Method "{member}" with signature "{msg.signature.decode()}"'
            f' on interface "{interface}" doesn\'t exist\n'
        )
        self._bare(conn, msg, UNKNOWN_METHOD, "s", string(text))

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
        self.front.log("security", text, "denied", conn=conn, reason="privileged", method=method)
        if conn.counts is not None:
            conn.counts.refused(NOT_ALLOWED)
        raise DBusError(ACCESS_DENIED, text)

    # What goes out

    def answer(self, conn: Connection, serial: int, end: bytes, body: bytes) -> None:
        """The result of call `serial`; `end` is the `tail()` of its signature."""
        out = self.out
        out.write(
            2, self.next_serial(), b"", conn.unique_name or NOT_ACTIVE, b"", serial, end, body
        )
        self.bus.post(conn, out.buffer)

    def reply(
        self, conn: Connection, serial: int, signature: str, body: bytes, fd: int | None = None
    ) -> None:
        """The result of call `serial`; `fd`, if any, is sent along and closed."""
        if fd is None:
            self.answer(conn, serial, tail(signature), body)
            return
        data = wire.message(
            wire.RETURN,
            self.next_serial(),
            flags=wire.NO_REPLY,
            destination=conn.unique_name or NOT_ACTIVE,
            reply_serial=serial,
            signature=signature,
            body=body,
            n_fds=1,
        )
        self.bus.emit(conn, data, FdSet([fd]))

    def _error(self, conn: Connection | None, serial: int, name: str, text: str) -> None:
        destination = DRIVER if conn is None else conn.unique_name or NOT_ACTIVE
        self.out.write(
            3,
            self.next_serial(),
            b"",
            destination,
            error_field(name),
            serial,
            _STRING_TAIL,
            string(text),
        )

    def error(self, conn: Connection, serial: int, name: str, text: str) -> None:
        """The error `name` in reply to message `serial`, wanted or not, as dbus-daemon does."""
        self._error(conn, serial, name, text)
        self.bus.post(conn, self.out.buffer)

    def capture_error(self, conn: Connection | None, serial: int, name: str, text: str) -> None:
        """Shows monitors an error that `conn` (None: the bus) might have got but does not."""
        self._error(conn, serial, name, text)
        msg = Message()
        if not msg.load(bytes(self.out.buffer)):
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
        bus = self.bus
        if bus.heard():
            before = old.unique_name if old is not None else b""
            after = new.unique_name if new is not None else b""
            bus.tell(self.signals.name_owner_changed(self.next_serial(), name, before, after))

    def name_acquired(self, conn: Connection, name: bytes) -> None:
        self.signals.name_acquired(self.out, self.next_serial(), conn.unique_name, name)
        self.bus.post(conn, self.out.buffer)

    def name_lost(self, conn: Connection, name: bytes) -> None:
        if conn.state == _CLOSED and not self.bus.monitors:
            return
        self.signals.name_lost(self.out, self.next_serial(), conn.unique_name, name)
        self.bus.post(conn, self.out.buffer)

    def activatable_services_changed(self) -> None:
        """The service files, or where they are looked for, may have changed."""
        msg = Message()
        msg.load(self.signals.activatable_services_changed(self.next_serial()))
        self.bus.tell(msg)
