"""Endpoints of a running bus: who opens them, who is behind them, and their end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import buses
import kernel
import pytest
from rawclient import RawClient, Received, connected
from waiting import until

from jitney.compat import wire

ENDPOINTS = b"org.jitney.Endpoints1"
DENIED = "org.freedesktop.DBus.Error.AccessDenied"
NAME = b"com.example.Svc"


def ask(client: RawClient, member: bytes, signature: str = "", *values: Any) -> Received:
    return client.reply_to(client.driver(member, signature, *values, interface=ENDPOINTS))


def add(client: RawClient, bus: buses.Daemon, name: str, *lines: str, **options: bool) -> Received:
    given = {key.replace("_", "-"): ("b", value) for key, value in options.items()}
    path = str(bus.directory / name)
    return ask(client, b"Add", "ssasa{sv}", name, path, lines, given)


def opened(client: RawClient, bus: buses.Daemon, *lines: str, **options: bool) -> str:
    reply = add(client, bus, "box", *lines, **options)
    assert reply.error_name is None, reply.body
    return str(reply.body[0])


def call(client: RawClient, to: bytes, member: bytes = b"M", **more: Any) -> int:
    return client.message(
        destination=to, path=b"/o", interface=b"com.example.I", member=member, **more
    )


def test_goes_with_who_made_it(bus: buses.Daemon) -> None:
    creator = connected(bus.address)
    inside = connected(opened(creator, bus))
    waiting = RawClient(f"unix:path={bus.directory}/box")
    creator.close()
    for client in (inside, waiting):
        while client.receive() is not None:
            pass
    until(lambda: not (bus.directory / "box").exists())
    with connected(bus.address) as other:
        assert json.loads(ask(other, b"List").body[0]) == []


def test_stays_if_it_is_persistent_until_it_is_removed(bus: buses.Daemon) -> None:
    with connected(bus.address) as creator:
        address = opened(creator, bus, "talk com.example.Svc", persistent=True)
    other = connected(bus.address)
    inside = connected(address)
    (record,) = json.loads(ask(other, b"List").body[0])
    assert record["name"] == "box"
    assert record["creator"] is None
    assert record["clients"] == 1
    assert record["policy"] == ["talk com.example.Svc"]
    assert ask(other, b"Remove", "s", "box").type == wire.RETURN
    while inside.receive() is not None:
        pass
    assert not (bus.directory / "box").exists()
    assert ask(other, b"Remove", "s", "box").type == wire.ERROR


def test_who_made_it_is_told_of_its_end(bus: buses.Daemon) -> None:
    creator, other = connected(bus.address), connected(bus.address)
    opened(creator, bus)
    ask(other, b"Remove", "s", "box")
    while True:
        message = creator.receive()
        assert message is not None
        if message.member == "Removed":
            assert message.body == ["box"]
            assert message.sender == "org.freedesktop.DBus"
            return


def test_goes_with_the_bus() -> None:
    with buses.running(buses.jitney_command()) as daemon, connected(daemon.address) as creator:
        opened(creator, daemon, persistent=True)
        os.kill(daemon.pid, 15)
        while creator.receive() is not None:
            pass
        until(lambda: not (daemon.directory / "box").exists())


@pytest.mark.parametrize(
    ("lines", "options", "text"),
    [
        (["tlk a.b"], {}, "'tlk' is none of see, talk, own, call, broadcast"),
        (["talk ab"], {}, "'ab' is not a valid dbus name"),
        (["talk :1.5"], {}, "':1.5' is not a valid dbus name"),
        (["call a.b"], {}, "'a.b' is not a valid name + rule"),
        (["call a.b=@o"], {}, "'o' is not an object path, or one with /* behind it"),
        ([], {"frobnicate": True}, "Endpoints know no option 'frobnicate'"),
    ],
)
def test_refuses_what_is_no_policy(
    bus: buses.Daemon, lines: list[str], options: dict[str, bool], text: str
) -> None:
    with connected(bus.address) as creator:
        reply = add(creator, bus, "box", *lines, **options)
        assert reply.error_name == "org.freedesktop.DBus.Error.InvalidArgs"
        assert reply.body == [text]
        assert not (bus.directory / "box").exists()
        # And the name is still free.
        opened(creator, bus)
        assert add(creator, bus, "box").error_name == "org.freedesktop.DBus.Error.FileExists"


def test_who_came_by_an_endpoint_makes_none(bus: buses.Daemon) -> None:
    creator = connected(bus.address)
    with connected(opened(creator, bus, filter=False)) as inside:
        assert add(inside, bus, "other").error_name == DENIED
        assert ask(inside, b"Remove", "s", "box").error_name == DENIED
    ask(creator, b"Remove", "s", "box")
    with connected(opened(creator, bus, "own org.freedesktop.*")) as inside:
        assert add(inside, bus, "other").error_name == DENIED


@pytest.mark.skipif(os.geteuid() != 0, reason="some clients have to be other users")
def test_only_root_and_the_bus_make_them(bus: buses.Daemon) -> None:
    with connected(bus.address, uid=65534) as nobody:
        assert add(nobody, bus, "box").error_name == DENIED
        assert ask(nobody, b"List").error_name == DENIED


def test_a_user_has_so_many(bus: buses.Daemon) -> None:
    with connected(bus.address) as creator:
        for i in range(256):
            assert add(creator, bus, f"e{i}").error_name is None
        reply = add(creator, bus, "more")
        assert reply.error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
        assert not (bus.directory / "more").exists()
        ask(creator, b"Remove", "s", "e7")
        assert add(creator, bus, "more").error_name is None


def credentials(asker: RawClient, name: str) -> dict[str, Any]:
    reply = asker.reply_to(asker.driver(b"GetConnectionCredentials", "s", name))
    reply.close_fds()
    found: dict[str, Any] = reply.body[0]
    return found


def test_credentials_are_the_kernel_s_and_name_the_endpoint(bus: buses.Daemon) -> None:
    creator = connected(bus.address)
    inside = connected(opened(creator, bus))
    found = credentials(creator, inside.unique_name)
    plain = credentials(creator, creator.unique_name)
    assert found["org.jitney.Endpoint"] == ("s", "box")
    assert found.get("ProcessID") == kernel.MY_PID
    assert found["UnixUserID"] == ("u", os.geteuid())
    assert "org.jitney.Endpoint" not in plain
    peers = json.loads(
        creator.reply_to(
            creator.driver(b"PeersFrom", "s", "", interface=b"org.jitney.Inspect1")
        ).body[0]
    )
    assert [record["endpoint"] for record in peers if "endpoint" in record] == ["box"]


def test_credentials_come_through_namespaces_as_the_kernel_sees_them(bus: buses.Daemon) -> None:
    """A process with a pid and a uid of its own inside is known by those that it has outside."""
    creator = connected(bus.address)
    opened(creator, bus, filter=False)
    code = (
        f"import os, sys; sys.path[:0] = {sys.path!r}\n"
        "from rawclient import RawClient\n"
        "client = RawClient(sys.argv[1], uid=None)\n"
        "print(os.getpid(), os.getuid(), client.hello(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    words = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces of our own here")
    process = subprocess.Popen(
        [*words, sys.executable, "-c", code, f"unix:path={bus.directory}/box"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        pid, uid, name = process.stdout.readline().split()
        found = credentials(creator, name)
        (outside,) = _children(process.pid)
        assert (pid, uid) == ("1", "0")
        assert found.get("ProcessID") == (("u", outside) if kernel.MY_PID else None)
        assert found["UnixUserID"] == ("u", os.geteuid())
    finally:
        process.communicate()


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def test_descriptors_pass(bus: buses.Daemon) -> None:
    creator = connected(bus.address)
    creator.reply_to(creator.driver(b"RequestName", "su", NAME.decode(), 0))
    inside = connected(opened(creator, bus, f"call {NAME.decode()}=com.example.I.M"))
    read, write = os.pipe()
    call(inside, NAME, signature="h", values=(0,), fds=[write])
    os.close(write)
    while (message := creator.receive()) is not None:
        if message.member == "M":
            break
    assert message is not None
    (fd,) = message.fds
    os.write(fd, b"!")
    assert os.read(read, 1) == b"!"
    message.close_fds()
    os.close(read)


def test_refusals_are_counted_logged_and_shown_to_monitors(bus: buses.Daemon) -> None:
    creator, monitor = connected(bus.address), connected(bus.address)
    inside = connected(opened(creator, bus, "see com.example.Seen", log=True))
    monitor.reply_to(
        monitor.driver(
            b"BecomeMonitor", "asu", ["destination='com.example.Seen'", "type='error'"], 0,
            interface=b"org.freedesktop.DBus.Monitoring",
        )
    )  # fmt: skip
    reply = inside.reply_to(call(inside, b"com.example.Seen"))
    assert reply.error_name == DENIED
    assert reply.body[0].startswith("Rejected send message, 0 matched rules; type=")
    seen = []
    while not seen or seen[-1].type != wire.ERROR:
        message = monitor.receive()
        assert message is not None
        seen.append(message)
    assert [message.member for message in seen][-2:] == ["M", None]
    assert seen[-1].error_name == DENIED
    text = (bus.directory / "log").read_text()
    assert "(endpoint box does not open com.example.Seen)" in text
    (record,) = json.loads(ask(creator, b"List").body[0])
    assert record["refused"] == 1


def test_a_service_is_started_for_a_client_that_may_talk_to_it(bus: buses.Daemon) -> None:
    for name in ("com.example.Open", "com.example.Shut"):
        (bus.directory / "services" / f"{name}.service").write_text(
            f"[D-BUS Service]\nName={name}\nExec=/bin/false\n"
        )
    creator = connected(bus.address)
    creator.reply_to(creator.driver(b"ReloadConfig"))
    inside = connected(opened(creator, bus, "talk com.example.Open"))
    reply = inside.reply_to(call(inside, b"com.example.Open"))
    assert reply.error_name == "org.freedesktop.DBus.Error.Spawn.ChildExited"
    reply = inside.reply_to(call(inside, b"com.example.Shut"))
    assert reply.error_name == "org.freedesktop.DBus.Error.ServiceUnknown"
    listed = inside.reply_to(inside.driver(b"ListActivatableNames")).body[0]
    assert listed == ["org.freedesktop.DBus", "com.example.Open"]


def test_a_reload_leaves_endpoints_alone(bus: buses.Daemon) -> None:
    creator = connected(bus.address)
    address = opened(creator, bus, "see com.example.Seen")
    inside = connected(address)
    creator.reply_to(creator.driver(b"ReloadConfig"))
    for client in (inside, connected(address)):
        assert client.reply_to(call(client, b"com.example.Seen")).error_name == DENIED


def test_takes_no_socket_of_the_bus_itself(bus: buses.Daemon) -> None:
    """A slip of the pen would leave all who come later behind a policy, or outside."""
    exists = "org.freedesktop.DBus.Error.FileExists"
    with connected(bus.address) as creator:
        opened(creator, bus)
        os.symlink(bus.directory / "bus", bus.directory / "link")
        for path in ("bus", "box", "link"):
            given = str(bus.directory / path)
            reply = ask(creator, b"Add", "ssasa{sv}", "other", given, [], {})
            assert reply.error_name == exists, path
        assert [one["name"] for one in json.loads(ask(creator, b"List").body[0])] == ["box"]
        with connected(bus.address) as late:
            assert late.reply_to(late.driver(b"NameHasOwner", "s", creator.unique_name)).body[0]
