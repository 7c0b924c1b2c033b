"""Taker: the new process's side of an upgrade.

Invariant: until "go" this process does nothing that anybody but the old one could notice: it serves
nobody, writes no file and removes none, whatever happens. It is a whole bus before it says "taken".
If the old one is gone by the time "go" should come, there is nobody else left to be the bus.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jitney.broker.restore import Source

from .. import process
from ..wire import marshal
from . import form
from .activations import ended
from .channel import Broken, Channel
from .document import applied, counted
from .peers import newcomers

if TYPE_CHECKING:
    from ..daemon import Daemon

WAIT = 90.0
"""Seconds until the old process makes up its mind; it gives us less."""

Record = dict[str, Any]


class Taker:
    """One attempt to become the bus."""

    def __init__(self, daemon: Daemon, fd: int) -> None:
        self.daemon = daemon
        self.channel = Channel(socket.socket(fileno=fd))
        self.document: Record = {}
        self.fds: list[int] = []
        self.keeper: socket.socket | None = None
        self.used = 0
        self.changed = False
        self.orphaned = False

    def run(self, prepare: Callable[[Record, list[int]], None]) -> None:
        """Returns when this is the bus, or never. `prepare` builds one, given what the old process
        says of itself and the sockets of its metrics."""
        try:
            offer, sockets = self.channel.receive(WAIT)
            prepare(offer, sockets)
            self.channel.send({"ready": sorted(form.READERS)})
            self.receive()
            self.wait()
        except BaseException as error:
            self.refuse(error)

    def refuse(self, error: BaseException) -> None:
        """Says why, and ends without a trace."""
        text = getattr(error, "text", None) or f"{type(error).__name__}: {error}"
        try:
            if not isinstance(error, Broken):
                self.channel.send({"refused": text})
                if not hasattr(error, "text"):
                    self.daemon.log.warning("In an upgrade: " + traceback.format_exc())
        finally:
            os._exit(1)

    def receive(self) -> None:
        """Takes over all there is, and says so."""
        packet, files = self.channel.receive(WAIT)
        self.used = packet.get("used", 0) - time.process_time_ns()
        gc.disable()
        with open(files[0], "rb") as file:
            file.seek(0)
            data = file.read(packet["state"])
        while len(self.fds) < packet["fds"]:
            _, some = self.channel.receive(WAIT)
            if not some:
                raise Broken("sends less than it said")
            self.fds += some
        self.document, blobs, sets = form.unpack(data)
        source = Source(blobs, [[self.fds[place] for place in places] for places in sets])
        service: Any = self.daemon.service
        self.changed = applied(self.daemon, service, self.document, source, self.fds)
        if self.document["keeper"] >= 0:
            self.keeper = socket.socket(fileno=self.fds[self.document["keeper"]])
            self.keeper.setblocking(False)
        self.channel.send({"taken": self.document["bus"]["last_id"]})

    def wait(self) -> None:
        try:
            # However long: who is silent may be the bus.
            packet, _ = self.channel.receive(None)
            if "go" not in packet:
                raise ValueError("the old process changed its mind")
        except Broken:
            self.orphaned = True
        self.channel.close()

    def begin(self) -> None:
        """This is the bus: everything that had to wait until this is clear."""
        for step in (
            self.go_on,
            self.be_known,
            self.be_stored,
            self.report,
            self.catch_up,
        ):
            try:
                step()
            except Exception:
                # There is nobody any more who could do better.
                self.daemon.log.warning("In an upgrade: " + traceback.format_exc())
        gc.enable()

    def go_on(self) -> None:
        """What is due is done in time, what waits to be sent is sent."""
        service: Any = self.daemon.service
        hub, bus = service.hub, service.bus
        waits = [*hub.incomplete.values(), *hub.fd_waits.values()]
        if bus.replies.next_deadline() > 0:
            waits.append(bus.replies.next_deadline())
        if waits:
            hub.alarm(min(waits))
        for conn in [*bus.connections.values(), *newcomers(hub)]:
            if conn.queue.size and not conn.queue.dirty:
                bus.stir(conn)

    def be_known(self) -> None:
        """Whoever knows the bus by its process is served."""
        document, daemon = self.document, self.daemon
        daemon.upgrades = document["upgrades"]
        if document["forked"]:
            daemon.forked = True
            os.chdir("/")
        if self.keeper is not None:
            self.watch_keeper(self.keeper)
        if document["pidfile"] is not None:
            daemon.pidfile = document["pidfile"]
            if self.keeper is None:
                self.write_pidfile(document["pidfile"])

    def be_stored(self) -> None:
        """The service manager has the connections already; the journal begins anew."""
        service: Any = self.daemon.service
        if service.store is not None:
            # In place of what the old process had there: for more there may be no room.
            service.store.forget(self.document["pid"])
            self.daemon.begin_store(None, self.document["store"])
            service.store.adopt(service.hub.peers)

    def catch_up(self) -> None:
        """What may have changed while we took over."""
        service: Any = self.daemon.service
        if self.changed:
            service.front.driver.activatable_services_changed()
        if self.document["read_again"]:
            self.daemon.reload_soon()

    def report(self) -> None:
        pause = (time.monotonic_ns() - self.document["began"]) / 1e6
        used = (self.used + time.process_time_ns()) / 1e6
        numbers = counted(self.document)
        service: Any = self.daemon.service
        self.daemon.log.info(
            f"Upgraded: {numbers['connections']} connections taken over from process "
            f"{self.document['pid']}; the bus stood still for {pause:.1f} ms"
        )
        place, serial = self.document["caller"]
        if place < 0:
            return
        wanted = self.document["bus"]["connections"][place]["id"]
        conn = service.bus.connections.get(wanted)
        if conn is not None and not conn.monitor:
            times = {"pause_ms": round(pause, 3), "cpu_ms": round(used, 3)}
            text = json.dumps({**times, "pid": os.getpid(), **numbers})
            service.front.driver.reply(conn, serial, "s", marshal("s", [text]))

    def write_pidfile(self, path: str) -> None:
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
        except OSError as error:
            self.daemon.log.warning(str(process.from_errno(error, f'Failed to write to "{path}"')))

    def watch_keeper(self, sock: socket.socket) -> None:
        if self.orphaned:
            if self.document["keeper_to_be"]:
                # Whoever was to be it is gone.
                sock.close()
                return
            with contextlib.suppress(OSError):
                sock.send(b"%d" % os.getpid())
        service: Any = self.daemon.service
        self.daemon.keeper = sock
        service.hub.loop.add_reader(sock.fileno(), self.hear_keeper)

    def hear_keeper(self) -> None:
        """Some process ended that was ours, or the keeper itself."""
        sock = self.daemon.keeper
        if sock is None:
            return
        service: Any = self.daemon.service
        try:
            packet = sock.recv(64)
        except OSError:
            return
        if packet:
            pid, status = packet.split()
            ended(service.activator.spawner, int(pid), int(status))
        else:
            # Whoever ends it means us.
            service.hub.loop.remove_reader(sock.fileno())
            self.daemon.log.warning("The keeper of this bus is gone; so the bus ends")
            os.kill(os.getpid(), signal.SIGTERM)
