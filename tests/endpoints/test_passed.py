"""Endpoints on a socket that their launcher made: passed along, listened on, given back."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import buses
import kernel
import pytest
from rawclient import RawClient, Received, connected
from waiting import until

from jitney.compat import wire
from jitney.compat.endpoints import passed
from jitney.compat.errors import DBusError

ENDPOINTS = b"org.jitney.Endpoints1"
CONTAINERS = b"org.jitney.Containers1"
INVALID = "org.freedesktop.DBus.Error.InvalidArgs"


def listening(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    return made


def ask(
    client: RawClient, interface: bytes, member: bytes, signature: str, *values: Any,
    fds: Sequence[int] = (),
) -> Received:  # fmt: skip
    serial = client.message(
        destination=b"org.freedesktop.DBus", path=b"/org/freedesktop/DBus", interface=interface,
        member=member, signature=signature, values=values, fds=fds,
    )  # fmt: skip
    return client.reply_to(serial)


def add(client: RawClient, fds: Sequence[int], *lines: str, name: str = "box") -> Received:
    return ask(
        client, ENDPOINTS, b"AddWithSocket", "shasa{sv}", name, len(fds) - 1, lines, {}, fds=fds
    )


def open_files(bus: buses.Daemon) -> int:
    return len(os.listdir(f"/proc/{bus.pid}/fd"))


def test_clients_come_by_a_passed_socket(bus: buses.Daemon) -> None:
    path = bus.directory / "mine"
    launcher = connected(bus.address)
    with listening(path) as mine:
        # Who came before the bus listens waits there, as at any socket.
        early = socket.socket(socket.AF_UNIX)
        early.connect(str(path))
        reply = add(launcher, [mine.fileno()], "see com.example.Nobody")
    assert reply.body[0].startswith(f"unix:path={path},guid=")
    early.sendall(b"\0AUTH EXTERNAL\r\n")
    assert early.recv(100).startswith(b"DATA")
    with connected(reply.body[0]) as inside:
        # Behind a policy: the launcher is not seen from there.
        listed = inside.reply_to(inside.driver(b"ListNames")).body[0]
        assert set(listed) == {"org.freedesktop.DBus", inside.unique_name}
        known = launcher.reply_to(
            launcher.driver(b"GetConnectionCredentials", "s", inside.unique_name)
        )
        assert known.body[0]["UnixUserID"] == ("u", os.geteuid())
        assert known.body[0].get("ProcessID") == kernel.MY_PID
        assert known.body[0]["org.jitney.Endpoint"] == ("s", "box")


def test_its_file_stays_and_nobody_listens_any_more(bus: buses.Daemon) -> None:
    path = bus.directory / "mine"
    launcher = connected(bus.address)
    before = open_files(bus)
    with listening(path) as mine:
        assert add(launcher, [mine.fileno()]).type == wire.RETURN
    inside = connected(f"unix:path={path}")
    assert ask(launcher, ENDPOINTS, b"Remove", "s", "box").type == wire.RETURN
    while inside.receive() is not None:
        pass
    assert path.exists()
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(str(path))
    until(lambda: open_files(bus) == before)


def test_a_launchers_socket_serves_the_next_bus(bus: buses.Daemon) -> None:
    """It is the launcher's: an endpoint's end leaves it as it was."""
    with listening(bus.directory / "mine") as mine:
        for _ in range(2):
            with connected(bus.address) as launcher:
                reply = add(launcher, [mine.fileno()])
                with connected(reply.body[0]):
                    pass
                assert ask(launcher, ENDPOINTS, b"Remove", "s", "box").type == wire.RETURN


def test_refuses_what_cannot_be_listened_on(bus: buses.Daemon) -> None:
    launcher = connected(bus.address)
    before = open_files(bus)
    one, two = socket.socketpair()
    unbound = socket.socket(socket.AF_UNIX)
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind(str(bus.directory / "datagrams"))
    loopback = socket.create_server(("127.0.0.1", 0))
    with one, two, unbound, datagrams, loopback, open("/dev/null") as file:
        for passed, text in (
            (file, "What was passed is not a socket"),
            (one, "Nobody listens on the passed socket"),
            (unbound, "Nobody listens on the passed socket"),
            (datagrams, "The passed socket is not a unix stream socket"),
            (loopback, "The passed socket is not a unix stream socket"),
        ):
            reply = add(launcher, [passed.fileno()])
            assert (reply.error_name, reply.body) == (INVALID, [text])
    reply = ask(launcher, ENDPOINTS, b"AddWithSocket", "shasa{sv}", "box", 0, [], {})
    assert reply.error_name == INVALID
    with listening(bus.directory / "mine") as mine:
        # The socket is good and the policy is not: it is let go of, too.
        assert add(launcher, [mine.fileno()], "nonsense").error_name == INVALID
        assert add(launcher, [mine.fileno()], name="").error_name == INVALID
    until(lambda: open_files(bus) == before)


def test_of_several_descriptors_it_is_the_one_that_is_named(bus: buses.Daemon) -> None:
    launcher = connected(bus.address)
    before = open_files(bus)
    with listening(bus.directory / "mine") as mine, open("/dev/null") as file:
        reply = add(launcher, [file.fileno(), mine.fileno()])
    assert "/mine," in reply.body[0]
    until(lambda: open_files(bus) == before + 1)


def test_a_container_on_a_passed_socket(bus: buses.Daemon) -> None:
    path = bus.directory / "mine"
    launcher = connected(bus.address)
    with listening(path) as mine:
        given = {"org.jitney.Socket": ("h", 0), "org.jitney.Policy": ("as", [])}
        reply = ask(
            launcher, CONTAINERS, b"AddServer", "ssa{sv}a{sv}", "com.example.Kind", "app", {},
            given, fds=[mine.fileno()],
        )  # fmt: skip
    instance, place, address = reply.body
    assert place == b"\0"
    assert address.startswith(f"unix:path={path},")
    inside = connected(f"unix:path={path}")
    said = ask(launcher, CONTAINERS, b"GetConnectionInstance", "s", inside.unique_name)
    assert said.body[0] == instance
    assert ask(launcher, CONTAINERS, b"StopInstance", "o", instance).type == wire.RETURN
    while inside.receive() is not None:
        pass
    assert path.exists()


def test_a_socket_that_its_launcher_shuts_down(bus: buses.Daemon) -> None:
    """It is ready to accept from, for ever, and nobody comes."""
    launcher = connected(bus.address)
    with listening(bus.directory / "mine") as mine:
        assert add(launcher, [mine.fileno()]).type == wire.RETURN
        mine.shutdown(socket.SHUT_RDWR)
        file = bus.directory / "log"
        until(lambda: "Nobody can connect to" in file.read_text(), "the bus sees it")
        for _ in range(3):
            connected(bus.address).close()
    log = file.read_text()
    assert log.count("Nobody can connect to") == 1
    assert "Failed to accept" not in log
    assert ask(launcher, ENDPOINTS, b"Remove", "s", "box").type == wire.RETURN


def test_no_room_for_one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """That costs the launcher this call, and not its connection with all endpoints on it."""

    def dup(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", dup)
    with pytest.raises(DBusError, match="Too many open files"):
        passed.server_of(SimpleNamespace(fds=[0]), 0)  # type: ignore[arg-type]
