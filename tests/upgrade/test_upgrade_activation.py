"""Services that are being started while the bus is upgraded: who waits for them gets what he would
have got, be it the service, its failure or the end of patience."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import buses
import pytest
from rawclient import RawClient
from upgrading import joined, settled, upgrade
from waiting import PATIENCE, alive, given_time, until

from jitney.compat import wire

NAME = "com.example.Late"
TIMEOUT = '<limit name="service_start_timeout">{}</limit>'


def service(bus: buses.Daemon, script: str, name: str = NAME) -> None:
    file = bus.directory / "services" / f"{name}.service"
    command = shlex.join(["/bin/sh", "-c", script])
    file.write_text(f"[D-BUS Service]\nName={name}\nExec={command}\n")


def call(client: RawClient, fds: int = 0) -> int:
    return client.message(
        destination=NAME.encode(), path=b"/", interface=b"a.b", member=b"M", fds=[0] * fds
    )


def started(path: Path, seconds: float = PATIENCE) -> int:
    until(lambda: path.exists() and path.read_text().strip(), "it is started", seconds)
    return int(path.read_text())


def test_it_comes_after_all(tmp_path: Path) -> None:
    with buses.running(buses.jitney_command()) as bus:
        mark = tmp_path / "pid"
        service(bus, f"echo $$ > {mark}; exec sleep 60")
        one, two, three = (joined(bus.address) for _ in range(3))
        calls = [call(one), call(one, 2)]
        asked = two.driver(b"StartServiceByName", "su", NAME, 0)
        pid = started(mark)
        assert upgrade(three)["activations"] == 1
        calls.append(call(one))
        assert upgrade(three)["activations"] == 1
        late = joined(bus.address)
        late.driver(b"RequestName", "su", NAME, 0)
        got = [m for m in settled(late) if m.member == "M"]
        assert [m.serial for m in got] == calls
        assert [len(m.fds) for m in got] == [0, 2, 0]
        assert all(os.fstat(fd) for m in got for fd in m.fds)
        assert two.reply_to(asked).body == [1]
        for m in got:
            m.close_fds()
            assert m.sender == one.unique_name
            late.message(wire.RETURN, destination=one.unique_name.encode(), reply_serial=m.serial)
        for serial in calls:
            assert one.reply_to(serial).type == wire.RETURN
        assert upgrade(three)["activations"] == 0
        assert alive(pid)
        os.kill(pid, 15)


@pytest.mark.parametrize("times", [1, 2])
def test_it_fails(tmp_path: Path, times: int) -> None:
    with buses.running(buses.jitney_command()) as bus:
        go = tmp_path / "go"
        service(bus, f"while ! [ -e {go} ]; do sleep 0.02; done; exit 3")
        one, two = joined(bus.address), joined(bus.address)
        serial = call(one)
        settled(one)
        for _ in range(times):
            upgrade(two)
        go.touch()
        reply = one.reply_to(serial)
        assert reply.error_name == "org.freedesktop.DBus.Error.Spawn.ChildExited"
        assert reply.body == [f"Process {NAME} exited with status 3"]


def test_it_is_started_between_two_upgrades(tmp_path: Path) -> None:
    """Its parent is a process that is neither the first nor the last."""
    with buses.running(buses.jitney_command()) as bus:
        go = tmp_path / "go"
        service(bus, f"while ! [ -e {go} ]; do sleep 0.02; done; kill -SEGV $$")
        one, two = joined(bus.address), joined(bus.address)
        upgrade(two)
        serial = call(one)
        settled(one)
        upgrade(two)
        upgrade(two)
        go.touch()
        reply = one.reply_to(serial)
        assert reply.error_name == "org.freedesktop.DBus.Error.Spawn.ChildSignaled"
        assert reply.body == [f"Process {NAME} received signal 11"]


def test_it_goes_into_the_background(tmp_path: Path) -> None:
    """A launcher that ends well is no failure, whoever hears of it."""
    with buses.running(buses.jitney_command(), extra=TIMEOUT.format(3000)) as bus:
        go = tmp_path / "go"
        service(bus, f"while ! [ -e {go} ]; do sleep 0.02; done; exit 0")
        one, two = joined(bus.address), joined(bus.address)
        serial = call(one)
        settled(one)
        upgrade(two)
        go.touch()
        reply = one.reply_to(serial)
        assert reply.error_name == "org.freedesktop.DBus.Error.TimedOut"


def test_it_takes_too_long(tmp_path: Path) -> None:
    given_time(lambda limit: takes_too_long(tmp_path, limit), 2500, 15000)


def takes_too_long(tmp_path: Path, limit: int) -> None:
    with buses.running(buses.jitney_command(), extra=TIMEOUT.format(limit)) as bus:
        mark = tmp_path / f"pid-{limit}"
        service(bus, f"echo $$ > {mark}; exec sleep 60")
        one, two = joined(bus.address), joined(bus.address)
        serial = call(one)
        pid = started(mark, limit / 1000)
        upgrade(two)
        upgrade(two)
        reply = one.reply_to(serial)
        assert reply.error_name == "org.freedesktop.DBus.Error.TimedOut"
        until(lambda: not alive(pid))


def test_nobody_waits_any_more(tmp_path: Path) -> None:
    with buses.running(buses.jitney_command()) as bus:
        service(bus, "exec sleep 60")
        one, two = joined(bus.address), joined(bus.address)
        call(one, 1)
        settled(one)
        upgrade(two)
        one.close()
        until(lambda: not two.reply_to(two.driver(b"NameHasOwner", "s", one.unique_name)).body[0])
        assert upgrade(two)["activations"] == 1
        late = joined(bus.address)
        late.driver(b"RequestName", "su", NAME, 0)
        assert not [m for m in settled(late) if m.member == "M"]


def test_what_services_find_is_what_it_was(tmp_path: Path) -> None:
    with buses.running(buses.jitney_command()) as bus:
        out = tmp_path / "out"
        script = f"echo $DBUS_STARTER_ADDRESS $COLOUR $(ulimit -n) > {out}.tmp; mv {out}.tmp {out}"
        service(bus, script)
        one = joined(bus.address)
        one.reply_to(one.driver(b"UpdateActivationEnvironment", "a{ss}", {"COLOUR": "green"}))
        call(one)
        until(out.exists)
        before = out.read_text()
        out.unlink()
        other = "com.example.Other"
        service(bus, script, other)
        upgrade(one)
        one.message(destination=other.encode(), path=b"/", member=b"M")
        until(out.exists)
        assert out.read_text() == before
        assert "green" in before
        assert bus.address in before
