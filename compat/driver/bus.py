# cython: infer_types=True
"""org.freedesktop.DBus: names, match rules, credentials and the rest of what a bus is for.

Invariant: a handler changes nothing once it has raised, and the signals of what it changed
have been sent when its reply is (Hello excepted, whose reply a client must see first).
"""

from __future__ import annotations

import os
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.connection import Connection
from jitney.broker.message import Message

from .. import wire
from ..endpoints.guard import visible
from ..errors import (
    ADT_AUDIT_DATA_UNKNOWN,
    FAILED,
    NAME_HAS_NO_OWNER,
    SELINUX_CONTEXT_UNKNOWN,
    UNIX_PROCESS_ID_UNKNOWN,
    DBusError,
)
from . import signals
from .driver import Driver
from .properties import PROPERTIES
from .table import DRIVER, Interface, Method, arg

if not cython.compiled:
    from jitney.broker.mem import load32

    from ..matchrule import parse
    from ..wire import string, u32

_MAX_ID = 0xFFFFFFFF


def peer_of(driver: Driver, name: bytes, what: str) -> Connection | None:
    """The connection that owns `name`; None stands for the bus itself.

    DBusError(NameHasNoOwner) when nobody does; `what` says what was wanted of it."""
    if name == DRIVER:
        return None
    conn = driver.find(name)
    if conn is None:
        raise DBusError(
            NAME_HAS_NO_OWNER, f"Could not get {what} of name '{name.decode()}': no such name"
        )
    return conn


def _last_u32(msg: Message) -> int:
    """The ``u`` that ends a body."""
    return load32(msg.p, msg.size - 4, msg.big)


# ---- being on the bus, and names


def hello(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    if conn.registered:
        raise DBusError(FAILED, "Already handled an Hello message")
    driver.bus.hello(conn)
    driver.reply(conn, msg.serial, "s", string(conn.unique_name))
    driver.bus.announce(conn)
    return None


def request_name(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    return u32(driver.bus.request_name(conn, arg(msg), _last_u32(msg)))


def release_name(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    return u32(driver.bus.release_name(conn, arg(msg)))


def name_has_owner(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    name = arg(msg)
    return u32(name == DRIVER or driver.find(name) is not None)


def get_name_owner(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    owner = peer_of(driver, arg(msg), "owner")
    return string(owner.unique_name if owner is not None else DRIVER)


def list_names(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    bus = driver.bus
    names = [DRIVER]
    names += [peer.unique_name for peer in bus.connections.values() if not peer.monitor]
    names += [name.name for name in bus.names if name.owner is not None]
    if conn.endpoint is not None:
        names = visible(conn, names)
    return wire.string_array(names)


def list_queued_owners(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    text = arg(msg)
    owner = peer_of(driver, text, "owners")
    if owner is None:
        return wire.string_array([DRIVER])
    name = driver.bus.names.get(text)
    if name is None:
        return wire.string_array([owner.unique_name])
    return wire.string_array([waiting.conn.unique_name for waiting in name.queue])


# ---- match rules


def add_match(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    rule = parse(arg(msg))
    if rule.eavesdrop:
        driver.check_privileged(conn, "AddMatch")
        if driver.bus.guard is not None:
            driver.bus.guard.check_eavesdrop(conn)
    driver.bus.add_match(conn, rule)
    return b""


def remove_match(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    driver.bus.remove_match(conn, parse(arg(msg)))
    return b""


# ---- activation


def start_service_by_name(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    driver.activation.start_service(conn, msg, arg(msg))
    return None


def list_activatable_names(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    names = [DRIVER, *driver.activation.activatable_names()]
    if conn.endpoint is not None:
        names = visible(conn, names)
    return wire.string_array(names)


def update_activation_environment(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    (variables,) = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)
    driver.activation.update_environment(variables)
    return b""


# ---- who is who


def get_connection_unix_user(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    name = arg(msg)
    peer = peer_of(driver, name, "UID")
    uid = os.getuid() if peer is None else peer.user.uid
    if uid is None:
        raise DBusError(FAILED, f"Could not determine UID for '{name.decode()}'")
    return u32(uid)


def get_connection_unix_process_id(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    name = arg(msg)
    peer = peer_of(driver, name, "PID")
    pid = os.getpid() if peer is None else peer.creds.pid
    if pid is None:
        raise DBusError(UNIX_PROCESS_ID_UNKNOWN, f"Could not determine PID for '{name.decode()}'")
    return u32(pid)


def get_adt_audit_session_data(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    # Solaris alone has such data.
    name = arg(msg)
    peer_of(driver, name, "audit session data")
    raise DBusError(
        ADT_AUDIT_DATA_UNKNOWN,
        f"Could not determine audit session data for '{name.decode()}'",
    )


def get_connection_selinux_security_context(
    driver: Driver, conn: Connection, msg: Message
) -> bytes | None:
    name = arg(msg)
    peer = peer_of(driver, name, "security context")
    # Without SELinux a label is something else, AppArmor's for example.
    guard = driver.bus.guard
    label = None
    for module in guard.modules if guard is not None else ():
        label = label or module.context_of(peer)
    if label is None:
        raise DBusError(
            SELINUX_CONTEXT_UNKNOWN, f"Could not determine security context for '{name.decode()}'"
        )
    return wire.marshal("ay", [label])


def get_connection_credentials(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    peer = peer_of(driver, arg(msg), "credentials")
    known: dict[str, tuple[str, Any]] = {}
    if peer is None:
        known["ProcessID"] = ("u", os.getpid())
        known["UnixUserID"] = ("u", os.getuid())
        return wire.marshal("a{sv}", [known])
    creds = peer.creds
    if creds.pid is not None:
        known["ProcessID"] = ("u", creds.pid)
    if peer.user.uid is not None and peer.user.uid <= _MAX_ID:
        known["UnixUserID"] = ("u", peer.user.uid)
        groups = creds.kernel_groups() if creds.uid == peer.user.uid else None
        if groups is not None:
            known["UnixGroupIDs"] = ("au", groups)
    if peer.endpoint is not None and peer.endpoint.holder is not None:
        known |= peer.endpoint.holder.credentials
    label = creds.label()
    if label is not None:
        # GVariant's way with strings of unknown encoding: the NUL belongs to the value.
        known["LinuxSecurityLabel"] = ("ay", label + b"\0")
    fd = creds.pidfd() if conn.accepts_fds else None
    if fd is None:
        return wire.marshal("a{sv}", [known])
    known["ProcessFD"] = ("h", 0)
    driver.reply(conn, msg.serial, "a{sv}", wire.marshal("a{sv}", [known]), fd)
    return None


# ---- the bus itself


def reload_config(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    driver.context.reload()
    return b""


def get_id(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    return driver.id_body


def _method(name: str, in_sig: str, out_sig: str, handler: Any, **more: bool) -> Method:
    return Method(name, in_sig, out_sig, handler, any_path=True, **more)


INTERFACE = Interface(
    "org.freedesktop.DBus",
    [
        _method("Hello", "", "s", hello),
        _method("RequestName", "su", "u", request_name),
        _method("ReleaseName", "s", "u", release_name),
        _method("StartServiceByName", "su", "u", start_service_by_name),
        Method(
            "UpdateActivationEnvironment", "a{ss}", "", update_activation_environment,
            privileged=True, ack=True,
        ),
        _method("NameHasOwner", "s", "b", name_has_owner),
        _method("ListNames", "", "as", list_names),
        _method("ListActivatableNames", "", "as", list_activatable_names),
        _method("AddMatch", "s", "", add_match, ack=True),
        _method("RemoveMatch", "s", "", remove_match, ack=True),
        _method("GetNameOwner", "s", "s", get_name_owner),
        _method("ListQueuedOwners", "s", "as", list_queued_owners),
        _method("GetConnectionUnixUser", "s", "u", get_connection_unix_user),
        _method("GetConnectionUnixProcessID", "s", "u", get_connection_unix_process_id),
        _method("GetAdtAuditSessionData", "s", "ay", get_adt_audit_session_data),
        _method(
            "GetConnectionSELinuxSecurityContext", "s", "ay",
            get_connection_selinux_security_context,
        ),
        # dbus-daemon lets anybody make the bus read its files; Debian reloads at the path "/".
        _method("ReloadConfig", "", "", reload_config, privileged=True),
        _method("GetId", "", "s", get_id),
        _method("GetConnectionCredentials", "s", "a{sv}", get_connection_credentials),
    ],
    properties=PROPERTIES,
    signals=signals.INTROSPECTION,
    any_path=True,
)  # fmt: skip
