"""The bus does the same on each event loop it can run on."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import buses
import pytest
from rawclient import RawClient


@pytest.fixture(params=["", "asyncio", "uvloop"], ids=["own", "asyncio", "uvloop"])
def bus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[buses.Daemon]:
    if request.param == "uvloop" and importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    monkeypatch.setenv("JITNEY_LOOP", request.param)
    extra = (
        '<limit name="auth_timeout">400</limit><limit name="service_start_timeout">300</limit>'
        '<limit name="reply_timeout">300</limit>'
    )
    with buses.running(buses.jitney_command(), extra=extra) as daemon:
        yield daemon


def service(bus: buses.Daemon, name: str, command: str) -> None:
    file = Path(bus.directory, "services", name + ".service")
    file.write_text(f"[D-BUS Service]\nName={name}\nExec={command}\n")


def error_of_call(client: RawClient, destination: str) -> str | None:
    return client.reply_to(
        client.message(destination=destination.encode(), path=b"/", member=b"M")
    ).error_name


def test_sockets_timers_children_and_signals(bus: buses.Daemon) -> None:
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
        deadline = time.monotonic() + 10
        names: list[str] = []
        while "loop.Late" not in names and time.monotonic() < deadline:
            names = client.reply_to(client.driver(b"ListActivatableNames")).body[0]
        assert "loop.Late" in names
        os.kill(bus.pid, signal.SIGTERM)
        while client.receive() is not None:
            pass
        assert client.closed
    path = bus.address.partition("path=")[2].partition(",")[0]
    deadline = time.monotonic() + 10
    while os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(path)
