"""Guard: what clients of an endpoint may ask of the bus itself, and what they are told otherwise.

Invariant: nothing that the bus answers a client of a filtering endpoint depends on a name or peer
that it does not see, other than saying that there is no such name. A method that is not listed here
is refused, so that a new one is not open by being new.

What is refused, and with which error, is as with xdg-dbus-proxy; the words are dbus-daemon's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jitney.broker.endpoint import OWN, SEE, TALK
from jitney.broker.errors import ACCESS_DENIED, NO_OWNER, UNKNOWN_SERVICE, Refused
from jitney.broker.routing import SEND_DENIED
from jitney.broker.syntax import is_bus_name

from .. import matchrule, wire
from ..errors import DBusError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jitney.broker.connection import Connection
    from jitney.broker.endpoint import Endpoint
    from jitney.broker.message import Message

    from ..driver import Driver
    from ..front import Front

DRIVER = b"org.freedesktop.DBus"
INTROSPECTABLE = b"org.freedesktop.DBus.Introspectable"

FREE = frozenset({b"Hello", b"RemoveMatch", b"GetId", b"ListNames", b"ListActivatableNames"})
"""Lists are cut to what is seen by `visible()`."""
LEVELS = {
    b"RequestName": OWN,
    b"ReleaseName": OWN,
    b"ListQueuedOwners": OWN,
    b"StartServiceByName": TALK,
    b"NameHasOwner": SEE,
    b"GetNameOwner": SEE,
    b"GetConnectionUnixUser": SEE,
    b"GetConnectionUnixProcessID": SEE,
    b"GetConnectionCredentials": SEE,
    b"GetConnectionSELinuxSecurityContext": SEE,
    b"GetAdtAuditSessionData": SEE,
}
"""What it takes to ask such a thing about a name."""

_EAVESDROP = re.compile(rb"eavesdrop[ \t\r\n]*=")
_KINDS = {OWN: "own", TALK: "talk", SEE: "see"}
_NO_REPLY, _NO_AUTO_START = 1, 2


def stops(driver: Driver, conn: Connection, msg: Message) -> bool:
    """Whether a call to the bus goes no further: then all that is to be answered has been."""
    endpoint: Endpoint = conn.endpoint
    member = msg.member or b""
    if endpoint.learned is not None and msg.interface in (DRIVER, None):
        _learn(driver, conn, msg)
    if not endpoint.filtering or msg.interface == INTROSPECTABLE:
        return False
    if msg.interface != DRIVER:
        return _stopped(driver, conn, msg, False)
    if member in FREE:
        return False
    if member == b"AddMatch":
        return _overhears(msg) and _stopped(driver, conn, msg, False)
    need = LEVELS.get(member)
    if need is None:
        return _stopped(driver, conn, msg, False)
    name = _name(msg)
    if name is None:
        return False  # the driver will say what is wrong with it
    level = endpoint.level(conn, name)
    if level >= need:
        return False
    if level >= SEE:
        return _stopped(driver, conn, msg, False)
    if member == b"NameHasOwner":
        driver.reply(conn, msg.serial, "b", wire.marshal("b", (False,)))
        return True
    if member == b"GetNameOwner":
        text = f"Could not get owner of name '{name.decode()}': no such name"
        driver.front.refused(conn, msg, Refused(NO_OWNER, text))
        return True
    return _stopped(driver, conn, msg, True, name)


def visible(conn: Connection, names: Iterable[bytes]) -> list[bytes]:
    """Of these names, those that the connection sees."""
    endpoint: Endpoint = conn.endpoint
    return [name for name in names if endpoint.level(conn, name) >= SEE]


def turn_back(
    front: Front, conn: Connection, dest: Connection | None, msg: Message, hidden: bool
) -> None:
    """A message to somebody is refused; `hidden`: its sender is to believe that nobody is there."""
    _turn_back(front, conn, dest, msg, hidden, msg.destination or DRIVER)


def _stopped(
    driver: Driver, conn: Connection, msg: Message, hidden: bool, name: bytes = DRIVER
) -> bool:
    _turn_back(driver.front, conn, None, msg, hidden, name)
    return True


def _turn_back(
    front: Front, conn: Connection, dest: Connection | None, msg: Message, hidden: bool, name: bytes
) -> None:
    endpoint: Endpoint = conn.endpoint
    shown = name.decode("ascii", "replace")
    why = f"endpoint {endpoint.name.decode()} {'hides' if hidden else 'does not open'} {shown}"
    text = front.complaint(conn, None, msg, SEND_DENIED, 0, False)
    if conn.counts is not None:
        conn.counts.refused(ACCESS_DENIED)
    if endpoint.holder is not None and endpoint.holder.log:
        front.log(
            "security", f"{text} ({why})", "denied", conn=conn, dest=dest, msg=msg, reason=why
        )
    if front.bus.monitors:
        front.judged(conn, dest, msg, ACCESS_DENIED, why, None)
    refused = Refused(ACCESS_DENIED, text)
    if hidden and ((msg.destination or b"")[:1] == b":" or msg.flags & _NO_AUTO_START):
        refused = Refused(NO_OWNER, f'Name "{shown}" does not exist')
    elif hidden:
        refused = Refused(
            UNKNOWN_SERVICE, f"The name {shown} was not provided by any .service files"
        )
    front.refused(conn, msg, refused)


def unasked(conn: Connection, msg: Message) -> bool:
    """Whether an error about this message of a client is more than it asked for."""
    return conn.endpoint.filtering and (msg.type != wire.CALL or msg.flags & _NO_REPLY != 0)


def _name(msg: Message) -> bytes | None:
    """The call's first argument, if it is a string."""
    if msg.signature[:1] != b"s":
        return None
    found = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)[0]
    return found.encode() if isinstance(found, str) else None


def _overhears(msg: Message) -> bool:
    name = _name(msg)
    return name is not None and _EAVESDROP.search(name) is not None


def _learn(driver: Driver, conn: Connection, msg: Message) -> None:
    endpoint: Endpoint = conn.endpoint
    name = _name(msg)
    if name is None or name in (DRIVER, conn.unique_name):
        return
    if msg.member == b"AddMatch":
        name = _watched(name)
        need = SEE
    else:
        need = LEVELS.get(msg.member or b"", 0)
    if not name or not need:
        return
    if name[:1] == b":":
        found = endpoint.learned.name_of(driver.find(name))
        if found is None:
            return
        name = found
    level = endpoint.level(conn, name.removesuffix(b".*"))
    endpoint.learned.note(_KINDS[need], name, b"", level >= need)


def _watched(text: bytes) -> bytes:
    """The name whose owners a match rule is about, NAME.* for all below it; b"" if for none."""
    try:
        rule = matchrule.parse(text)
    except (DBusError, Refused):
        return b""
    if rule.member != b"NameOwnerChanged" or not rule.args or rule.args[0].index:
        return b""
    name = rule.args[0].text
    if name[:1] == b":" or not is_bus_name(name):
        return b""
    return name + b".*" if rule.args[0].kind == ord("n") else name
