"""Host: a whole bus on an event loop, and what a test may ask of it, in plain data.

Invariant: everything a test's side of the bus says or hears goes through `Host.ask()`, with values
that marshal knows, so that it does not matter whether the bus is in this process or in another.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jitney.compat.assembly import BusService
from jitney.compat.auth import Keyring, Offer
from jitney.compat.cli import Options
from jitney.compat.config import Config, ConfigError, Plain, load
from jitney.compat.config.plain import pack, unpack
from jitney.compat.errors import FAILED, DBusError
from jitney.compat.listen import Listener, open_servers, printed_address

from . import config as written
from .faulty import FaultyBus

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


class Lines:
    """A log that is kept: `lines` of (severity, text)."""

    syslog = structured = False
    lost = 0

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def log(self, severity: str, text: str, fields: Any = None) -> None:
        self.lines.append((severity, text))

    def warning(self, text: str) -> None:
        self.log("warning", text)


class _Service(BusService):
    bus_type = FaultyBus


class Host:
    """One bus; also what a `BusService` takes for its daemon."""

    fd_limit = None
    metrics: tuple[Any, ...] = ()
    guid = ""
    places = None

    def __init__(
        self, loop: AbstractEventLoop, about: Mapping[str, Any], environ: Mapping[str, str]
    ) -> None:
        self.loop = loop
        self.options = Options()
        self.log = Lines()
        self.directory = tempfile.mkdtemp(prefix="jitney-testing-")
        self.servers: list[Any] = []
        self.service: _Service | None = None
        self.environ = dict(environ)
        try:
            os.chmod(self.directory, 0o755)
            self.path = written.write(self.directory, about)
            self.config = self._read()
            self.servers = open_servers(self.config.addresses, self.log.warning)
            for server in self.servers:
                offer = Offer(server.guid, self.config.auth, self.config.allow_anonymous, _keyring)
                for listener in server.listeners:
                    listener.offer = offer
            self.address = printed_address(self.servers)
            self.service = _Service(self, loop)  # type: ignore[arg-type]
            self.bus: FaultyBus = self.service.bus  # type: ignore[assignment]
            self.bus.loop = loop
            self.service.activator.update_environment(self.environ)
        except BaseException:
            self.close()
            raise

    @property
    def listeners(self) -> list[Listener]:
        return [listener for server in self.servers for listener in server.listeners]

    def _read(self) -> Plain:
        config: Config = load(self.path)
        return unpack(pack(config))

    def reload(self) -> None:
        """Reads the configuration again, for ReloadConfig."""
        try:
            config = self._read()
        except ConfigError as error:
            raise DBusError(FAILED, error.text) from error
        assert self.service is not None
        self.service.reload(config)
        self.config = config

    def upgrade(self, command: str, caller: Any) -> None:
        raise DBusError(FAILED, "This bus lives in a process of somebody else")

    def reload_soon(self) -> None:
        self.loop.call_soon(self._reload_quietly)

    def _reload_quietly(self) -> None:
        try:
            self.reload()
        except DBusError as error:
            self.log.warning(f"Unable to reload configuration: {error.text}")

    def close(self) -> None:
        """Ends the bus, its connections, and the services that it started."""
        children = []
        if self.service is not None:
            children = list(self.service.activator.spawner.children)
            self.service.close()
            self.service = None
        for server in self.servers:
            server.close()
        for pid in children:
            try:
                os.kill(pid, signal.SIGTERM)
            except OSError:
                pass
        shutil.rmtree(self.directory, ignore_errors=True)

    # What a test asks

    def ask(self, verb: str, *given: Any) -> Any:
        """Calls one of the methods below by name."""
        return getattr(self, "on_" + verb)(*given)

    def on_inject(self, spec: Mapping[str, Any]) -> int:
        return self.bus.inject(spec)

    def on_lift(self, number: int) -> None:
        self.bus.lift(number)

    def on_hits(self, number: int) -> int:
        return self.bus.hits.get(number, 0)

    def on_lines(self, after: int) -> list[Any]:
        """What the journal has got since line `after`."""
        news = min(self.bus.n_lines - after, len(self.bus.lines))
        if news <= 0:
            return []
        lines = self.bus.lines
        return [lines[i] for i in range(len(lines) - news, len(lines))]

    def on_log(self) -> list[tuple[str, str]]:
        return self.log.lines

    def on_names(self) -> dict[str, list[str]]:
        """The names that each connection owns, by its unique one."""
        return {
            conn.unique_name.decode(): [name.decode() for name in conn.owned]
            for conn in self.bus.connections.values()
            if not conn.monitor
        }

    def on_disconnect(self, name: str) -> None:
        self.bus.front.hub.drop(self.bus.known(name).transport)


def _keyring() -> Keyring:
    from jitney.compat.cookies import Keyring as Cookies

    return Cookies()
