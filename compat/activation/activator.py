"""Starts the services that messages are addressed to, and keeps the messages meanwhile.

Invariant: every kept message ends in exactly one of three ways: it is delivered to the name's new
owner (or answered, if it was a StartServiceByName), its sender gets an error, or its sender is
gone.

Specification: "Message Bus Starting Services (Activation)"; order, texts and limits are
dbus-daemon's.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from jitney.broker.accounting import room_for_one
from jitney.broker.connection import ACTIVE
from jitney.broker.limits import KEPT_BYTES, KEPT_FDS, USER_SHARE

from .. import errors
from ..errors import DBusError
from . import environment, helper, shell, systemd
from .directories import Service, ServiceDir, Services, Watch
from .pending import Book, Pending, Waiting
from .spawn import Child, Spawner, failure

SUCCESS, ALREADY_RUNNING = 1, 2
"""Answers to StartServiceByName."""


class Context(Protocol):
    """What activation needs of the front, besides the bus."""

    def log(self, severity: str, text: str, event: str = "", **about: Any) -> None:
        """severity: "info", "warning" or "security"; what it is about: see `events.fields`."""

    def describe(self, conn: Any) -> str:
        """Who a connection is, for the log: `uid=0 pid=1 comm="init"`."""

    def next_serial(self) -> int:
        """A serial for a message of the bus's own."""

    def check_activate(self, conn: Any, msg: Any, service: Service) -> None:
        """Raises DBusError unless policy lets `msg` start `service`, as far as that can be said
        without a receiver."""

    def reply(self, conn: Any, msg: Any, signature: str, values: tuple[Any, ...]) -> None:
        """Answers a call to the bus."""

    def refused(self, conn: Any, msg: Any, error: DBusError) -> None:
        """Answers any message with an error, if it can be answered."""

    def services_changed(self) -> None:
        """Sends ActivatableServicesChanged."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the bus's configuration and command line say about activation.

    `address`: where the bus listens, with guid, all of it; `bus_type`: <type>, or None; `helper`:
    command line of <servicehelper>; `systemd`: --systemd-activation; `to_journal`: the bus logs to
    syslog, so services log to the journal; `nofile`: soft and hard limit of open files as they
    were before the bus raised its own.
    """

    address: str
    bus_type: str | None = None
    helper: str | None = None
    systemd: bool = False
    to_journal: bool = False
    nofile: tuple[int, int] | None = None


class Activator:
    """Activation of one bus.

    `services`: what can be started; `book`: who waits for what; `environment`: what services get,
    as UpdateActivationEnvironment left it; `spawner.children`: the processes started so far that
    still run; `asked`: how often a user's message began to start something; `outcomes`: how often
    the start of a name "succeeded" or "failed". All of it is plain data to look at.
    """

    def __init__(
        self,
        bus: Any,
        context: Context,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        directories: Iterable[ServiceDir],
        environ: Mapping[bytes, bytes] | None = None,
    ) -> None:
        self.bus = bus
        self.context = context
        self.loop = loop
        self.settings = settings
        self.watch: Watch | None = None
        self.services = self._scan(directories)
        self.book = Book()
        self.callers = self.book.callers
        self.environment = environment.inherited(os.environb if environ is None else environ)
        self.spawner = Spawner(loop)
        self.asked: Counter[int | None] = Counter()
        self.outcomes: Counter[tuple[bytes, str]] = Counter()

    # What the front asks

    def activatable_names(self) -> list[bytes]:
        """Names that service files provide; ListActivatableNames puts the bus's own before them."""
        return list(self.services.names)

    def activate(self, conn: Any, msg: Any, name: bytes) -> bool:
        """A message found no owner of its destination. False: there is no such service.

        True: the message is kept. Raises DBusError where it must not be, or starting failed."""
        self._check_room(conn, msg, name)
        service = self._find(name)
        if service is None and not self._is_systemd(name):
            return False
        if service is not None:
            self.context.check_activate(conn, msg, service)
        self._keep(conn, msg, name, service, auto=True)
        return True

    def start_service(self, conn: Any, msg: Any, name: bytes) -> None:
        """StartServiceByName: answers now or when the name appears; raises DBusError."""
        self._check_room(conn, msg, name)
        service = self._find(name)
        if service is None and not self._is_systemd(name):
            shown = name.decode(errors="replace")
            raise DBusError(
                errors.SERVICE_UNKNOWN,
                f"The name {shown} was not provided by any .service files",
            )
        if self.bus.lookup(name) is not None:
            self.context.reply(conn, msg, "u", (ALREADY_RUNNING,))
        else:
            self._keep(conn, msg, name, service, auto=False)

    def name_owned(self, name: bytes, owner: Any) -> None:
        """A name got an owner: whoever waited for it is served, in order.

        To be called once the owner has been told (NameAcquired) and before its RequestName is
        answered."""
        pending = self.book.names.get(name)
        if pending is None:
            return
        entries = self._end(pending)
        if pending.child is not None:
            pending.child.on_exit = None
        self.outcomes[name, "succeeded"] += 1
        self.context.log(
            "info",
            f"Successfully activated service '{pending.shown}'",
            "activated",
            conn=owner,
            name=pending.shown,
        )
        for entry in entries:
            if not entry.auto and entry.conn.state == ACTIVE:
                self.context.reply(entry.conn, entry.msg, "u", (SUCCESS,))
        for entry in entries:
            if entry.conn is None:
                self.bus.emit(owner, entry.wire, None, True)
            elif entry.auto and entry.conn.state == ACTIVE:
                self.bus.deliver_kept(entry.conn, entry.msg, owner)

    def connection_gone(self, conn: Any) -> None:
        """Drops what a connection waits for."""
        self.book.drop_caller(conn)

    def reload(self, settings: Settings, directories: Iterable[ServiceDir]) -> bool:
        """Takes over a new configuration; whether other names can be started now.

        What is under way stays so. Like dbus-daemon, tells the clients in any case: the signal says
        that the list might have changed."""
        before = set(self.services.names)
        self.settings = settings
        self.services = self._scan(directories)
        self.context.services_changed()
        return set(self.services.names) != before

    def use_watch(self, watch: Watch) -> None:
        """From now on `watch` notices changes in (some of) `watch_paths()`; see `directories`."""
        self.watch = self.services.watch = watch

    def watch_paths(self) -> list[str]:
        """Directories whose changes are a reason to `reload()`."""
        return [entry.place.path for entry in self.services.directories if entry.place.watched]

    def update_environment(self, variables: Mapping[str, str]) -> None:
        """UpdateActivationEnvironment: for the services started from now on. Raises DBusError."""
        if self.settings.helper is not None:
            raise DBusError(
                errors.ACCESS_DENIED, "Cannot change activation environment on a system bus."
            )
        pairs = [(key.encode(), value.encode()) for key, value in variables.items()]
        for key, value in pairs:
            environment.update(self.environment, key, value)
        if not self.settings.systemd:
            return
        owner = self.bus.lookup(systemd.NAME)
        serial = self.context.next_serial()
        if owner is not None:
            self.bus.emit(owner, systemd.set_environment(serial, pairs, owner.unique_name))
        else:
            self._keep_for_systemd(systemd.set_environment(serial, pairs))

    def systemd_failure(self, conn: Any, msg: Any) -> None:
        """The signal ActivationFailure, from whomever; only systemd's own is believed."""
        if self.bus.lookup(systemd.NAME) is not conn:
            sender = conn.unique_name.decode() or "(unauthenticated)"
            self.context.log(
                "security",
                f"Ignoring forged ActivationFailure message from connection {sender} "
                f"({self.context.describe(conn)})",
                "forged",
                conn=conn,
                msg=msg,
            )
            return
        if not self.settings.systemd:
            self.context.log(
                "warning",
                "Ignoring unexpected ActivationFailure message while not using systemd activation",
            )
            return
        failed = systemd.activation_failure(msg)
        if failed is None:
            return
        unit, error = failed
        self.context.log("info", f"Activation via systemd failed for unit '{unit}': {error.text}")
        for pending in list(self.book.names.values()):
            if pending.unit == unit:
                self._fail(pending, error)

    def close(self) -> None:
        """Forgets everything without telling anybody; processes go on."""
        for pending in list(self.book.names.values()):
            self._end(pending)
        self.spawner.close()

    def _scan(self, directories: Iterable[ServiceDir]) -> Services:
        helped = self.settings.helper is not None
        return Services(directories, self.context.log, helped, self.watch)

    # Keeping messages

    def _find(self, name: bytes) -> Service | None:
        # systemd comes to the bus by itself and needs no file, even if there is one.
        return None if self._is_systemd(name) else self.services.find(name)

    def _is_systemd(self, name: bytes) -> bool:
        return self.settings.systemd and name == systemd.NAME

    def _check_room(self, conn: Any, msg: Any, name: bytes) -> None:
        """Raises DBusError(LimitsExceeded) where no further message may wait.

        dbus-daemon limits their number; behind that limit we keep a reserve for users who have few
        of them, as everywhere (see jitney.broker.accounting). It also stops reading from a
        connection of which it holds max_incoming_bytes or max_incoming_unix_fds; here such a
        connection's further messages to services that are still starting are refused, because it
        may have other things to do than to wait for a service that never comes.
        """
        limits = self.bus.limits
        shown = name.decode(errors="replace")
        limit = limits.max_pending_service_starts
        total = self.book.total.messages
        # The bus's own has no part in the reserve.
        mine = self.book.held_of_user(conn).messages if conn is not None else limit
        if not room_for_one(total, limit, mine):
            raise DBusError(
                errors.LIMITS_EXCEEDED,
                "The maximum number of pending activations has been reached, "
                f"activation of {shown} failed (max_pending_service_starts={limit})",
            )
        if conn is None:
            return
        held = self.book.held_of(conn)
        of_user = self.book.held_of_user(conn)
        n_fds = len(msg.fds) if msg.fds is not None else 0
        if held.n_bytes > limits.max_incoming_bytes or of_user.n_bytes > KEPT_BYTES * USER_SHARE:
            what, limit = "bytes", limits.max_incoming_bytes
        elif n_fds and (
            held.n_fds + n_fds > limits.max_incoming_unix_fds
            or of_user.n_fds + n_fds > KEPT_FDS * USER_SHARE
        ):
            what, limit = "unix_fds", limits.max_incoming_unix_fds
        else:
            return
        raise DBusError(
            errors.LIMITS_EXCEEDED,
            f"The maximum of what may wait for services to start has been reached, "
            f"activation of {shown} failed (max_incoming_{what}={limit})",
        )

    def _keep(self, conn: Any, msg: Any, name: bytes, service: Service | None, auto: bool) -> None:
        """Queues a message for `name` and starts what provides it unless that is under way.

        Raises DBusError if it cannot be started; then nothing is kept."""
        entry = Waiting(conn, msg.copy(), auto=auto)
        pending = self.book.names.get(name)
        if pending is not None:
            self.book.add(pending, entry)
            return
        pending = self._begin(name, service, entry)
        if service is None:
            return
        self.asked[getattr(conn.user, "uid", None)] += 1
        try:
            if self.settings.systemd and service.file.systemd_service is not None:
                self._ask_systemd(conn, pending, service.file.systemd_service)
            else:
                self._spawn(conn, pending, service)
        except DBusError:
            self.outcomes[name, "failed"] += 1
            self._end(pending)
            raise

    def _keep_for_systemd(self, wire: bytes) -> None:
        """Queues a message of the bus's own until systemd is on the bus. Raises DBusError."""
        self._check_room(None, None, systemd.NAME)
        self.bus.show(wire)
        entry = Waiting(None, wire=wire)
        pending = self.book.names.get(systemd.NAME)
        if pending is not None:
            self.book.add(pending, entry)
        else:
            self._begin(systemd.NAME, None, entry)

    def _begin(self, name: bytes, service: Service | None, entry: Waiting) -> Pending:
        pending = Pending(name)
        if service is not None:
            pending.exec = service.file.exec
            pending.unit = service.file.systemd_service
        seconds = self.bus.limits.service_start_timeout / 1000
        pending.deadline = self.loop.time() + seconds
        pending.timer = self.loop.call_at(pending.deadline, self._timed_out, pending)
        self.book.add(pending, entry)
        self.bus.names.set_activator(name, pending)
        return pending

    def _end(self, pending: Pending) -> list[Waiting]:
        """Ends an activation, however it went; the messages that waited for it, oldest first."""
        self.bus.names.set_activator(pending.name, None)
        return self.book.take(pending)

    # Starting

    def _ask_systemd(self, conn: Any, pending: Pending, unit: str) -> None:
        wire = systemd.activation_request(self.context.next_serial(), unit)
        what = f"service name='{pending.shown}' unit='{unit}'"
        whom = f"requested by '{conn.unique_name.decode()}' ({self.context.describe(conn)})"
        owner = self.bus.lookup(systemd.NAME)
        if owner is not None:
            self.context.log(
                "info", f"Activating via systemd: {what} {whom}", "activating", conn=conn,
                name=pending.shown, unit=unit,
            )  # fmt: skip
            self.bus.emit(owner, wire)
            return
        self.context.log("info", f"Activating systemd to hand-off: {what} {whom}")
        try:
            self._keep_for_systemd(wire)
        except DBusError:
            self.context.log("info", f"Failed to activate via systemd: {what}")
            raise

    def _spawn(self, conn: Any, pending: Pending, service: Service) -> None:
        settings = self.settings
        command = service.file.exec
        how = ""
        if settings.helper is not None:
            if service.file.user is None:
                raise DBusError(
                    errors.SPAWN_FILE_INVALID, "Cannot do system-bus activation with no user\n"
                )
            command = helper.command(settings.helper, pending.name)
            pending.helper = True
            how = " (using servicehelper)"
        argv = [argument.encode() for argument in shell.split(command)]
        self.context.log(
            "info",
            f"Activating service name='{pending.shown}' requested by "
            f"'{conn.unique_name.decode()}' ({self.context.describe(conn)}){how}",
            "activating",
            conn=conn,
            name=pending.shown,
        )
        try:
            pending.child = self.spawner.start(
                pending.shown,
                argv,
                environment.for_service(self.environment, settings.address, settings.bus_type),
                functools.partial(self._child_ended, pending),
                settings.nofile,
                settings.to_journal,
            )
        except DBusError as error:
            self.context.log(
                "info", f"Failed to activate service {pending.shown}: {error.text}",
                "activation-failed", conn=conn, name=pending.shown, reason=error.text,
            )  # fmt: skip
            raise

    # Failing

    def _child_ended(self, pending: Pending, child: Child) -> None:
        if self.book.names.get(pending.name) is not pending:
            return
        error = failure(child)
        if error is None:
            # It may have become a daemon, whose name is still to come, or was only a launcher.
            return
        if pending.helper and error.name == errors.SPAWN_CHILD_EXITED:
            error = helper.failure(os.waitstatus_to_exitcode(child.status or 0))
        self.context.log(
            "info", f"Activated service '{pending.shown}' failed: {error.text}",
            "activation-failed", name=pending.shown, reason=error.text,
        )  # fmt: skip
        # What was to start the same program will not come either.
        for other in list(self.book.names.values()):
            if other is not pending and other.exec is not None and other.exec == pending.exec:
                self._fail(other, error)
        self._fail(pending, error)

    def _timed_out(self, pending: Pending) -> None:
        pending.timer = None
        text = (
            f"Failed to activate service '{pending.shown}': timed out "
            f"(service_start_timeout={self.bus.limits.service_start_timeout}ms)"
        )
        self.context.log(
            "warning", text, "activation-failed", name=pending.shown, reason="timed out"
        )
        if pending.child is not None:
            pending.child.kill()
        self._fail(pending, DBusError(errors.TIMED_OUT, text))

    def _fail(self, pending: Pending, error: DBusError) -> None:
        """Ends an activation; everyone who waits for it gets the error."""
        self.outcomes[pending.name, "failed"] += 1
        if pending.child is not None:
            pending.child.on_exit = None
        for entry in self._end(pending):
            if entry.conn is not None and entry.conn.state == ACTIVE:
                self.context.refused(entry.conn, entry.msg, error)
