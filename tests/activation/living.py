"""A bus with services of the test's own, for tests that must hold on dbus-daemon as well.

Invariant: what a test says of a bus it says of both, jitney-daemon and dbus-daemon; where they
differ on purpose the test asks `bus.ours` and says why.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import buses
from rawclient import RawClient, Received

from jitney.compat import wire

ODD = Path(__file__).with_name("oddservice.py")
LIMITS = """
  <limit name="service_start_timeout">{timeout}</limit>
  <limit name="max_pending_service_starts">{pending}</limit>
  <limit name="max_completed_connections">5000</limit>
  <limit name="max_connections_per_user">5000</limit>
"""
NAME = "jitney.test.Service"


@dataclass
class Living:
    """A running bus, its directory of service files, and the clients that a test opens."""

    daemon: buses.Daemon
    ours: bool
    clients: list[RawClient] = field(default_factory=list)

    @property
    def services(self) -> Path:
        return self.daemon.directory / "services"

    def client(self, uid: int | None = None) -> RawClient:
        client = RawClient(self.daemon.address, uid=uid, timeout=20)
        self.clients.append(client)
        client.hello()
        return client

    def file(self, name: str, exec: str, *lines: str, called: str = "") -> Path:
        """Writes a service file at once whole, as package managers do."""
        path = self.services / f"{called or name}.service"
        text = "\n".join(["[D-BUS Service]", f"Name={name}", f"Exec={exec}", *lines, ""])
        new = path.with_suffix(".new")
        new.write_text(text)
        new.rename(path)
        return path

    def odd(self, *way: str, name: str = NAME) -> Path:
        """A service file of an odd service."""
        return self.file(name, shlex.join([sys.executable, str(ODD), name, *way]))

    @property
    def started(self) -> list[str]:
        """The names of the odd services that were started, in order."""
        file = self.daemon.directory / "started"
        return file.read_text().split() if file.exists() else []

    @property
    def log(self) -> str:
        return (self.daemon.directory / "log").read_text(errors="replace")


@contextlib.contextmanager
def living(
    ours: bool,
    extra: str = "",
    *options: str,
    timeout: int = 20000,
    pending: int = 5000,
    files: int = 0,
    **given: Any,
) -> Iterator[Living]:
    """A bus where `pending` messages may wait for `timeout` ms. Ends its services as well.

    `files`: the soft limit of open files that the bus finds, if not our own.

    `options` go on the bus's command line, all else is for `buses.running`."""
    files = files or resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    command = buses.jitney_command() if ours else [buses.REFERENCE or "dbus-daemon"]
    # The bus is the first to know its directory. It gets a descriptor and a limit for its services
    # to be free of.
    script = 'export JITNEY_TEST_NOTES="$PWD"; ulimit -Sn "$0"; exec "$@" 9</dev/zero'
    shell = ["/bin/sh", "-c", script, str(files), *command, *options]
    extra += LIMITS.format(timeout=timeout, pending=pending)
    with buses.running(shell, extra=extra, **given) as daemon:
        bus = Living(daemon, ours)
        try:
            yield bus
        finally:
            for client in bus.clients:
                client.close()
            for pid in processes(f"JITNEY_TEST_NOTES={daemon.directory}"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def processes(variable: str) -> list[int]:
    """The processes, but the bus itself, that have this variable in their environment."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if variable.encode() in environ and any(
            line.startswith(b"DBUS_STARTER_ADDRESS=") for line in environ
        ):
            found.append(int(entry))
    return found


def call(
    client: RawClient, member: bytes = b"Echo", *values: str, to: str = NAME, flags: int = 0
) -> int:
    """A method call to a service; its serial."""
    return client.message(
        destination=to.encode(),
        path=b"/",
        interface=b"jitney.test.Odd",
        member=member,
        signature="s" * len(values),
        values=values,
        flags=flags,
    )


def outcome(reply: Received) -> tuple[str, ...]:
    """An error's name and text, or what else came."""
    if reply.type == wire.ERROR:
        assert reply.error_name is not None
        return (reply.error_name.removeprefix("org.freedesktop.DBus.Error."), *reply.body)
    return tuple(str(value) for value in reply.body)
