"""Doors: the endpoints that are open on a bus, each with its socket, and whose they are.

Invariant: a door is in `by_name` from the moment when it can be connected to until its socket is
gone and, unless it `lingers`, its clients are. It goes with the connection that opened it, if it is
not to be kept. What may be authenticated with is what the bus takes, anonymity aside.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from jitney.broker.endpoint import Endpoint
from jitney.broker.learning import Learned

from ..address import escape
from ..auth import Offer
from ..errors import ACCESS_DENIED, FILE_EXISTS, INVALID_ARGS, LIMITS_EXCEEDED, DBusError
from ..listen import Server, listen
from .policy import BadGrant, parse

if TYPE_CHECKING:
    from jitney.broker.connection import Connection

    from ..assembly import BusService
    from ..driver.containers import Container

MAX_PER_USER = 256
MAX_GRANTS = 10000

OPTIONS = ("filter", "sloppy-names", "log", "learn", "persistent")
"""What may be asked for; all are off, but for "filter"."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,127}\Z")


class Door:
    """One endpoint and its socket. `creator`: on whose connection it hangs, None if on nobody's.

    `log`: refusals go to the log. `lingers`: its end is only that of the socket, and it is over
    when the last client has left. `credentials`: what GetConnectionCredentials says of its clients,
    more than of others; `container`: what its launcher said of it. `ended`, if any, is called when
    it is over."""

    def __init__(
        self, name: str, endpoint: Endpoint, server: Server, lines: list[str], uid: int | None
    ) -> None:
        self.name = name
        self.endpoint = endpoint
        self.server = server
        self.lines = lines
        self.uid = uid
        self.creator: Connection | None = None
        self.log = False
        self.lingers = False
        self.listening = True
        self.credentials: dict[str, tuple[str, Any]] = {"org.jitney.Endpoint": ("s", name)}
        self.container: Container | None = None
        self.ended: Any = None

    def about(self) -> dict[str, Any]:
        """One record for `jitney endpoint list`."""
        endpoint = self.endpoint
        return {
            "name": self.name,
            "address": self.server.address,
            "filter": endpoint.filtering,
            "learn": endpoint.learned is not None,
            "creator": self.creator.unique_name.decode() if self.creator is not None else None,
            "uid": self.uid,
            "clients": len(endpoint.connections),
            "refused": endpoint.n_refused,
            "policy": self.lines,
        }


class Doors:
    """All of a bus's."""

    def __init__(self, service: BusService) -> None:
        self.service = service
        self.by_name: dict[str, Door] = {}
        self.folder: str | None = None
        self.last_container = 0

    def open(
        self,
        conn: Connection,
        name: str,
        path: str,
        lines: Iterable[str],
        options: Mapping[str, Any],
        server: Server | None = None,
    ) -> Door:
        """Opens one for `conn`, which may. Raises DBusError, and then nothing has changed.

        Its socket is made at `path`, if it has no `server` yet."""
        if not _NAME.match(name):
            raise DBusError(INVALID_ARGS, f"'{name}' is no name for an endpoint")
        if name in self.by_name:
            raise DBusError(FILE_EXISTS, f"There is an endpoint {name} already")
        uid = conn.user.uid
        if sum(door.uid == uid for door in self.by_name.values()) >= MAX_PER_USER:
            raise DBusError(LIMITS_EXCEEDED, f"User {uid} has {MAX_PER_USER} endpoints already")
        for key in options:
            if key not in OPTIONS:
                raise DBusError(INVALID_ARGS, f"Endpoints know no option '{key}'")
        lines = list(lines)
        if len(lines) > MAX_GRANTS:
            raise DBusError(LIMITS_EXCEEDED, f"A policy has at most {MAX_GRANTS} lines")
        try:
            grants = [parse(line) for line in lines]
        except BadGrant as reason:
            raise DBusError(INVALID_ARGS, str(reason)) from None
        endpoint = Endpoint(
            name.encode(),
            grants,
            bool(options.get("filter", True)),
            bool(options.get("sloppy-names")),
            Learned() if options.get("learn") else None,
        )
        if server is None:
            if not path.startswith("/"):
                raise DBusError(INVALID_ARGS, f"'{path}' is no absolute path")
            if self.is_ours(path):
                raise DBusError(FILE_EXISTS, f"'{path}' is a socket of this bus already")
            server = listen(f"unix:path={escape(path)}", self.service.front.sink.warning)
        door = Door(name, endpoint, server, lines, uid)
        door.log = bool(options.get("log"))
        door.creator = None if options.get("persistent") else conn
        self.service.bus.add_endpoint(endpoint)
        self.take(door)
        return door

    def is_ours(self, path: str) -> bool:
        """Whether clients of this bus come by this socket, who would find another one there."""
        servers = [*self.service.daemon.servers]
        servers += [door.server for door in self.by_name.values() if door.listening]
        try:
            about = os.stat(path)
            place = f"unix:path={escape(os.path.realpath(path))}"
        except OSError:
            return False
        for server in servers:
            if server.socket_file is not None:
                if server.socket_file[1:] == (about.st_dev, about.st_ino):
                    return True
            elif place in server.address.partition(",guid=")[0].split(";"):
                return True
        return False

    def take(self, door: Door) -> None:
        """Lets clients in, if it is one that listens; the bus knows its endpoint."""
        daemon = self.service.daemon
        keyring = next((each.offer.keyring for each in daemon.listeners if each.offer), None)
        offer = Offer(door.server.guid, daemon.config.auth, False, keyring)
        door.endpoint.holder = door
        self.by_name[door.name] = door
        for listener in door.server.listeners:
            listener.offer = offer
            listener.endpoint = door.endpoint
            if door.listening:
                self.service.hub.acceptor.open(listener)

    def get(self, name: str) -> Door:
        door = self.by_name.get(name)
        if door is None:
            raise DBusError(INVALID_ARGS, f"There is no endpoint {name}")
        return door

    def shut(self, door: Door) -> None:
        """Nobody comes in any more; who is there stays. Who still authenticates is not there."""
        if door.listening:
            door.listening = False
            door.creator = None
            for listener in door.server.listeners:
                self.service.hub.acceptor.shut(listener)
            door.server.close()
            self._send_away(door, False)

    def _send_away(self, door: Door, everybody: bool) -> None:
        """Ends those who have come by it, or only those who still authenticate: they would come in
        when the endpoint may be over."""
        hub = self.service.hub
        for peer in list(hub.peers):
            if peer is None or peer.listener not in door.server.listeners:
                continue
            if everybody or peer.conn is None:
                hub.drop(peer)

    def remove(self, door: Door) -> None:
        """The end of an endpoint and of its clients."""
        if self.by_name.get(door.name) is not door:
            return
        self.shut(door)
        self._send_away(door, True)
        self._over(door)

    def gone(self, conn: Connection) -> None:
        """A connection is about to end: so are its endpoints."""
        for door in [door for door in self.by_name.values() if door.creator is conn]:
            # Not now: the bus is in the midst of ending that connection.
            self.service.hub.loop.call_soon(self.shut_or_remove, door)
        if conn.endpoint is not None:
            self.service.hub.loop.call_soon(self.left, conn.endpoint.holder)

    def shut_or_remove(self, door: Door) -> None:
        if door.lingers:
            self.shut(door)
            self.left(door)
        else:
            self.remove(door)

    def close(self) -> None:
        """The bus ends."""
        for door in list(self.by_name.values()):
            self.shut(door)
            self._over(door)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                os.rmdir(self.folder)

    def left(self, door: Door) -> None:
        if not door.listening and not door.endpoint.connections:
            self._over(door)

    def _over(self, door: Door) -> None:
        if self.by_name.get(door.name) is door:
            del self.by_name[door.name]
            self.service.bus.remove_endpoint(door.endpoint)
            if door.ended is not None:
                door.ended()


def check_creator(conn: Connection) -> None:
    """Raises DBusError for clients of an endpoint: out of one room nobody builds another."""
    if conn.endpoint is not None:
        raise DBusError(ACCESS_DENIED, "Who came by an endpoint can make none")
