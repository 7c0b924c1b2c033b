"""Endpoints of a bus that is upgraded: whoever came in by one, or opened one, cannot tell."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import buses
import pytest
from rawclient import RawClient, Received, build
from upgrading import build as a_build
from upgrading import joined, settled, upgrade
from waiting import until

from jitney.compat import wire

ENDPOINTS = b"org.jitney.Endpoints1"
CONTAINERS = b"org.jitney.Containers1"
DENIED = "org.freedesktop.DBus.Error.AccessDenied"
UNKNOWN = "org.freedesktop.DBus.Error.ServiceUnknown"


@pytest.fixture
def bus() -> Iterator[buses.Daemon]:
    with buses.running(buses.jitney_command()) as running:
        yield running


def ask(
    client: RawClient, interface: bytes, member: bytes, signature: str = "", *values: Any
) -> Received:
    return client.reply_to(client.driver(member, signature, *values, interface=interface))


def opened(client: RawClient, bus: buses.Daemon, name: str, *lines: str, **options: bool) -> str:
    given = {key.replace("_", "-"): ("b", value) for key, value in options.items()}
    path = str(bus.directory / name)
    reply = ask(client, ENDPOINTS, b"Add", "ssasa{sv}", name, path, lines, given)
    assert reply.error_name is None, reply.body
    return str(reply.body[0])


def listed(client: RawClient) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(ask(client, ENDPOINTS, b"List").body[0])}


def called(client: RawClient, to: bytes, member: bytes = b"M") -> int:
    return client.message(destination=to, path=b"/o", interface=b"com.example.I", member=member)


def owning(bus: buses.Daemon, name: str) -> RawClient:
    client = joined(bus.address)
    assert client.reply_to(client.driver(b"RequestName", "su", name, 0)).body == [1]
    settled(client)
    return client


def test_a_policy_goes_on(bus: buses.Daemon) -> None:
    creator = joined(bus.address)
    talk, hidden, seen = (owning(bus, f"com.example.{name}") for name in ("Talk", "Hidden", "Seen"))
    lines = [
        "talk com.example.Talk", "see com.example.Seen", "own com.example.Own.*",
        "call com.example.Rule=com.example.I.Yes@/o/*", "broadcast com.example.Seen=*",
    ]  # fmt: skip
    address = opened(creator, bus, "box", *lines, log=True)
    inside = joined(address)
    asked = called(inside, b"com.example.Talk", b"Early")
    refused = inside.reply_to(called(inside, b"com.example.Hidden"))
    assert refused.error_name == UNKNOWN
    # Whoever has spoken to it is seen by it from now on.
    called(hidden, inside.unique_name.encode())
    settled(hidden)
    settled(inside)
    before = listed(creator)["box"]
    for _ in range(2):
        upgrade(creator)
        assert listed(creator)["box"] == before
        assert inside.reply_to(called(inside, b"com.example.Hidden")).error_name == UNKNOWN
        assert inside.reply_to(called(inside, b"com.example.Seen")).error_name == DENIED
        before["refused"] += 2
        owned = inside.reply_to(inside.driver(b"RequestName", "su", "com.example.Own.A", 0))
        assert owned.type == wire.RETURN
        other = inside.reply_to(inside.driver(b"RequestName", "su", "com.example.Other", 0))
        assert other.error_name == UNKNOWN
        names = inside.reply_to(inside.driver(b"ListNames")).body[0]
        assert "com.example.Seen" in names
        assert "com.example.Hidden" not in names
        assert hidden.unique_name in names
        assert creator.unique_name not in names
        found = creator.reply_to(
            creator.driver(b"GetConnectionCredentials", "s", inside.unique_name)
        )
        found.close_fds()
        assert found.body[0]["org.jitney.Endpoint"] == ("s", "box")
    # What was asked before is answered after, and reaches it.
    talk.message(wire.RETURN, destination=inside.unique_name.encode(), reply_serial=asked)
    assert inside.reply_to(asked).type == wire.RETURN
    assert joined(address).unique_name
    seen.message(wire.SIGNAL, destination=None, path=b"/", interface=b"a.b", member=b"S")
    for client in (creator, talk, hidden, seen):
        client.close()


def test_it_goes_with_its_creator(bus: buses.Daemon) -> None:
    creator, other = joined(bus.address), joined(bus.address)
    inside = joined(opened(creator, bus, "box"))
    unfinished = socket.socket(socket.AF_UNIX)
    unfinished.connect(str(bus.directory / "box"))
    unfinished.sendall(b"\0AUTH EXTERNAL\r\n")
    opened(creator, bus, "kept", persistent=True)
    upgrade(other)
    assert listed(other)["box"]["creator"] == creator.unique_name
    assert listed(other)["kept"]["creator"] is None
    creator.close()
    until(lambda: not (bus.directory / "box").exists())
    assert inside.receive() is None
    unfinished.settimeout(30)
    while unfinished.recv(4096):
        pass
    unfinished.close()
    assert list(listed(other)) == ["kept"]
    upgrade(other)
    os.kill(bus.pid, 15)
    until(lambda: not (bus.directory / "kept").exists())


def test_its_creator_is_told_of_its_end(bus: buses.Daemon) -> None:
    creator, other = joined(bus.address), joined(bus.address)
    opened(creator, bus, "box")
    upgrade(other)
    ask(other, ENDPOINTS, b"Remove", "s", "box")
    assert [(m.member, m.body) for m in settled(creator)] == [("Removed", ["box"])]


def test_a_conversation_and_halves_at_an_endpoint(bus: buses.Daemon) -> None:
    creator = joined(bus.address)
    opened(creator, bus, "box", "talk com.example.Talk")
    talk = owning(bus, "com.example.Talk")
    identity = str(os.geteuid()).encode().hex().encode()
    hello = build(
        wire.CALL, 1, [(1, "o", "/org/freedesktop/DBus"), (2, "s", "org.freedesktop.DBus"),
                       (3, "s", "Hello"), (6, "s", "org.freedesktop.DBus")]
    )  # fmt: skip
    call = build(wire.CALL, 2, [(1, "o", "/o"), (3, "s", "Half"), (6, "s", "com.example.Talk")])
    data = b"\0AUTH EXTERNAL " + identity + b"\r\nBEGIN\r\n" + hello + call
    clients = []
    for cut in range(0, len(data), 9):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(bus.directory / "box"))
        sock.sendall(data[:cut])
        clients.append((cut, sock))
    settled(creator)
    upgrade(creator)
    for cut, sock in clients:
        sock.sendall(data[cut:])
    came = []
    while len(came) < len(clients):
        message = talk.receive()
        assert message is not None
        if message.member == "Half":
            came.append(message.sender)
    assert len(set(came)) == len(clients)
    assert listed(creator)["box"]["clients"] == len(clients)
    for _, sock in clients:
        sock.close()


def test_what_was_learned_stays_learned(bus: buses.Daemon) -> None:
    creator = joined(bus.address)
    talk = owning(bus, "com.example.Talk")
    inside = joined(opened(creator, bus, "box", "talk com.example.Talk", learn=True))
    called(inside, b"com.example.Talk")
    inside.reply_to(called(inside, b"com.example.Other"))
    settled(inside)
    upgrade(creator)
    called(inside, b"com.example.Talk", b"Later")
    settled(inside)
    assert ask(creator, ENDPOINTS, b"Learned", "s", "box").body[0] == [
        "call com.example.Talk=com.example.I.Later",
        "call com.example.Talk=com.example.I.M",
        "# refused:",
        "# call com.example.Other=com.example.I.M",
    ]
    talk.close()


def test_containers_go_on(bus: buses.Daemon) -> None:
    launcher, other = joined(bus.address), joined(bus.address)
    other.reply_to(other.driver(b"AddMatch", "s", "member='InstanceRemoved'"))
    metadata = {"text": ("s", "more"), "bytes": ("ay", b"\xff\0"), "deep": ("a{sv}", {})}
    reply = ask(
        launcher, CONTAINERS, b"AddServer", "ssa{sv}a{sv}", "com.example.Kind", "app", metadata, {}
    )
    instance, path, address = reply.body
    inside = joined(address)
    about = ask(other, CONTAINERS, b"DescribeInstance", "o", instance).body
    upgrade(other)
    assert ask(other, CONTAINERS, b"DescribeInstance", "o", instance).body == about
    known = other.reply_to(other.driver(b"GetConnectionCredentials", "s", inside.unique_name))
    known.close_fds()
    assert known.body[0]["org.jitney.ContainerInstance"] == ("o", instance)
    # The launcher's end stops the listening; the client stays, over an upgrade as well.
    launcher.close()
    until(lambda: not os.path.exists(bytes(path[:-1])))
    upgrade(other)
    assert inside.reply_to(inside.driver(b"GetId")).type == wire.RETURN
    assert ask(other, CONTAINERS, b"DescribeInstance", "o", instance).body == about
    assert not [m for m in settled(other) if m.member == "InstanceRemoved"]
    inside.close()
    until(lambda: [m.body for m in settled(other) if m.member == "InstanceRemoved"] == [[instance]])
    # Numbers are not used again.
    again = ask(other, CONTAINERS, b"AddServer", "ssa{sv}a{sv}", "com.example.Kind", "b", {}, {})
    assert again.body[0] != instance
    folder = os.path.dirname(bytes(again.body[1][:-1]))
    upgrade(other)
    os.kill(bus.pid, 15)
    until(lambda: not os.path.exists(folder))


def test_a_socket_of_the_launcher_s_goes_on(bus: buses.Daemon) -> None:
    path = bus.directory / "mine"
    launcher, other = joined(bus.address), joined(bus.address)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        serial = launcher.message(
            destination=b"org.freedesktop.DBus", path=b"/org/freedesktop/DBus",
            interface=ENDPOINTS, member=b"AddWithSocket", signature="shasa{sv}",
            values=["box", 0, [], {}], fds=[listening.fileno()],
        )  # fmt: skip
        address = str(launcher.reply_to(serial).body[0])
    upgrade(other)
    inside = joined(address)
    assert listed(other)["box"]["clients"] == 1
    launcher.close()
    assert inside.receive() is None
    until(lambda: not listed(other))
    assert path.exists(), "the file is the launcher's"


def test_a_failed_upgrade_leaves_them(bus: buses.Daemon, tmp_path: Any) -> None:
    creator = joined(bus.address)
    address = opened(creator, bus, "box", "talk com.example.Talk")
    inside = joined(address)
    before = listed(creator)
    wrong = {
        "taker.applied = lambda *args: 1 / 0": "ZeroDivisionError",
        "form.READERS.pop(2)": "states of version 1, and this bus writes 2",
    }
    for change, why in wrong.items():
        reply = ask(creator, b"org.jitney.Upgrade1", b"Upgrade", "s", a_build(tmp_path, change))
        assert why in reply.body[0]
        assert listed(creator) == before
        assert inside.reply_to(inside.driver(b"GetId")).type == wire.RETURN
        joined(address).close()
        until(lambda: listed(creator) == before)


def test_an_older_jitney_takes_a_bus_that_has_none(bus: buses.Daemon, tmp_path: Any) -> None:
    """That is what brings a bus back from an upgrade that somebody regrets."""
    one = joined(bus.address)
    one.reply_to(one.driver(b"RequestName", "su", "com.example.N", 0))
    found = ask(
        one, b"org.jitney.Upgrade1", b"Upgrade", "s", a_build(tmp_path, "form.READERS.pop(2)")
    )
    assert json.loads(found.body[0])["names"] == 1
