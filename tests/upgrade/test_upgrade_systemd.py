"""Upgrades where somebody listens at NOTIFY_SOCKET: nobody stays, and he is told who it is."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import buses
import pytest
from upgrading import joined, settled, upgrade
from waiting import alive, until

NAME = "com.example.Late"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        yield sock


@pytest.fixture
def bus(manager: socket.socket) -> Iterator[buses.Daemon]:
    place = f"NOTIFY_SOCKET={manager.getsockname()}"
    with buses.running(["env", place, *buses.jitney_command()]) as running:
        yield running


def told(manager: socket.socket, key: str) -> str:
    while True:
        name, _, value = manager.recv(4096).decode().partition("=")
        if name == key:
            return value


def test_the_main_process_is_another_one(manager: socket.socket, bus: buses.Daemon) -> None:
    assert told(manager, "READY") == "1"
    one = joined(bus.address)
    first = int(upgrade(one)["pid"])
    assert int(told(manager, "MAINPID")) == first
    assert told(manager, "READY") == "1"
    assert os.waitstatus_to_exitcode(os.waitpid(bus.pid, 0)[1]) == 0
    second = int(upgrade(one)["pid"])
    assert int(told(manager, "MAINPID")) == second
    until(lambda: not alive(first))
    os.kill(second, 15)
    assert told(manager, "STOPPING") == "1"
    until(lambda: not alive(second))


def test_a_service_that_ends_is_waited_for(
    manager: socket.socket, bus: buses.Daemon, tmp_path: Path
) -> None:
    """Nobody says how it ended: it may have been a launcher, whose service is still to come."""
    go = tmp_path / "go"
    mark = tmp_path / "pid"
    script = f"echo $$ >{mark}; while ! [ -e {go} ]; do sleep 0.02; done; exit 3"
    command = shlex.join(["/bin/sh", "-c", script])
    (bus.directory / "services" / "x.service").write_text(
        f"[D-BUS Service]\nName={NAME}\nExec={command}\n"
    )
    one, two = joined(bus.address), joined(bus.address)
    call = one.message(destination=NAME.encode(), path=b"/", member=b"M")
    settled(one)
    until(lambda: mark.exists() and mark.read_text().strip(), "it is started")
    service = int(mark.read_text())
    said = upgrade(two)
    try:
        go.touch()
        until(lambda: not alive(service), "it ends")
        assert not settled(one)
        two.driver(b"RequestName", "su", NAME, 0)
        assert [m.serial for m in settled(two) if m.member == "M"] == [call]
    finally:
        os.kill(int(said["pid"]), 15)
        until(lambda: not alive(int(said["pid"])))
