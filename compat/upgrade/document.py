"""The document: all that one process has to tell the next, put together and taken apart.

Invariant: this is the only place that knows both a running bus and what a state is made of;
`composed()` changes nothing, and `applied()` is over before anything is sent to anybody.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

from jitney.broker.export import export
from jitney.broker.restore import Source, restore

from ..driver import trace
from ..sysio import COMPILED, attach
from . import activations, doors, peers
from .peers import Luggage

if TYPE_CHECKING:
    from ..assembly import BusService
    from ..daemon import Daemon

Record = dict[str, Any]


def composed(
    daemon: Daemon, service: BusService, caller: tuple[Any, int] | None, began: int, first: bool
) -> tuple[Record, Luggage]:
    """What the bus is at this moment. `caller`: connection and serial of who asked for the upgrade;
    `began`: since when nobody is served (ns); `first`: this process is going to be the keeper."""
    luggage = Luggage()
    hub = service.hub
    state, places = export(service.bus, peers.newcomers(hub), luggage)
    driver = service.front.driver
    listeners = [*daemon.listeners, *doors.listeners(service)]
    document = {
        "bus": state,
        "hub": peers.export_peers(hub, listeners, places, luggage),
        "doors": doors.export_doors(service, places, luggage),
        "activation": activations.export_activations(service.activator, places, luggage),
        "driver": [driver.serial, driver.stats_serial, driver.connection_stats_serial],
        "peaks": service.peaks.highest,
        "started": service.started,
        "log_lost": daemon.log.lost,
        "servers": [doors.server(server, luggage) for server in daemon.servers],
        "store": service.store.number if service.store is not None else 0,
        "pidfile": daemon.pidfile,
        "forked": daemon.forked,
        "read_again": daemon.wants_reading,
        "upgrades": daemon.upgrades + 1,
        "keeper": luggage.fd(daemon.keeper.fileno()) if daemon.keeper is not None else -1,
        "keeper_to_be": first,
        "caller": [places.get(caller[0], -1), caller[1]] if caller is not None else [-1, 0],
        "began": began,
        "pid": os.getpid(),
    }
    return document, luggage


def places_of(luggage: Luggage) -> list[list[int]]:
    """The sets of descriptors by their places, which they get now."""
    return [[luggage.fd(fd) for fd in fds] for fds in luggage.sets]


def applied(
    daemon: Daemon, service: BusService, document: Record, source: Source, fds: list[int]
) -> bool:
    """Makes a fresh bus what the document says; whether other services can be started now.

    Raises whatever goes wrong; the bus is good for nothing then."""
    if not COMPILED:
        for record in document["hub"]["peers"]:
            sock = socket.socket(fileno=fds[record["fd"]])
            sock.setblocking(False)
            attach(sock)
    bus, hub = service.bus, service.hub
    driver = service.front.driver
    service.started = document["started"]
    daemon.log.lost += document["log_lost"]
    service.peaks.highest.update(document["peaks"])
    daemon.take_servers([doors.listening(record, fds) for record in document["servers"]])
    conns = restore(bus, document["bus"], source, lambda tracer: trace.soon(driver, tracer))
    policies = service.front.policies
    if policies.unknown_users or policies.unknown_groups:
        # Who is in stays in; but the policy learns who these users are.
        for uid in {conn.user.uid for conn in conns if conn.user.uid is not None}:
            service.front.look_up(uid)
    if document["doors"] is not None:
        doors.restore_doors(service, document["doors"], fds, conns)
    listeners = [*daemon.listeners, *doors.listeners(service)]
    peers.restore_peers(hub, document["hub"], source, fds, conns, listeners)
    for conn in conns:
        if conn.id:
            service.front.give_policy(conn)
        elif service.front.mediation is not None:
            service.front.mediation.enter(conn)
    driver.serial, driver.stats_serial, driver.connection_stats_serial = document["driver"]
    kept = document["keeper"] >= 0
    changed = activations.restore_activations(
        service.activator, document["activation"], source, fds, conns, kept
    )
    bus.accounts.moment = time.monotonic_ns() // 1000
    return changed


def counted(document: Record) -> Record:
    """What came along, in numbers, for those who asked."""
    state = document["bus"]
    return {
        "connections": len(state["connections"]),
        "authenticating": sum("auth" in peer for peer in document["hub"]["peers"]),
        "names": len(state["names"]),
        "matches": len(state["rules"]),
        "replies": len(state["replies"]),
        "activations": len(document["activation"]["pending"]),
        "queued_bytes": sum(user["sums"][2] for user in state["users"]),
        "upgrades": document["upgrades"],
    }
