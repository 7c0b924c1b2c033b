"""The daemon: everything between the command line and the event loop, in dbus-daemon's order.

Invariant: until the address is printed any failure is one line on standard error, status 1 and
no trace in the file system; from then on nothing but a signal ends the bus, and then, too, its
sockets, nonce files and pid file go with it. The configuration is not needed again once it is
read: a reload that cannot read it leaves the bus as it was.

What a bus consists of is not known here. `build(daemon, loop)` puts it together once the process
is what it is going to be (forked, unprivileged) and gives back a `Service`; see
jitney.compat.assembly.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from . import capabilities, process, without_ssl
from .auth import Keyring, Offer, check_mechanisms
from .cli import Options
from .config import ConfigError, Plain, Reading
from .errors import FAILED, FILE_NOT_FOUND, DBusError
from .listen import Listener, Server, open_servers, printed_address
from .log import Log, prefix_for
from .process import Limit

if TYPE_CHECKING:
    import socket
    from asyncio import AbstractEventLoop

    from jitney.broker.connection import Connection

    from .upgrade.giver import Giver
    from .upgrade.store import Found

_SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Service(Protocol):
    """A bus at work on an event loop."""

    def reload(self, config: Plain) -> None:
        """Take over another configuration, all of it or (on an exception) nothing."""

    def close(self) -> None:
        """End all connections; the listening sockets are the daemon's."""


Build = Callable[["Daemon", "AbstractEventLoop"], Service]


class Daemon:
    """One run of the daemon. What `build()` finds here:

    `config`, `options`: what to do; `servers`, `listeners`: where to accept, each listener with
    its `offer` for jitney.compat.auth; `address`: all of them, as printed; `log`; `fd_limit`:
    the limit of open files we were started with, for children; `metrics`: where they are to be
    read, each with its socket if it has one; `places`: where kdbus's clients come in, or None;
    `reload()` for ReloadConfig.
    """

    config: Plain

    def __init__(self, options: Options, build: Build | None = None) -> None:
        self.options = options
        self.servers: list[Server] = []
        self.address = ""
        self.log = Log()
        self.metrics: list[tuple[str, socket.socket | None]] = []
        self.places: Any = None
        self.fd_limit: Limit | None = None
        self.service: Service | None = None
        self._build = build
        self._reading: Reading | None = None
        self._read_again = False
        self._overtaken = False
        self._giver: Giver | None = None
        # What one process of the bus hands on to the next, besides the bus.
        self.guid = ""
        self.directory = os.getcwd()
        self.pidfile: str | None = None
        self.forked = False
        self.keeper: socket.socket | None = None
        self.upgrades = 0
        self._fork: process.Fork | None = None
        self._loop: AbstractEventLoop | None = None
        self._early: list[int] = []  # signals that came before there was a loop
        # After a fork the working directory is another one.
        self._config_path = os.path.abspath(options.config_file)

    @property
    def listeners(self) -> list[Listener]:
        """The listeners of all servers."""
        return [listener for server in self.servers for listener in server.listeners]

    def run(self) -> int:
        """Be the daemon until a signal ends it; returns the exit status."""
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for number in _SIGNALS:
            signal.signal(number, self._remember)
        if self.options.take_over is not None:
            return self._take_over_bus(self.options.take_over)
        try:
            reading = Reading(self.options.config_file)
            build = self._imports()  # meanwhile
            self._configure(reading.result())
            kept = self._kept()
            self._listen()
            self._reserve()
            self._print_address()
            self._become_daemon()
            self._drop_privileges()
            self._assemble(build)
            self.begin_store(kept)
            self._serve()
        except ConfigError as error:
            return self._fail(_located(error))
        except DBusError as error:
            return self._fail(error.text)
        finally:
            self._clean_up()
        return 0

    def reload(self) -> None:
        """Read the configuration again, for ReloadConfig, and wait for it.

        Raises DBusError if that cannot be done; then everything is as before.
        """
        # What a child that is reading already will come with is older than what we read now.
        self._overtaken = self._reading is not None
        self._take_over(Reading(self._config_path))

    def reload_soon(self) -> None:
        """The same for those who want no answer: the bus goes on while a child reads."""
        if self._loop is None or self._reading is not None:
            self._read_again = True
            return
        self._reading = reading = Reading(self._config_path)
        if reading.fileno() < 0:
            self._reloaded()
        else:
            try:
                self._loop.add_reader(reading.fileno(), self._reloaded)
            except OSError:
                self._reloaded()  # no room in the poller: wait for it

    def _reloaded(self) -> None:
        reading = self._reading
        assert reading is not None
        assert self._loop is not None
        if reading.fileno() >= 0:
            self._loop.remove_reader(reading.fileno())
        overtaken, self._overtaken = self._overtaken, False
        try:
            if overtaken:
                reading.forget()
            else:
                self._take_over(reading)
        except DBusError as error:
            self.log.warning(f"Unable to reload configuration: {error.text}")
        finally:
            # Also after a bug of ours: the next reload must find nothing in its way.
            self._reading = None
            if self._read_again:
                # What was read may have been changed in the meantime.
                self._read_again = False
                self.reload_soon()

    def _take_over(self, reading: Reading) -> None:
        process.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config = reading.result()
            if self.service is not None:
                self.service.reload(config)
        except (ConfigError, DBusError) as error:
            name, text = FAILED, error.text
            if isinstance(error, ConfigError):
                name, text = FILE_NOT_FOUND if error.missing else FAILED, _located(error)
            self.log.info(f"Unable to reload configuration: {text}")
            raise DBusError(name, text) from error
        finally:
            process.notify("READY=1")
        self.config = config.without_rules()
        self._warn_of_config()
        self.log.info("Reloaded configuration")

    def upgrade(self, command: str = "", caller: tuple[Connection, int] | None = None) -> None:
        """Hand the bus over to a new process, of `command` or of what we are; see `upgrade.giver`.

        Raises DBusError if that cannot even begin."""
        from .upgrade.giver import Giver

        if self._giver is not None:
            raise DBusError(FAILED, "An upgrade is under way already")
        giver = Giver(self, command, caller, self._not_upgraded)
        giver.start()
        self._giver = giver

    def upgrade_soon(self) -> None:
        """The same for a signal."""
        try:
            self.upgrade()
        except DBusError as error:
            self.log.warning(error.text)

    def _not_upgraded(self) -> None:
        self._giver = None

    @property
    def wants_reading(self) -> bool:
        """Whether the configuration may be another one than was read."""
        return self._reading is not None or self._read_again

    def forget_reading(self) -> None:
        """Another process will read it."""
        if self._reading is not None:
            self._reading.forget()
            self._reading = None

    def quit(self) -> None:
        """End the loop, and with it the daemon."""
        if self._loop is not None:
            process.notify("STOPPING=1")
            self._loop.stop()

    # The steps of run()

    def _configure(self, config: Plain) -> None:
        options = self.options
        self.config = config
        syslog = config.syslog if options.syslog is None else options.syslog
        self.log = Log(
            stderr=not (syslog and options.syslog_only),
            syslog=syslog,
            json=options.log_json,
            journal=options.log_journal,
        )
        self.log.prefix = prefix_for(config.type)
        self._warn_of_config()
        if config.apparmor == "required":
            from .security.mediation import present

            present(config.apparmor)
        if config.pidfile is not None and options.write_pidfile:
            # A race, but worth a look before we unlink the socket of a bus that runs.
            process.check_pidfile(config.pidfile)
        check_mechanisms(config.auth)

    def _listen(self) -> None:
        config = self.config
        if self.options.address is not None:
            addresses = [self.options.address]
        else:
            addresses = list(config.addresses)
        self.servers = open_servers(addresses, self.log.warning)
        self._offer()
        self.address = printed_address(self.servers)
        for place in self.options.metrics:
            from .places import listen

            self.metrics.append((place, listen(place)))

    def _offer(self) -> None:
        config = self.config
        for server in self.servers:
            offer = Offer(server.guid, config.auth, config.allow_anonymous, _keyring)
            for listener in server.listeners:
                listener.offer = offer

    def _imports(self) -> Build:
        """Import the rest before the address is out: whoever waits for it connects at once."""
        without_ssl.import_asyncio()
        if self._build is not None:
            return self._build
        from .assembly import build

        return build

    def _reserve(self) -> None:
        """Makes place for clients of kdbus, while we may and before anybody is told that we are."""
        mount, sockets = self.options.kdbus_mount, self.options.kdbus_sockets
        if mount is None and sockets is None:
            return
        from jitney.kdbus.worlds.places import reserve

        name = self.config.user
        found = process.find_user(name) if name is not None and os.geteuid() == 0 else None
        user = (name, *found) if name is not None and found is not None else None
        self.places = reserve(mount, sockets, self.config.type, user)

    def _print_address(self) -> None:
        fd = self.options.print_address
        if fd is not None:
            process.print_line(fd, self.address)
            if fd != self.options.print_pid:
                process.close_printed(fd)

    def _become_daemon(self) -> None:
        config, options = self.config, self.options
        if config.user is not None and process.find_user(config.user) is None:
            raise DBusError(FAILED, f'Could not get UID and GID for username "{config.user}"')
        pidfile = config.pidfile if options.write_pidfile else None
        if config.fork if options.fork is None else options.fork:
            self._fork = process.daemonise(
                pidfile=pidfile, print_pid=options.print_pid, keep_umask=config.keep_umask
            )
            self.forked = True
            self.log.prefix = prefix_for(config.type)
        elif pidfile is not None:
            process.write_pidfile(pidfile, os.getpid())
        self.pidfile = pidfile  # ours to remove, and not before
        if self._fork is None and options.print_pid is not None:
            process.print_line(options.print_pid, str(os.getpid()))
        if options.print_pid is not None:
            process.close_printed(options.print_pid)

    def _drop_privileges(self) -> None:
        self.fd_limit = process.raise_fd_limit(self.log.warning)
        if self.config.user is not None:
            process.change_user(self.config.user)

    def _assemble(self, build: Build) -> None:
        try:
            self._loop = loop = _new_loop()
        except OSError as error:
            raise process.from_errno(error, "Failed to make an event loop") from error
        loop.set_exception_handler(self._report)
        try:
            self.service = build(self, loop)
        except OSError as error:
            raise process.from_errno(error, "Failed to set up the bus") from error
        self.config = self.config.without_rules()
        # Not before the loop runs: uvloop loses what comes between the two.
        loop.call_soon(self._started, loop)

    def _kept(self) -> Found | None:
        """What a process before us that crashed left with the service manager."""
        if not self.options.fd_store:
            return None
        from .upgrade.store import found

        kept = found()
        if kept is not None:
            self.guid = kept.document["bus"]["guid"]
        return kept

    def begin_store(self, kept: Found | None, number: int = 0) -> None:
        service: Any = self.service
        store = getattr(service, "store", None)
        if store is None:
            return
        store.number = number
        if kept is not None:
            from .upgrade.revival import revive

            store.number = kept.number
            try:
                revive(self, service, store, kept)
            except Exception:
                # A mistake of ours, which would end each process that is started.
                store.give_up(kept)
                raise
        store.begin()

    def _serve(self) -> None:
        assert self._loop is not None
        self._loop.run_forever()

    # Instead of most of them, where another process was the bus so far

    def _take_over_bus(self, fd: int) -> int:
        from .upgrade.taker import Taker

        taker = Taker(self, fd)
        taker.run(self._prepare)
        try:
            taker.begin()
            self._serve()
        finally:
            self._clean_up()
        return 0

    def _prepare(self, offer: dict[str, Any], sockets: list[int]) -> None:
        """A whole bus that nobody is on, and no trace of it outside."""
        import socket

        self.options.write_pidfile = False  # it is there
        reading = Reading(self.options.config_file)
        build = self._imports()
        try:
            self._configure(reading.result())
        except ConfigError as error:
            raise DBusError(FAILED, _located(error)) from error
        # Ours by now; what we start has none of it.
        capabilities.clear_ambient()
        self.guid, self.address = offer["guid"], offer["address"]
        if offer["fd_limit"] is not None:
            self.fd_limit = (offer["fd_limit"][0], offer["fd_limit"][1])
        served = dict(zip(offer["metrics"], sockets, strict=True))
        for place in self.options.metrics:
            from .places import listen

            if place in served:
                self.metrics.append((place, socket.socket(fileno=served[place])))
            else:
                self.metrics.append((place, listen(place)))
        self._assemble(build)

    def take_servers(self, servers: list[Server]) -> None:
        """Listens where another process listened so far."""
        self.servers = servers
        self._offer()
        service: Any = self.service
        service.hub.acceptor.start(self._loop, self.listeners)

    def _started(self, loop: AbstractEventLoop) -> None:
        loop.add_signal_handler(signal.SIGHUP, self.reload_soon)
        loop.add_signal_handler(signal.SIGTERM, self.quit)
        loop.add_signal_handler(signal.SIGINT, self.quit)
        loop.add_signal_handler(signal.SIGUSR2, self.upgrade_soon)
        if os.getpid() == 1:
            from .orphans import Orphans

            Orphans(loop)
        for number in self._early:
            if number != signal.SIGUSR2:  # what is starting is as new as can be
                loop.call_soon(self.reload_soon if number == signal.SIGHUP else self.quit)
        if self._fork is not None:
            self._fork.ready()
        process.notify("READY=1")

    def _clean_up(self) -> None:
        if self._loop is not None:
            if self.service is not None:
                self.service.close()
            self._loop.close()
        for server in self.servers:
            server.close()
        if self.places is not None:
            self.places.close()
        for place, sock in self.metrics:
            from .places import forget

            if sock is not None:
                sock.close()
            forget(place)
        if self.pidfile is not None:
            process.remove_pidfile(self.pidfile)
        self.log.close()

    # What happens meanwhile

    def _fail(self, text: str) -> int:
        self.log.prefix = ""
        self.log.warning(f"Failed to start message bus: {text}")
        return 1

    def _remember(self, number: int, frame: object) -> None:
        self._early.append(number)

    def _report(self, loop: AbstractEventLoop, context: dict[str, object]) -> None:
        """A bug: the loop caught an exception of ours. The bus goes on, the log has the story."""
        text = str(context.get("message", "unhandled exception"))
        error = context.get("exception")
        if isinstance(error, BaseException):
            import traceback

            text += ":\n" + "".join(traceback.format_exception(error))
        self.log.warning(text)

    def _warn_of_config(self) -> None:
        for warning in self.config.warnings:
            self.log.warning(f"{warning.text} ({warning.file}:{warning.line})")


def _located(error: ConfigError) -> str:
    if not error.line or error.file in error.text:
        return error.text
    return f"{error.text} ({error.file}:{error.line})"


def _keyring() -> Keyring:
    from .cookies import Keyring as Cookies

    return Cookies()


def _new_loop() -> AbstractEventLoop:
    """The bus's own loop, or the one that JITNEY_LOOP names, to compare: "uvloop" or "asyncio"."""
    import asyncio

    loop: AbstractEventLoop
    wanted = os.environ.get("JITNEY_LOOP", "")
    if wanted == "uvloop":
        import uvloop

        loop = uvloop.new_event_loop()
    elif wanted == "asyncio":
        loop = asyncio.new_event_loop()
    else:
        from .loop import BusLoop

        loop = BusLoop()
    asyncio.set_event_loop(loop)
    return loop
