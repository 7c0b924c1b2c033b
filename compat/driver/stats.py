"""org.freedesktop.DBus.Debug.Stats: what the bus has to do, in numbers.

Invariant: the keys dbus-daemon has are always there, in its order and of its types; what this
process does not count is 0. Further keys come after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import matchrule, wire
from ..errors import INVALID_ARGS, DBusError
from .bus import peer_of
from .table import Interface, Method, arg

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.match import Rule
    from jitney.broker.message import Message

    from .driver import Driver

# The pools are libdbus's own allocator, of which we have none.
BUS_KEYS = (
    "ListMemPoolUsedBytes", "ListMemPoolCachedBytes", "ListMemPoolAllocatedBytes",
    "ActiveConnections", "IncompleteConnections", "MatchRules", "PeakMatchRules",
    "PeakMatchRulesPerConnection", "BusNames", "PeakBusNames", "PeakBusNamesPerConnection",
)  # fmt: skip
CONNECTION_KEYS = ("MatchRules", "PeakMatchRules", "BusNames", "PeakBusNames")
TRAFFIC_KEYS = (
    "IncomingMessages", "IncomingBytes", "IncomingFDs", "PeakIncomingBytes", "PeakIncomingFDs",
    "OutgoingMessages", "OutgoingBytes", "OutgoingFDs", "PeakOutgoingBytes", "PeakOutgoingFDs",
)  # fmt: skip
_U32_MAX = 0xFFFFFFFF


def _variants(keys: tuple[str, ...], numbers: Mapping[str, int]) -> dict[str, tuple[str, Any]]:
    return {key: ("u", min(numbers.get(key, 0), _U32_MAX)) for key in keys}


def get_stats(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    numbers = driver.context.stats()
    found: dict[str, tuple[str, Any]] = {"Serial": ("u", driver.stats_serial)}
    driver.stats_serial += 1
    found |= _variants(BUS_KEYS, numbers)
    found |= _variants(tuple(key for key in numbers if key not in found), numbers)
    return wire.marshal("a{sv}", [found])


def get_connection_stats(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    peer = peer_of(driver, arg(msg), "statistics")
    if peer is None:
        raise DBusError(
            INVALID_ARGS,
            "GetConnectionStats is not meaningful for the message bus"
            ' "org.freedesktop.DBus" itself',
        )
    numbers = driver.context.connection_stats(peer)
    found: dict[str, tuple[str, Any]] = {"Serial": ("u", driver.connection_stats_serial)}
    driver.connection_stats_serial += 1
    found |= _variants(CONNECTION_KEYS, numbers)
    found["UniqueName"] = ("s", peer.unique_name)
    found |= _variants(TRAFFIC_KEYS, numbers)
    found |= _variants(tuple(key for key in numbers if key not in found), numbers)
    return wire.marshal("a{sv}", [found])


def get_all_match_rules(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    found = {
        peer.unique_name: [matchrule.format(rule) for rule in sorted(peer.rules, key=_place)]
        for peer in driver.bus.connections.values()
        if not peer.monitor
    }
    return wire.marshal("a{sas}", [found])


def _place(rule: Rule) -> tuple[int, bool]:
    """dbus-daemon lists by message type, rules that name an interface first."""
    return rule.type, rule.interface is None


INTERFACE = Interface(
    "org.freedesktop.DBus.Debug.Stats",
    [
        Method("GetStats", "", "a{sv}", get_stats, privileged=True),
        Method("GetConnectionStats", "s", "a{sv}", get_connection_stats, privileged=True),
        Method("GetAllMatchRules", "", "a{sas}", get_all_match_rules, privileged=True),
    ],
    feature=True,
)
