"""org.jitney.Containers1: a socket for each container, as its launcher sees it."""

from __future__ import annotations

import os
import socket
from typing import Any

import buses
import kernel
from rawclient import RawClient, Received, connected
from upgrading import upgrade

from jitney.compat import wire

CONTAINERS = b"org.jitney.Containers1"


def ask(client: RawClient, member: bytes, signature: str = "", *values: Any) -> Received:
    return client.reply_to(client.driver(member, signature, *values, interface=CONTAINERS))


def served(client: RawClient, **arguments: tuple[str, Any]) -> tuple[str, str, str]:
    """Instance, path and address of a new container's server."""
    given = {key.replace("_", "."): value for key, value in arguments.items()}
    metadata = {"example": ("s", "more")}
    reply = ask(client, b"AddServer", "ssa{sv}a{sv}", "com.example.Kind", "app", metadata, given)
    assert reply.error_name is None, reply.body
    instance, path, address = reply.body
    assert path[-1:] == b"\0"
    assert os.path.exists(path[:-1])
    return instance, path[:-1].decode(), address


def removals(client: RawClient) -> list[str]:
    last = client.driver(b"GetId")
    found = []
    while (message := client.receive()) is not None and message.reply_serial != last:
        if message.member == "InstanceRemoved":
            found += message.body
    return found


def test_says_of_a_connection_what_its_launcher_said(bus: buses.Daemon) -> None:
    launcher = connected(bus.address)
    instance, _, address = served(launcher)
    inside = connected(address)
    reply = ask(launcher, b"GetConnectionInstance", "s", inside.unique_name)
    path, creator, kind, name, metadata = reply.body
    assert (path, kind, name) == (instance, "com.example.Kind", "app")
    assert metadata == {"example": ("s", "more")}
    assert creator["UnixUserID"] == ("u", os.geteuid())
    assert creator.get("ProcessID") == kernel.MY_PID
    assert ask(launcher, b"DescribeInstance", "o", instance).body == [creator, kind, name, metadata]
    found = launcher.reply_to(launcher.driver(b"GetConnectionCredentials", "s", inside.unique_name))
    found.close_fds()
    assert found.body[0]["org.jitney.ContainerInstance"] == ("o", instance)
    assert found.body[0]["org.jitney.ContainerType"] == ("s", "com.example.Kind")
    assert found.body[0]["org.jitney.ContainerName"] == ("s", "app")
    # Not to be taken for the launcher itself.
    reply = ask(launcher, b"GetConnectionInstance", "s", launcher.unique_name)
    assert reply.error_name == "org.freedesktop.DBus.Error.NotContainer"


def test_a_container_makes_none_and_ends_none(bus: buses.Daemon) -> None:
    launcher = connected(bus.address)
    instance, _, address = served(launcher)
    inside = connected(address)
    reply = ask(inside, b"AddServer", "ssa{sv}a{sv}", "com.example.Kind", "app", {}, {})
    assert reply.error_name == "org.freedesktop.DBus.Error.AccessDenied"
    reply = ask(inside, b"StopInstance", "o", instance)
    assert reply.error_name == "org.freedesktop.DBus.Error.AccessDenied"


def test_stops(bus: buses.Daemon) -> None:
    launcher = connected(bus.address)
    launcher.reply_to(launcher.driver(b"AddMatch", "s", "member='InstanceRemoved'"))
    instance, path, address = served(launcher)
    inside = connected(address)
    assert ask(launcher, b"StopListening", "o", instance).type == wire.RETURN
    assert not os.path.exists(path)
    # Who is in, stays in, and the instance as long as he does.
    assert inside.reply_to(inside.driver(b"GetId")).type == wire.RETURN
    assert removals(launcher) == []
    inside.close()
    while not (found := removals(launcher)):
        pass
    assert found == [instance]
    assert ask(launcher, b"StopInstance", "o", instance).type == wire.ERROR

    other, _, address = served(launcher)
    assert other != instance
    inside = connected(address)
    assert ask(launcher, b"StopInstance", "o", other).type == wire.RETURN
    while inside.receive() is not None:
        pass


def test_its_launcher_s_end_stops_the_listening(bus: buses.Daemon) -> None:
    launcher, watcher = connected(bus.address), connected(bus.address)
    watcher.reply_to(watcher.driver(b"AddMatch", "s", "member='InstanceRemoved'"))
    instance, path, address = served(launcher)
    inside = connected(address)
    launcher.close()
    while os.path.exists(path):
        pass
    assert inside.reply_to(inside.driver(b"GetId")).type == wire.RETURN
    inside.close()
    while not (found := removals(watcher)):
        pass
    assert found == [instance]


def test_a_policy_filters(bus: buses.Daemon) -> None:
    launcher = connected(bus.address)
    _, _, address = served(launcher, org_jitney_Policy=("as", ["see com.example.Seen"]))
    inside = connected(address)
    names = inside.reply_to(inside.driver(b"ListNames")).body[0]
    assert names == ["org.freedesktop.DBus", inside.unique_name]
    reply = ask(
        launcher, b"AddServer", "ssa{sv}a{sv}", "com.example.K", "a", {}, {"x": ("b", True)}
    )
    assert reply.error_name == "org.freedesktop.DBus.Error.InvalidArgs"
    got = launcher.reply_to(
        launcher.driver(
            b"Get", "ss", CONTAINERS.decode(), "SupportedArguments",
            interface=b"org.freedesktop.DBus.Properties",
        )
    )  # fmt: skip
    assert got.body == [("as", ["org.jitney.Policy", "org.jitney.Socket"])]


def test_who_stands_at_a_door_that_is_shut(bus: buses.Daemon) -> None:
    """He does not come in by an instance that is over; it would never be over for the bus."""
    launcher, watcher = connected(bus.address), connected(bus.address)
    watcher.reply_to(watcher.driver(b"AddMatch", "s", "member='InstanceRemoved'"))
    instance, path, _ = served(launcher)
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.settimeout(10)
        waiting.connect(path)
        waiting.sendall(b"\0AUTH EXTERNAL\r\n")
        assert waiting.recv(100).startswith(b"DATA")
        assert ask(launcher, b"StopListening", "o", instance).type == wire.RETURN
        assert waiting.recv(100) == b""
    assert removals(watcher) == [instance]
    assert upgrade(launcher)["connections"] == 2


def test_a_folder_that_was_cleared_away(bus: buses.Daemon) -> None:
    """As systemd-tmpfiles does with what lies in /tmp for long."""
    launcher = connected(bus.address)
    instance, path, _ = served(launcher)
    assert ask(launcher, b"StopInstance", "o", instance).type == wire.RETURN
    os.rmdir(os.path.dirname(path))
    served(launcher)
