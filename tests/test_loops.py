"""The bus does the same on each event loop it can run on."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import buses
import pytest
from rawclient import RawClient
from waiting import given_time, until


@pytest.fixture(params=["", "asyncio", "uvloop"], ids=["own", "asyncio", "uvloop"])
def start(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], buses.Daemon]]:
    """A bus where everybody has so many milliseconds."""
    if request.param == "uvloop" and importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    monkeypatch.setenv("JITNEY_LOOP", request.param)
    limits = ("auth_timeout", "service_start_timeout", "reply_timeout")

    def running(limit: int) -> buses.Daemon:
        extra = "".join(f'<limit name="{name}">{limit}</limit>' for name in limits)
        return stack.enter_context(buses.running(buses.jitney_command(), extra=extra))

    with ExitStack() as stack:
        yield running


def service(bus: buses.Daemon, name: str, command: str) -> None:
    file = Path(bus.directory, "services", name + ".service")
    file.write_text(f"[D-BUS Service]\nName={name}\nExec={command}\n")


def error_of_call(client: RawClient, destination: str) -> str | None:
    return client.reply_to(
        client.message(destination=destination.encode(), path=b"/", member=b"M")
    ).error_name


def test_sockets_timers_children_and_signals(start: Callable[[int], buses.Daemon]) -> None:
    given_time(lambda limit: sockets_timers_children_and_signals(start(limit)), 400, 4000, 15000)


def sockets_timers_children_and_signals(bus: buses.Daemon) -> None:
    prefix = "org.freedesktop.DBus.Error."
    service(bus, "loop.Fails", "/bin/false")
    service(bus, "loop.Hangs", "/bin/sleep 30")
    with RawClient(bus.address) as client, RawClient(bus.address) as silent:
        client.hello()
        # A child that ends, one that has to be given up, a reply that does not come.
        assert error_of_call(client, "loop.Fails") == prefix + "Spawn.ChildExited"
        assert error_of_call(client, "loop.Hangs") == prefix + "TimedOut"
        with RawClient(bus.address) as mute:
            mute.hello()
            assert error_of_call(client, mute.unique_name) == prefix + "NoReply"
        # Who does not say Hello is shown out.
        assert silent.receive() is None
        # A busy bus still hears of signals.
        os.kill(bus.pid, signal.SIGHUP)
        service(bus, "loop.Late", "/bin/false")
        os.kill(bus.pid, signal.SIGHUP)
        until(
            lambda: "loop.Late" in client.reply_to(client.driver(b"ListActivatableNames")).body[0]
        )
        os.kill(bus.pid, signal.SIGTERM)
        while client.receive() is not None:
            pass
        assert client.closed
    path = bus.address.partition("path=")[2].partition(",")[0]
    until(lambda: not os.path.exists(path), "the socket is gone")
