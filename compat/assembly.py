"""Assembly: the parts of a bus, put together.

Invariant: this is the only place where core, front, driver, activation and sockets meet; each
part gets what it needs here and finds nothing by itself. A reload builds the new parts first
and swaps them in afterwards, so that one which fails changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jitney.broker.bus import Bus
from jitney.broker.errors import ACCESS_DENIED as NOT_ALLOWED
from jitney.broker.policy import PolicySet

from . import ways, wire
from .activation import Activator, Settings, directory_watch
from .driver import INTERFACES, Driver
from .errors import ACCESS_DENIED, FAILED, DBusError
from .front import Front, loginfo
from .hub import Hub
from .listen import new_guid
from .security.mediation import mediate
from .snapshot import about_daemon

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

    from .activation import Service as ActivatableService
    from .config import Plain
    from .daemon import Daemon
    from .driver.table import Interface
    from .endpoints.doors import Doors
    from .exposition import Exposition
    from .upgrade.store import Store


class BusContext:
    """What the driver asks of the daemon around it; see `driver.Context`."""

    def __init__(self, service: BusService, daemon: Daemon) -> None:
        self.service = service
        self.daemon = daemon
        self.guid = service.bus.guid
        self.systemd_activation = daemon.options.systemd_activation
        self.uid = os.geteuid()

    def reload(self) -> None:
        self.daemon.reload()

    def upgrade(self, conn: Connection, serial: int, command: str) -> None:
        self.daemon.upgrade(command, (conn, serial))

    def stats(self) -> Mapping[str, int]:
        bus = self.service.bus
        hub = self.service.hub
        peaks = self.service.peaks
        active = len(bus.connections) - len(bus.monitors)
        # As in dbus-daemon: unique names, and each claim on a name, be it only a queued one.
        names = active + sum(user.names for user in bus.accounts.users)
        return {
            "ActiveConnections": active,
            "IncompleteConnections": len(hub.incomplete),
            "MatchRules": bus.match_index.count,
            "PeakMatchRules": peaks.matches(bus.match_index.count),
            "PeakMatchRulesPerConnection": bus.peak_rules,
            "BusNames": names,
            "PeakBusNames": peaks.names(names),
            "PeakBusNamesPerConnection": bus.peak_names,
        }

    def connection_stats(self, conn: Connection) -> Mapping[str, int]:
        # The unique name counts, as in dbus-daemon.
        names = len(conn.names) + 1
        tallies = list(conn.tallies.values()) if conn.tallies is not None else []
        return {
            "MatchRules": conn.n_rules,
            "PeakMatchRules": conn.peak_rules,
            "BusNames": names,
            "PeakBusNames": max(names, conn.peak_names + 1),
            "IncomingBytes": sum(tally.bytes for tally in tallies),
            "IncomingFDs": sum(tally.fds for tally in tallies),
            "OutgoingMessages": len(conn.queue),
            "OutgoingBytes": conn.queue.size,
            "OutgoingFDs": conn.queue.n_fds,
            "PeakOutgoingBytes": conn.peak_size,
            "PeakOutgoingFDs": conn.peak_fds,
            "org.jitney.DroppedMessages": conn.dropped,
        }

    def about(self) -> Mapping[str, Any]:
        return about_daemon(self.service, self.daemon)

    def endpoints(self) -> Doors:
        front = self.service.front
        if front.doors is None:
            # Most buses have one door.
            from .endpoints.doors import Doors

            front.doors = Doors(self.service)
        doors: Doors = front.doors
        return doors


class Peaks:
    """Highest numbers seen when somebody looked or when they grew."""

    def __init__(self) -> None:
        self.highest: dict[str, int] = {}

    def matches(self, now: int) -> int:
        return self._peak("matches", now)

    def names(self, now: int) -> int:
        return self._peak("names", now)

    def _peak(self, what: str, now: int) -> int:
        self.highest[what] = max(now, self.highest.get(what, 0))
        return self.highest[what]


class ActivationContext:
    """What activation asks of the front; see `activation.Context`."""

    def __init__(self, bus: Bus, front: Front) -> None:
        self.bus = bus
        self.front = front

    def log(self, severity: str, text: str, event: str = "", **about: Any) -> None:
        self.front.log(severity, text, event, **about)

    def describe(self, conn: Connection) -> str:
        return loginfo(conn)

    def next_serial(self) -> int:
        serial: int = self.front.driver.next_serial()
        return serial

    def check_activate(self, conn: Connection, msg: Message, service: ActivatableService) -> None:
        """The policy's word before anything is started: the receiver is nobody yet."""
        if self.front.mediation is not None:
            self.front.mediation.check_activate(conn, msg, service.file.apparmor_label)
        if conn.send_open or conn.policy.may_send(self.bus, msg, None, False):
            return
        text = self.front.complaint(
            conn, None, msg, "Rejected send message", conn.policy.matched, False
        )
        self.front.denied(text, conn.policy, conn=conn, msg=msg, reason="Rejected send message")
        if self.bus.monitors:
            self.front.judged(conn, None, msg, NOT_ALLOWED, text, conn.policy)
        raise DBusError(ACCESS_DENIED, text)

    def reply(
        self, conn: Connection, msg: Message, signature: str, values: tuple[Any, ...]
    ) -> None:
        self.front.driver.reply(conn, msg.serial, signature, wire.marshal(signature, values))

    def refused(self, conn: Connection, msg: Message, error: DBusError) -> None:
        self.front.refused(conn, msg, error)

    def services_changed(self) -> None:
        self.front.driver.activatable_services_changed()


class BusService:
    """A whole classic bus on an event loop; what `daemon.Service` asks for."""

    bus_type = Bus
    """What routes: buses for tests have one that can be told to fail."""

    def __init__(self, daemon: Daemon, loop: AbstractEventLoop) -> None:
        config = daemon.config
        self.daemon = daemon
        self.log = daemon.log
        self.peaks = Peaks()
        self.started = time.monotonic()
        self.bus = self.bus_type(config.limits(), guid=daemon.guid or new_guid())
        self.bus.metered = daemon.options.metered
        front: type[Front] = Front
        hub: type[Hub] = Hub
        interfaces: tuple[Interface, ...] = INTERFACES
        self.store: Store | None = None
        if daemon.options.fd_store and os.environ.get("NOTIFY_SOCKET"):
            from .upgrade.calls import KeptHub
            from .upgrade.store import KeptFront, Store

            limit = daemon.fd_limit[0] if daemon.fd_limit is not None else 1024
            self.store = Store(self.bus, limit if limit >= 0 else 1 << 30, daemon.log.warning)
            front, hub = KeptFront, KeptHub
            interfaces = self.store.interfaces(INTERFACES)
        self.front = front(self.bus, PolicySet(config.policy_spec()), daemon.log)
        self.bus.front = self.front
        self.activator = Activator(
            self.bus,
            ActivationContext(self.bus, self.front),
            loop,
            self.settings(config),
            config.service_dirs,
        )
        self.front.activator = self.activator
        self.front.use_driver(
            Driver(self.bus, self.activator, BusContext(self, daemon), interfaces)
        )
        self.front.mediation = mediate(self.bus, self.front, config, loop, daemon.reload_soon)
        self.hub = hub(self.bus, self.front)
        if ways.processors() > 1:
            # With a single CPU, whom we wait for could not run while we look.
            self.hub.busy_poll = daemon.options.busy_poll
        self.front.hub = self.hub
        if self.store is not None:
            self.store.use(self.hub)
            self.front.store = self.store  # type: ignore[attr-defined]
        self.watch = directory_watch(loop, self.changed, self.front.log)
        self.watch.watch(self.watched(config))
        self.activator.use_watch(self.watch)
        self.hub.start(loop, daemon.listeners)
        self.kdbus = self.open_to_kdbus(loop) if daemon.places is not None else None
        self.exposition: Exposition | None = None
        if daemon.metrics:
            from .exposition import Exposition

            self.exposition = Exposition(self, loop, daemon.metrics, self.front.log)

    def open_to_kdbus(self, loop: AbstractEventLoop) -> Any:
        """Makes the bus one of kdbus's as well, for those who come in there. DBusError."""
        from jitney.kdbus.worlds.places import Open

        from .loop import BusLoop

        places = self.daemon.places
        if places.mount is not None and not isinstance(loop, BusLoop):
            raise DBusError(FAILED, "--kdbus-mount needs the bus's own event loop")
        try:
            return Open(
                places,
                self.bus,
                loop,
                self.hub.poller,
                lambda name: name in self.activator.services.names,
                lambda: self.log.warning("kdbus's file system was unmounted"),
            )
        except OSError as error:
            raise DBusError(FAILED, f"Failed to serve kdbus's clients: {error}") from error

    def settings(self, config: Plain) -> Settings:
        daemon = self.daemon
        limit = daemon.fd_limit
        return Settings(
            address=daemon.address,
            bus_type=config.type,
            helper=config.servicehelper,
            systemd=daemon.options.systemd_activation,
            to_journal=daemon.log.syslog,
            nofile=tuple(limit) if limit is not None else None,  # type: ignore[arg-type]
        )

    def watched(self, config: Plain) -> list[str]:
        return [*self.activator.watch_paths(), *config.include_dirs]

    def changed(self) -> None:
        """A watched directory changed: read the configuration again, as dbus-daemon does."""
        self.daemon.reload_soon()

    def reload(self, config: Plain) -> None:
        limits = config.limits()
        policies = PolicySet(config.policy_spec())
        settings = self.settings(config)
        self.bus.set_limits(limits)
        self.hub.set_limits()
        self.front.set_policies(policies)
        if self.front.mediation is not None:
            self.front.mediation.reload(config)
        self.activator.reload(settings, config.service_dirs)
        self.watch.watch(self.watched(config))
        self.hub.flush()

    def close(self) -> None:
        if self.kdbus is not None:
            self.kdbus.close()
        if self.front.doors is not None:
            self.front.doors.close()
        if self.exposition is not None:
            self.exposition.close()
        self.watch.close()
        self.activator.close()
        self.hub.stop()
        if self.front.mediation is not None:
            self.front.mediation.close()
        if self.store is not None:
            self.store.close()


def build(daemon: Daemon, loop: AbstractEventLoop) -> BusService:
    """What `Daemon` calls once the process is what it is going to be."""
    return BusService(daemon, loop)
