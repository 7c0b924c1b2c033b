"""org.jitney.Inspect1: the state of the bus as it stands, for those who may see it.

Invariant: no call takes the bus longer than about a millisecond, however many peers there are:
lists come in pages, each of which ends when PAGE is over, and the caller asks for the next one with
the cursor that it got. What comes and goes meanwhile may be in them or not; what stays is in them
once. Root and the bus's own user alone may look at others; of itself every peer may see all.

The interface is our own; dbus-daemon has none like it.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .. import matchrule, snapshot, wire
from ..errors import INVALID_ARGS, DBusError
from .bus import peer_of
from .table import Interface, Method, arg

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

    from .driver import Driver

PAGE = 0.0003
"""Seconds in which records are gathered; to write them out takes about as long again."""
_RULES = 50

Found = Iterator[tuple[str, Any]]
"""Pairs of a cursor from which to go on, and a record that was found before it; or None."""


def get_status(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    about = snapshot.about_bus(driver.bus)
    daemon = dict(driver.context.about())
    about["near"] += daemon.pop("near")
    return _json(about | daemon)


def get_peer(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    bus = driver.bus
    name = arg(msg)
    peer = conn if not name else driver.find(name)
    if peer is not conn:
        # Also where nobody has that name: who has none is not for everybody to find out here.
        driver.check_privileged(conn, "GetPeer")
        peer = peer_of(driver, name, "state")
    if peer is None:
        raise DBusError(INVALID_ARGS, "the bus itself is no peer: see GetStatus")
    moment = snapshot.now(bus)
    return _json(snapshot.peer(peer, bus, moment) | snapshot.details(peer, bus, moment))


def _peers(driver: Driver, cursor: str) -> Found:
    bus = driver.bus
    moment = snapshot.now(bus)
    for conn in _connections(driver, _number(cursor)):
        yield str(conn.id), snapshot.peer(conn, bus, moment)


def _users(driver: Driver, cursor: str) -> Found:
    users = driver.bus.accounts.users
    for i in range(_number(cursor), len(users)):
        yield str(i + 1), snapshot.user(users[i])


def _pressed(driver: Driver, cursor: str) -> Found:
    """First users, then connections; most have nothing to tell."""
    bus = driver.bus
    kind, _, rest = cursor.partition(":")
    if kind != "c":
        users = bus.accounts.users
        for i in range(_number(rest), len(users)):
            found = snapshot.pressed_user(users[i], bus)
            yield f"u:{i + 1}", None
            for record in found:
                yield f"u:{i + 1}", record
        rest = ""
    for conn in _connections(driver, _number(rest)):
        cursor = f"c:{conn.id}"
        yield cursor, None
        for record in snapshot.pressed_peer(conn, bus):
            yield cursor, record


def _names(driver: Driver, cursor: str) -> Found:
    number, _, skip = cursor.partition(":")
    first, skipped = _number(number), _number(skip)
    for conn in _connections(driver, first, bool(skip)):
        done = skipped if conn.id == first else 0
        for entry in list(conn.owned.values())[done:]:
            done += 1
            yield f"{conn.id}:{done}", snapshot.name(entry)
        yield str(conn.id), None


def _matches(driver: Driver, cursor: str) -> Found:
    number, _, skip = cursor.partition(":")
    first, skipped = _number(number), _number(skip)
    for conn in _connections(driver, first, bool(skip)):
        done = skipped if conn.id == first else 0
        owner = snapshot.text(conn.unique_name)
        while rules := conn.some_rules(done, _RULES):
            for rule in rules:
                done += 1
                record = {
                    "name": owner,
                    "uid": conn.user.uid,
                    "monitor": conn.monitor,
                    "rule": matchrule.format(rule),
                }
                yield f"{conn.id}:{done}", record
        yield str(conn.id), None


def _connections(driver: Driver, after: int, again: bool = False) -> Iterator[Connection]:
    """Those with a higher id, or, `again`, with that one as well; in their order."""
    connections = driver.bus.connections
    # Ids count up, so that the table is in their order.
    ids = list(connections)
    for i in range(bisect_right(ids, after - again), len(ids)):
        conn = connections.get(ids[i])
        if conn is not None:
            yield conn


def _number(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise DBusError(INVALID_ARGS, "That is no cursor")
    return int(text)


def _list(
    find: Callable[[Driver, str], Found],
) -> Callable[[Driver, Connection, Message], bytes | None]:
    def page(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
        end = time.monotonic() + PAGE
        records = []
        following = ""
        for cursor, record in find(driver, arg(msg).decode()):
            if record is not None:
                records.append(record)
            if time.monotonic() > end:
                following = cursor
                break
        return wire.marshal("ss", [_dumped(records), following])

    return page


def _dumped(found: object) -> str:
    # Asked for once in a while, if at all: not worth being loaded by every bus.
    import json

    return json.dumps(found, separators=(",", ":"))


def _json(found: object) -> bytes:
    return wire.string(_dumped(found))


INTERFACE = Interface(
    "org.jitney.Inspect1",
    [
        Method("GetStatus", "", "s", get_status, privileged=True),
        Method("GetPeer", "s", "s", get_peer),
        Method("PeersFrom", "s", "ss", _list(_peers), privileged=True),
        Method("UsersFrom", "s", "ss", _list(_users), privileged=True),
        Method("NamesFrom", "s", "ss", _list(_names), privileged=True),
        Method("MatchesFrom", "s", "ss", _list(_matches), privileged=True),
        Method("PressedFrom", "s", "ss", _list(_pressed), privileged=True),
    ],
    feature=True,
)
