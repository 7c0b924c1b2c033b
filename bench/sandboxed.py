"""Calls out of a sandbox: through an endpoint of the bus, or through xdg-dbus-proxy before it.

Invariant: the same caller, server and policy are measured without and with what filters; the
filter's process, where it is one, runs on the broker's CPUs. Which brokers have endpoints is known
by name: the others get the proxy.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

from . import load, wire
from .brokers import Broker
from .config import Config
from .link import Histogram, Link
from .running import BrokerError, Running, end, spawn
from .scenarios import TEXT, name_body

Row = dict[str, float]

SECONDS = 1.0
WINDOW = 16
NAME = b"org.example.Sandboxed"

_OURS = "import sys; from jitney.compat.command import main; sys.exit(main(sys.argv[1:]))"


def sandboxed(broker: Broker, cpus: set[int]) -> Row:
    """Calls to a server that one rule opens: what they take through the filter, and beside it."""
    command = _command(broker)
    with broker.start(Config(), cpus) as running, _door(command, running, cpus) as door:
        plain, plain_rate = _measured(running.path, running.path, 0)
        filtered, rate = _measured(door, running.path, _shift(command))
    return {
        "rate": rate,
        "p50_us": filtered.percentile(0.5),
        "p99_us": filtered.percentile(0.99),
        "alone_rate": plain_rate,
        "alone_p50_us": plain.percentile(0.5),
        "alone_p99_us": plain.percentile(0.99),
    }


def _command(broker: Broker) -> list[str]:
    if broker.name.startswith("jitney"):
        return [sys.executable, "-c", _OURS, "proxy"]
    found = shutil.which("xdg-dbus-proxy")
    if found is None:
        raise BrokerError("xdg-dbus-proxy is not installed")
    return [found]


@contextlib.contextmanager
def _door(command: list[str], running: Running, cpus: set[int]) -> Iterator[str]:
    """A socket whose clients may talk to NAME, and to nobody else."""
    path = f"{running.path}-sandboxed"
    read, write = os.pipe()
    # Its standard input is what it tells that it is ready, and what it watches for our end.
    words = [*command, "--fd=0", f"unix:path={running.path}", path, "--filter"]
    process = spawn([*words, f"--talk={NAME.decode()}"], cpus, stdin=write)
    os.close(write)
    try:
        if os.read(read, 1) != b"x":
            raise BrokerError(f"{command[0]} did not start")
        yield path
    finally:
        os.close(read)
        end(process)


def _measured(door: str, bus: str, shift: int) -> tuple[Histogram, float]:
    """Latencies of one call after another, and the rate with WINDOW of them outstanding."""
    histogram = Histogram()
    with _pair(door, bus, 1, shift) as (caller, server):
        load.calls([caller], [server], 1, SECONDS, histogram)
    with _pair(door, bus, WINDOW, shift) as (caller, server):
        count, seconds = load.calls([caller], [server], WINDOW, SECONDS, Histogram())
    return histogram, count / seconds


@contextlib.contextmanager
def _pair(door: str, bus: str, window: int, shift: int) -> Iterator[tuple[Link, Link]]:
    """A caller behind the door and its server. Serials only go up: older proxies insist."""
    with (
        contextlib.closing(Link(bus)) as server,
        contextlib.closing(Link(door, patient=True)) as caller,
    ):
        server.ask(wire.driver_call(b"RequestName", b"su", name_body(NAME), 5), 5)
        # The proxy has to have heard of that.
        caller.ask(wire.driver_call(b"GetId", serial=5), 5)
        caller.prepare(wire.call(server.name, b"Echo", b"s", TEXT), serial=10, window=window)
        caller.expect(wire.RETURN, server.name, TEXT)
        reply, at = wire.reply(caller.name, b"s", TEXT)
        server.prepare(reply, at, reply_to=10 + shift)
        server.expect(wire.CALL, caller.name, TEXT, first=10 + shift)
        yield caller, server


def _shift(command: list[str]) -> int:
    """By how much a caller's serials are others behind the proxy: up to 0.1.5 it makes room among
    them for calls of its own, two for each name of its policy."""
    if len(command) > 1:
        return 0
    words = [*command, "--version"]
    text = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False).stdout
    numbers = tuple(int(part) for part in re.findall(r"\d+", text))
    return 2 if numbers < (0, 1, 6) else 0
