"""States that were saved once are read for good: here the test is the old process, and the new one
gets a state from `states/` to go on with.

A new version of the format gets a file of its own, written by this file as a script, with tests/
and jitney on PYTHONPATH; the files that are there are never written again.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import buses
import pytest
from rawclient import RawClient
from unnamed import unnamed
from upgrading import NotUpgraded, build, joined, settled, upgrade
from waiting import until

from jitney.compat import wire
from jitney.compat.upgrade import form
from jitney.compat.upgrade.channel import Channel, pair

STATES = Path(__file__).with_name("states")
SAVED = sorted(STATES.glob("*.state"))


def test_each_version_has_a_state() -> None:
    versions = {struct.unpack_from("<I", path.read_bytes(), 16)[0] for path in SAVED}
    assert versions == set(form.READERS)


class Predecessor:
    """What hands over a saved state: every descriptor in it is one that we have made."""

    def __init__(self, path: Path, folder: Path, stack: ExitStack) -> None:
        self.data = path.read_bytes()
        self.document, _, _ = form.unpack(self.data)
        self.clients: dict[int, socket.socket] = {}
        fds: dict[int, int] = {}
        for peer in self.document["hub"]["peers"]:
            mine, its = socket.socketpair()
            stack.enter_context(mine)
            stack.enter_context(its)
            fds[peer["fd"]] = its.fileno()
            mine.settimeout(30)
            if peer["conn"] >= 0:
                self.clients[self.document["bus"]["connections"][peer["conn"]]["id"]] = mine
        servers = [("bus", server) for server in self.document["servers"]]
        if self.document["doors"] is not None:
            servers += [(door["name"], door["server"]) for door in self.document["doors"]["doors"]]
        for name, server in servers:
            for place in server["sockets"]:
                listening = stack.enter_context(socket.socket(socket.AF_UNIX))
                listening.bind(str(folder / name))
                listening.listen()
                fds[place] = listening.fileno()
        if self.document["keeper"] >= 0:
            keeper, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(keeper)
            stack.enter_context(its)
            fds[self.document["keeper"]] = its.fileno()
        null = os.open(os.devnull, os.O_RDWR)
        stack.callback(os.close, null)
        (whole,) = struct.unpack_from("<Q", self.data, 24)
        self.n_fds = 1 + max([*fds, *self.places(whole)])
        self.fds = [fds.get(place, null) for place in range(self.n_fds)]

    def places(self, n_text: int) -> Iterator[int]:
        whole: dict[str, Any] = json.loads(self.data[40 : 40 + n_text])
        for places in whole["sets"]:
            yield from places
        for child in self.document["activation"]["children"]:
            yield from (child["report"], child["pidfd"])

    def hand_over(self, channel: Channel) -> None:
        channel.send({
            "guid": self.document["bus"]["guid"], "address": "unix:path=/nowhere",
            "fd_limit": None, "metrics": [],
        })  # fmt: skip
        ready, _ = channel.receive(30)
        assert "ready" in ready, ready
        file = unnamed(self.data)
        channel.send({"state": len(self.data), "fds": self.n_fds}, [file])
        os.close(file)
        for i in range(0, self.n_fds, 200):
            channel.send({}, self.fds[i : i + 200])
        taken, _ = channel.receive(30)
        assert taken == {"taken": self.document["bus"]["last_id"]}, taken
        channel.send({"go": True})


@pytest.mark.parametrize("path", SAVED, ids=lambda path: str(path.stem))
def test_it_is_gone_on_with(path: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        old = Predecessor(path, tmp_path, stack)
        config = tmp_path / "bus.conf"
        config.write_text(buses.CONFIG.format(type="session", directory=tmp_path, extra=""))
        channel, its = pair()
        words = [*buses.jitney_command(), f"--config-file={config}", "--nofork"]
        process = subprocess.Popen([*words, f"--take-over={its.fileno()}"], pass_fds=[its.fileno()])
        try:
            its.close()
            old.hand_over(channel)
            goes_on(f"unix:path={tmp_path}/bus", old)
            if old.document["doors"] is not None:
                endpoints_go_on(tmp_path, old)
        finally:
            process.terminate()
            process.wait(30)


def goes_on(address: str, old: Predecessor) -> None:
    """What `save()` has begun comes to its end."""
    one = RawClient(address)
    assert int(one.hello().partition(".")[2]) == old.document["bus"]["last_id"]
    owner, waiting, slow, half, caller = (revived(old, number) for number in range(1, 6))
    ask = one.driver(b"ListQueuedOwners", "s", "com.example.N")
    assert one.reply_to(ask).body == [[":1.0", ":1.1"]]
    # The call that was not answered, and the rest of what was queued.
    owner.message(wire.RETURN, destination=b":1.4", reply_serial=700)
    assert caller.reply_to(700).sender == ":1.0"
    left = old.document["bus"]["connections"][2]["charges"]
    got = b""
    want = sum(charge[0] for charge in left)
    while len(got) < want:
        got += slow.sock.recv(want - len(got))
    assert got.endswith(b"the end\0")
    half.send(half_message()[20:])
    assert half.reply_to(900).body == [":1.0"]
    one.message(wire.SIGNAL, destination=None, path=b"/", interface=b"a.b", member=b"Watched")
    settled(one)
    heard = waiting.receive()
    assert heard is not None
    assert heard.member == "Watched"
    poll = select.poll()
    poll.register(old.clients[6], select.POLLIN)
    assert poll.poll(30000), "the monitor sees nothing"


def endpoints_go_on(folder: Path, old: Predecessor) -> None:
    """Number 7 came in by an endpoint of 1's, which opens one name to it, and learns."""
    inside, owner = revived(old, 7), revived(old, 1)
    refused = inside.reply_to(
        inside.message(destination=b"com.example.Hidden", path=b"/", interface=b"a.b", member=b"M")
    )
    assert refused.error_name == "org.freedesktop.DBus.Error.ServiceUnknown"
    ask = inside.driver(b"GetNameOwner", "s", "com.example.N")
    assert inside.reply_to(ask).body == [":1.0"]
    learned = owner.driver(b"Learned", "s", "box", interface=b"org.jitney.Endpoints1")
    assert owner.reply_to(learned).body[0] == [
        "call com.example.N=a.b.Early", "# refused:", "# call com.example.Hidden=a.b.M",
    ]  # fmt: skip
    about = owner.driver(
        b"DescribeInstance", "o", "/org/jitney/Containers1/c1", interface=b"org.jitney.Containers1"
    )
    assert owner.reply_to(about).body[1:] == ["com.example.Kind", "app", {"x": ("ay", b"\xff")}]
    for name in ("box", "container-1"):
        with RawClient(f"unix:path={folder / name}") as client:
            client.hello()
    # They are the owner's, and go with it.
    other = joined(f"unix:path={folder}/bus")
    owner.close()

    def listed() -> list[str]:
        asked = other.driver(b"List", interface=b"org.jitney.Endpoints1")
        return [door["name"] for door in json.loads(other.reply_to(asked).body[0])]

    until(lambda: not listed())


def revived(old: Predecessor, number: int) -> RawClient:
    client = RawClient.__new__(RawClient)
    client.sock = old.clients[number]
    client.timeout = 15
    client.serial = 5000
    client.unique_name = f":1.{number - 1}"
    client.closed = False
    client._unread = b""
    client._fds = []
    return client


def half_message() -> bytes:
    return wire.message(
        wire.CALL, 900, path=b"/org/freedesktop/DBus", interface=b"org.freedesktop.DBus",
        member=b"GetNameOwner", destination=b"org.freedesktop.DBus", sender=None,
        signature="s", body=wire.marshal("s", ["com.example.N"]),
    )  # fmt: skip


def save(path: Path) -> None:
    """Writes the state of a bus that has something of everything."""
    with tempfile.TemporaryDirectory() as folder, buses.running(buses.jitney_command()) as bus:
        service = bus.directory / "services" / "x.service"
        service.write_text("[D-BUS Service]\nName=com.example.Late\nExec=/bin/sleep 5\n")
        clients = [joined(bus.address) for _ in range(6)]
        owner, waiting, _slow, half, caller, monitor = clients
        for client in (owner, waiting):
            client.reply_to(client.driver(b"RequestName", "su", "com.example.N", 0))
        waiting.reply_to(waiting.driver(b"AddMatch", "s", "member='Watched',arg0='x\u00e9'"))
        waiting.reply_to(waiting.driver(b"RemoveMatch", "s", "member='Watched',arg0='x\u00e9'"))
        for rule in ("member='Watched'", "sender=':1.0',arg0namespace='a.b'", "path='/x'"):
            waiting.reply_to(waiting.driver(b"AddMatch", "s", rule))
        monitor.reply_to(
            monitor.driver(
                b"BecomeMonitor", "asu", ["type='method_call'"], 0,
                interface=b"org.freedesktop.DBus.Monitoring",
            )
        )  # fmt: skip
        caller.message(destination=b":1.0", path=b"/", member=b"M", serial=700)
        caller.message(destination=b"com.example.Late", path=b"/", member=b"M", serial=701)
        settled(owner)
        waits = 0
        while waits < 2:
            # One more when some of the last had to wait, with a descriptor.
            caller.message(
                wire.SIGNAL, destination=b":1.2", path=b"/", interface=b"a.b", member=b"F",
                signature="s", values=["x" * 15000 + "the end"], fds=[0] * waits,
            )  # fmt: skip
            asked = caller.driver(b"GetPeer", "s", ":1.2", interface=b"org.jitney.Inspect1")
            about = json.loads(caller.reply_to(asked).body[0])
            waits += about["queued_bytes"] > 0
        door, options = str(bus.directory / "box"), {"learn": ("b", True)}
        added = owner.driver(
            b"Add", "ssasa{sv}", "box", door, ["talk com.example.N"], options,
            interface=b"org.jitney.Endpoints1",
        )  # fmt: skip
        inside = joined(str(owner.reply_to(added).body[0]))
        inside.message(destination=b"com.example.N", path=b"/", interface=b"a.b", member=b"Early")
        settled(inside)
        metadata = {"x": ("ay", b"\xff")}
        served = owner.driver(
            b"AddServer", "ssa{sv}a{sv}", "com.example.Kind", "app", metadata, {},
            interface=b"org.jitney.Containers1",
        )  # fmt: skip
        assert owner.reply_to(served).error_name is None
        half.send(half_message()[:20])
        unfinished = socket.socket(socket.AF_UNIX)
        unfinished.connect(str(bus.directory / "bus"))
        unfinished.sendall(b"\0AUTH EXTERNAL\r\n")
        settled(caller)
        change = (
            "was = form.unpack\n"
            "def unpack(data):\n"
            f"    open({str(path)!r}, 'wb').write(data)\n"
            "    sys.exit(1)\n"
            "form.unpack = unpack"
        )
        try:
            upgrade(caller, build(Path(folder), change))
        except NotUpgraded:
            pass
        unfinished.close()


if __name__ == "__main__":
    STATES.mkdir(exist_ok=True)
    target = STATES / f"version-{form.VERSION}.state"
    if target.exists():
        sys.exit(f"{target} is there")
    save(target)
