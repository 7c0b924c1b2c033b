"""Looking into a running bus: what it tells, to whom, and that it tells it in pieces."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import buses
import pytest
from rawclient import DRIVER, RawClient, connected
from waiting import until

from jitney.compat import command, ways, wire

INSPECT = b"org.jitney.Inspect1"
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="some clients have to be other users")
LISTS = ("Peers", "Users", "Names", "Matches", "Pressed")


@pytest.fixture
def bus() -> Iterator[buses.Daemon]:
    extra = "".join(
        f'<limit name="{name}">{value}</limit>'
        for name, value in (
            ("max_connections_per_user", 2000), ("max_match_rules_per_connection", 20000),
            ("max_names_per_connection", 20000), ("max_outgoing_bytes", 100000),
        )
    )  # fmt: skip
    with buses.running(buses.jitney_command(), extra=extra) as running:
        yield running


def ask(client: RawClient, member: str, *words: str) -> Any:
    """What the method answers, or its error's name and text."""
    reply = client.reply_to(
        client.driver(member.encode(), "s" * len(words), *words, interface=INSPECT)
    )
    if reply.error_name:
        return reply.error_name.rpartition(".")[2], reply.body[0]
    return json.loads(reply.body[0]) if len(reply.body) == 1 else reply.body


def pages(client: RawClient, what: str) -> list[list[dict[str, Any]]]:
    found = []
    cursor = ""
    while True:
        text, cursor = ask(client, f"{what}From", cursor)
        found.append(json.loads(text))
        if not cursor:
            return found


def whole(client: RawClient, what: str) -> list[dict[str, Any]]:
    return [record for page in pages(client, what) for record in page]


def call(client: RawClient, to: RawClient, *, flags: int = 0) -> int:
    return client.message(
        destination=to.unique_name.encode(), path=b"/", interface=b"a.b", member=b"M", flags=flags
    )


def test_status(bus: buses.Daemon) -> None:
    with connected(bus.address, "a.b", "a.c") as one, connected(bus.address, "a.b") as other:
        one.reply_to(one.driver(b"AddMatch", "s", ""))
        call(other, one)
        other.reply_to(other.driver(b"GetId"))
        found = ask(one, "GetStatus")
        assert (found["connections"], found["names"], found["matches"]) == (2, 3, 1)
        assert (found["calls"], found["monitors"], found["starting"]) == (1, 0, [])
        assert found["pid"] == bus.pid
        assert found["memory_bytes"] > 1 << 20
        assert found["limits"]["max_outgoing_bytes"] == 100000
        assert found["address"] == bus.address
        assert found["counted"]


def test_a_peer_and_its_calls(bus: buses.Daemon) -> None:
    with connected(bus.address, "a.b") as callee, connected(bus.address) as caller:
        serials = [call(caller, callee) for _ in range(3)]
        while (message := callee.receive()) is None or message.member != "M":
            pass
        callee.message(wire.RETURN, destination=caller.unique_name.encode(),
                       reply_serial=serials[0])  # fmt: skip
        caller.reply_to(serials[0])
        found = ask(caller, "GetPeer", "a.b")
        assert found["name"] == callee.unique_name
        assert found["names"] == ["a.b"]
        assert found["pid"] == (os.getpid() if ways.PEER_PIDS else None)
        assert (found["owes"], found["calls"]) == (2, 0)
        assert [(who, serial) for who, serial, _ in found["owed"]] == [
            (caller.unique_name, serials[1]), (caller.unique_name, serials[2]),
        ]  # fmt: skip
        assert found["owes_us"] == max(us for *_, us in found["owed"])
        assert found["sent"] == [0, 2, 1, 0, 0]  # Hello, RequestName and the answer
        assert found["received"][1] == 3
        assert sum(found["replies"]) == 1
        mine = ask(caller, "GetPeer", "")
        assert mine["name"] == caller.unique_name
        assert (mine["calls"], len(mine["awaited"])) == (2, 2)


def test_who_holds_whose_quota(bus: buses.Daemon) -> None:
    with (
        connected(bus.address) as stuck,
        connected(bus.address) as sender,
        connected(bus.address) as other,
    ):
        body = {"signature": "ay", "values": [bytes(20000)], "flags": wire.NO_REPLY}
        for _ in range(600):
            sender.message(destination=stuck.unique_name.encode(), path=b"/", interface=b"a.b",
                           member=b"M", **body)  # type: ignore[arg-type]  # fmt: skip
        sender.reply_to(sender.driver(b"GetId"))
        time.sleep(0.05)
        found = ask(other, "GetPeer", stuck.unique_name)
        waiting = found["queued_bytes"]
        assert waiting > 50000
        assert found["queued_us"] >= 40000
        assert found["queued_messages"] > 1
        # Charged is each message as a whole, until its last byte has gone.
        ((uid, charged, *_), *rest) = found["filled_by"]
        assert uid == os.getuid()
        assert waiting <= charged < waiting + 20500
        assert not rest
        assert ask(other, "GetPeer", sender.unique_name)["waits_at"] == [[uid, charged]]
        (user,) = [one for one in whole(other, "Users") if not one["bus"]]
        assert (user["uid"], user["queued_bytes"], user["connections"]) == (uid, charged, 3)
        near = {one["limit"]: one for one in whole(other, "Pressed")}
        assert near["max_outgoing_bytes"]["who"] == stuck.unique_name
        assert near["max_outgoing_bytes"]["value"] == waiting


def test_names_and_who_waits_for_them(bus: buses.Daemon) -> None:
    with (
        connected(bus.address, "a.b", "a.c") as one,
        connected(bus.address, "a.b") as two,
        connected(bus.address, "a.b") as three,
    ):
        found = {record["name"]: record for record in whole(one, "Names")}
        assert sorted(found) == ["a.b", "a.c"]
        assert found["a.b"]["owner"] == one.unique_name
        assert found["a.b"]["queue"] == [two.unique_name, three.unique_name]
        assert found["a.c"]["n_queue"] == 0


def test_rules_and_filters(bus: buses.Daemon) -> None:
    with connected(bus.address) as one, connected(bus.address) as monitor:
        for _ in range(2):
            one.reply_to(one.driver(b"AddMatch", "s", "type='signal',member='M'"))
        monitor.reply_to(
            monitor.driver(b"BecomeMonitor", "asu", ["member='N'"], 0,
                           interface=b"org.freedesktop.DBus.Monitoring")
        )  # fmt: skip
        found = [(one["name"], one["rule"], one["monitor"]) for one in whole(one, "Matches")]
        assert found == [
            (one.unique_name, "type='signal',member='M'", False),
            (one.unique_name, "type='signal',member='M'", False),
            (monitor.unique_name, "member='N',eavesdrop='true'", True),
        ]


def arriving(bus: buses.Daemon) -> socket.socket:
    """One who has said all that it takes to be on the bus, and waits for no answer."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(bus.address.partition("path=")[2].partition(",")[0])
    identity = str(os.geteuid()).encode().hex().encode()
    hello = wire.message(
        wire.CALL, 1, path=b"/org/freedesktop/DBus", interface=DRIVER, member=b"Hello",
        destination=DRIVER, sender=None,
    )  # fmt: skip
    sock.sendall(b"\0AUTH EXTERNAL " + identity + b"\r\nBEGIN\r\n" + hello)
    return sock


def test_lists_come_in_pieces(bus: buses.Daemon) -> None:
    """All of a thousand peers and of the many names and rules of one, each once."""
    many = [arriving(bus) for _ in range(1000)]
    with connected(bus.address) as one:
        until(lambda: ask(one, "GetStatus")["connections"] >= 1001, "all are there")
        for i in range(3000):
            one.driver(b"RequestName", "su", f"a.n{i}", 0, flags=wire.NO_REPLY)
            one.driver(b"AddMatch", "s", f"member='M{i}'", flags=wire.NO_REPLY)
            if i % 200 == 199:
                # What it is told of its names must not fill its queue.
                one.reply_to(one.driver(b"GetId"))
        peers = pages(one, "Peers")
        assert len(peers) > 3
        names = [record["name"] for page in peers for record in page]
        assert len(names) == len(set(names)) == 1001
        names_found = pages(one, "Names")
        assert len(names_found) > 3
        found = [record["name"] for page in names_found for record in page]
        assert sorted(found) == sorted(f"a.n{i}" for i in range(3000))
        rules = pages(one, "Matches")
        assert len(rules) > 3
        assert len({record["rule"] for page in rules for record in page}) == 3000
        # Somebody who goes in between does not end it.
        first = ask(one, "PeersFrom", "")
        many[500].close()
        one.reply_to(one.driver(b"GetId"))
        assert ask(one, "PeersFrom", first[1])[0]
    for client in many:
        client.close()


@pytest.mark.parametrize("cursor", ["x", "-1", "1:x", "9" * 30, "c:x", "\u0661"])
def test_bad_cursors(bus: buses.Daemon, cursor: str) -> None:
    with connected(bus.address) as one:
        for what in LISTS:
            found = ask(one, f"{what}From", cursor)
            if found[0] != "InvalidArgs":
                # Of some lists it is one.
                assert json.loads(found[0]) is not None


def test_nobody_there(bus: buses.Daemon) -> None:
    with connected(bus.address) as one:
        assert ask(one, "GetPeer", "a.b")[0] == "NameHasNoOwner"
        assert ask(one, "GetPeer", ":1.999")[0] == "NameHasNoOwner"
        assert ask(one, "GetPeer", DRIVER.decode())[0] == "InvalidArgs"


@needs_root
def test_who_may_see_what(bus: buses.Daemon) -> None:
    with (
        connected(bus.address, "a.b") as root,
        connected(bus.address, "a.c", uid=NOBODY) as nobody,
        connected(bus.address, uid=NOBODY) as sibling,
    ):
        for member in ("GetStatus", *(f"{what}From" for what in LISTS)):
            words = [] if member == "GetStatus" else [""]
            assert ask(nobody, member, *words)[0] == "AccessDenied"
            assert "AccessDenied" not in ask(root, member, *words)
        # Of itself it may see all, by any of its names; of others not even if they are there.
        for name in ("", nobody.unique_name, "a.c"):
            assert ask(nobody, "GetPeer", name)["uid"] == NOBODY
        texts = set()
        for name in ("a.b", root.unique_name, sibling.unique_name, ":1.999", "not.there"):
            error, text = ask(nobody, "GetPeer", name)
            assert error == "AccessDenied"
            texts.add(text)
        assert len(texts) == 1
        assert ask(root, "GetPeer", "a.c")["denied"] > 5


def test_policy_decides_first() -> None:
    extra = (
        '<policy context="default"><deny send_destination="org.freedesktop.DBus"'
        f' send_interface="{INSPECT.decode()}"/></policy>'
    )
    with buses.running(buses.jitney_command(), extra=extra) as bus, connected(bus.address) as one:
        assert ask(one, "GetPeer", "")[0] == "AccessDenied"
        assert ask(one, "GetStatus")[0] == "AccessDenied"


# The commands


def jitney(bus: buses.Daemon, *words: str) -> int:
    return command.main([words[0], "--address", bus.address, *words[1:]])


def test_commands(bus: buses.Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    with connected(bus.address, "a.b") as one, connected(bus.address, "a.b") as two:
        one.reply_to(one.driver(b"AddMatch", "s", "member='M'"))
        assert jitney(bus, "status") == 0
        assert f"pid {bus.pid}" in capsys.readouterr().out
        assert jitney(bus, "status", "--json") == 0
        assert json.loads(capsys.readouterr().out)["connections"] == 3
        assert jitney(bus, "peers") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[:3] == ["NAME", "USER", "PID"]
        assert lines[1].split()[0] == one.unique_name
        assert lines[1].endswith("a.b")
        assert lines[2].endswith("(waits for 1)")
        assert jitney(bus, "peers", "--json", "a.b") == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert found["name"] == one.unique_name
        assert found["pid"] == (os.getpid() if ways.PEER_PIDS else None)
        cgroup = Path("/proc/self/cgroup").read_text().split("0::")[1].split("\n")[0]
        assert found["cgroup"] == (cgroup if ways.PEER_PIDS else "")
        assert jitney(bus, "names") == 0
        assert capsys.readouterr().out.splitlines()[1].split()[0] == "a.b"
        assert jitney(bus, "names", "--json") == 0
        (found,) = json.loads(capsys.readouterr().out)["owned"]
        assert found["queue"] == [two.unique_name]
        assert jitney(bus, "matches") == 0
        assert "member='M'" in capsys.readouterr().out
        assert jitney(bus, "matches", "--json") == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert found["rule"] == "member='M'"
        assert jitney(bus, "peers", "no.body") == 2
        assert "no.body" in capsys.readouterr().err


def test_commands_and_their_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["status", "--address", "unix:path=/nonexistent/bus"]) == 2
    assert "jitney status: unix:path=/nonexistent/bus" in capsys.readouterr().err
    extra = (
        '<policy context="default"><deny send_destination="org.freedesktop.DBus"'
        f' send_interface="{INSPECT.decode()}"/></policy>'
    )
    with buses.running(buses.jitney_command(), extra=extra) as bus:
        assert jitney(bus, "peers") == 2
    assert f'send_interface="{INSPECT.decode()}"' in capsys.readouterr().err


@pytest.mark.skipif(buses.REFERENCE is None, reason="no dbus-daemon here")
def test_a_bus_that_is_no_jitney(capsys: pytest.CaptureFixture[str]) -> None:
    assert buses.REFERENCE is not None
    with buses.running([buses.REFERENCE]) as other:
        assert jitney(other, "names") == 2
    assert "no jitney" in capsys.readouterr().err
