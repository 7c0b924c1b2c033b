"""A bus that is process 1 of a container: it ends when it is told to, knows how its services end,
and leaves no dead processes lying about."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import buses
import pytest
from rawclient import RawClient
from waiting import until

CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGTERM"]
SERVICE = "[D-BUS Service]\nName={name}\nExec=/bin/sh -c '{script}'\n"


@pytest.fixture
def bus() -> Iterator[buses.Daemon]:
    if subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("cannot make namespaces here")
    with buses.running([*CONTAINER, *buses.jitney_command()]) as daemon:
        yield daemon
        # unshare does not hear of SIGTERM while it waits for the bus.
        for pid in children(daemon.pid):
            os.kill(pid, signal.SIGTERM)


def children(pid: int) -> dict[int, str]:
    """Those of a process, with their states."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid:
            found[int(folder.name)] = state
    return found


def first(bus: buses.Daemon) -> int:
    """The bus as we know it; in there it is 1."""
    (pid,) = children(bus.pid)
    assert Path(f"/proc/{pid}/status").read_text().partition("NSpid:")[2].split()[1] == "1"
    return pid


def started(client: RawClient, bus: buses.Daemon, name: str, script: str) -> list[str]:
    """A service that ends without having been one; what its caller is told."""
    file = bus.directory / "services" / f"{name}.service"
    file.write_text(SERVICE.format(name=name, script=script))
    client.reply_to(client.driver(b"ReloadConfig"))
    return client.reply_to(client.driver(b"StartServiceByName", "su", name, 0)).body


def test_dead_processes_of_nobody_are_taken_away(bus: buses.Daemon) -> None:
    pid, folder = first(bus), bus.directory
    with RawClient(bus.address) as client:
        client.hello()
        script = f"for i in 1 2 3; do (sleep 0.3; : > {folder}/$i) & done; exit 7"
        body = started(client, bus, "org.example.Forks", script)
        # Its own child's end is told as ever.
        assert body == ["Process org.example.Forks exited with status 7"]
        until(lambda: all((folder / str(i)).exists() for i in (1, 2, 3)))
        until(lambda: not children(pid))
        # Then it is at work again.
        body = started(client, bus, "org.example.Again", "kill -9 $$")
        assert body == ["Process org.example.Again received signal 9"]


def test_ends_when_it_is_told_to(bus: buses.Daemon) -> None:
    pid = first(bus)
    with RawClient(bus.address) as client:
        client.hello()
        os.kill(pid, signal.SIGTERM)
        while client.receive() is not None:
            pass
    until(lambda: not (bus.directory / "bus").exists())
