"""Doors as plain data, and back: the endpoints of a bus, their sockets, and whose they are.

Invariant: an endpoint goes on as the one that it was: with its socket and its file, its policy and
what it has learned, the creator with whom it goes, and what its launcher said of it. What the core
knows of it is in the core's own state, and in the same order.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from .. import wire
from ..driver import containers, endpoints
from ..endpoints.doors import Door
from ..listen import Listener, Server
from .peers import Luggage

if TYPE_CHECKING:
    from jitney.broker.connection import Connection

    from ..assembly import BusService

Record = dict[str, Any]

NOBODY, GONE = -1, -2
"""In place of a creator: the endpoint is to be kept; it is to end, as the creator has."""
_PROPERTIES = "a{sv}"


def _all(service: BusService) -> list[Door]:
    """In the order of the bus's endpoints, which is that in which they were opened."""
    found = service.front.doors
    return list(found.by_name.values()) if found is not None else []


def listeners(service: BusService) -> list[Listener]:
    """Those of all endpoints, be they shut: clients that are there have come by them."""
    return [each for door in _all(service) for each in door.server.listeners]


def export_doors(service: BusService, places: dict[Any, int], luggage: Luggage) -> Record | None:
    """None if the bus has never had an endpoint."""
    found = service.front.doors
    if found is None:
        return None
    return {
        "folder": found.folder,
        "last_container": found.last_container,
        "doors": [_door(door, places, luggage) for door in found.by_name.values()],
    }


def _door(door: Door, places: dict[Any, int], luggage: Luggage) -> Record:
    creator = NOBODY
    if door.creator is not None:
        creator = places.get(door.creator, GONE)
    record: Record = {
        "name": door.name,
        "server": server(door.server, luggage),
        "policy": door.lines,
        "uid": door.uid,
        "creator": creator,
        "log": door.log,
        "lingers": door.lingers,
        "listening": door.listening,
    }
    about = door.container
    if about is not None:
        record["container"] = {
            "instance": about.instance,
            "kind": about.kind,
            "name": about.name,
            "metadata": _packed(about.metadata),
            "creator": _packed(about.creator),
        }
    return record


def _packed(properties: dict[str, Any]) -> str:
    """As a message has them: values may be of any type."""
    return wire.marshal(_PROPERTIES, (properties,)).hex()


def _unpacked(text: str) -> dict[str, Any]:
    (found,) = wire.unmarshal(_PROPERTIES.encode(), bytes.fromhex(text), False)
    properties: dict[str, Any] = found
    return properties


def server(of: Server, luggage: Luggage) -> Record:
    """A socket that is closed is told as -1."""
    numbers = [listener.sock.fileno() for listener in of.listeners]
    return {
        "guid": of.guid,
        "address": of.address,
        "nonce": of.listeners[0].nonce.hex() if of.listeners else "",
        "sockets": [luggage.fd(number) if number >= 0 else -1 for number in numbers],
        "socket_file": of.socket_file,
        "nonce_file": of.nonce_file,
    }


def listening(record: Record, fds: list[int]) -> Server:
    """A server of the process before, files included."""
    sockets = []
    for place in record["sockets"]:
        if place >= 0:
            sock = socket.socket(fileno=fds[place])
            sock.setblocking(False)
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.close()
        sockets.append(sock)
    made = Server(sockets, "", bytes.fromhex(record["nonce"]))
    made.inherit(record["guid"], record["address"], record["socket_file"], record["nonce_file"])
    return made


def restore_doors(
    service: BusService, record: Record, fds: list[int], conns: list[Connection]
) -> None:
    """Opens them, for a bus that knows its endpoints already."""
    driver = service.front.driver
    doors = driver.context.endpoints()
    doors.folder = record["folder"]
    doors.last_container = record["last_container"]
    for endpoint, one in zip(service.bus.endpoints, record["doors"], strict=True):
        door = Door(one["name"], endpoint, listening(one["server"], fds), one["policy"], one["uid"])
        door.log = one["log"]
        door.lingers = one["lingers"]
        door.listening = one["listening"]
        creator = one["creator"]
        if creator >= 0:
            door.creator = conns[creator]
        if "container" in one:
            containers.describe(driver, door, _container(one["container"]))
        elif creator >= 0:
            door.ended = endpoints.ending(driver, conns[creator], door.name)
        doors.take(door)
        # What had to wait for the next turn of the old process's loop waits for one of ours.
        if creator == GONE:
            service.hub.loop.call_soon(doors.shut_or_remove, door)
        elif not door.listening:
            service.hub.loop.call_soon(doors.left, door)


def _container(record: Record) -> containers.Container:
    return containers.Container(
        record["instance"],
        record["kind"],
        record["name"],
        _unpacked(record["metadata"]),
        _unpacked(record["creator"]),
    )
