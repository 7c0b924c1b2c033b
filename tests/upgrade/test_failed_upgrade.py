"""Upgrades to what is no good: the old bus goes on, nobody lost anything, and the next works."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import buses
import kdbusmount
import pytest
from rawclient import RawClient
from upgrading import NotUpgraded, build, descriptors, joined, settled, upgrade
from waiting import alive, until

from jitney.compat import wire

WRONG = {
    "ends at once": ("os._exit(3)", r"exit status 3"),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", r"killed by signal 9"),
    "raises as it starts": ("assembly.build = None", r"it says: TypeError"),
    "knows no such state": ("form.READERS = {9: None}", r"states of version 9"),
    "rejects the state": (
        """
from jitney.broker.restore import BadState
def reject(*args):
    raise BadState("it does not add up")
form.READERS[2] = reject
""",
        r"it does not add up",
    ),
    "crashes while it takes over": (
        "taker.applied = lambda *args: os.kill(os.getpid(), signal.SIGSEGV)",
        r"killed by signal 11",
    ),
    "crashes when it has taken over": (
        """
was = taker.applied
def applied(*args):
    was(*args)
    os.kill(os.getpid(), signal.SIGKILL)
taker.applied = applied
""",
        r"killed by signal 9",
    ),
    "hangs while it takes over": (
        "taker.applied = lambda *args: time.sleep(1000)",
        r"has said nothing for 5",
    ),
    "says that it took over another bus": (
        """
was = taker.Taker.receive
def receive(self):
    send = self.channel.send
    self.channel.send = lambda packet: send({"taken": 99999})
    was(self)
taker.Taker.receive = receive
""",
        r"what makes no sense",
    ),
    "reads another configuration": (
        "sys.argv[1:] = ['--config-file=/nowhere', sys.argv[-1]]",
        r"/nowhere",
    ),
}


@pytest.fixture
def bus() -> Iterator[buses.Daemon]:
    with buses.running(buses.jitney_command()) as running:
        yield running


@pytest.fixture
def busy(bus: buses.Daemon) -> list[RawClient]:
    """Clients with something of everything under way: see `goes_on()`."""
    one, two, slow, half = (joined(bus.address) for _ in range(4))
    two.reply_to(two.driver(b"RequestName", "su", "com.example.N", 0))
    one.message(destination=b"com.example.N", path=b"/", member=b"M", serial=77)
    for i in range(60):
        one.message(
            wire.SIGNAL, destination=slow.unique_name.encode(), path=b"/", interface=b"a.b",
            member=b"S", signature="uay", values=[i, bytes(20000)], fds=[0] if i % 9 == 0 else [],
        )  # fmt: skip
    half.send(b"l\1\0\1")
    settled(two)
    settled(one)
    return [one, two, slow, half]


def goes_on(address: str, busy: list[RawClient]) -> None:
    """Everything that was under way comes to its end."""
    one, two, slow, half = busy
    two.message(wire.RETURN, destination=one.unique_name.encode(), reply_serial=77)
    assert one.reply_to(77).sender == two.unique_name
    for i in range(60):
        got = slow.receive()
        assert got is not None
        assert got.body[0] == i
        assert len(got.fds) == (i % 9 == 0)
        got.close_fds()
    data = _call()
    assert data[:4] == b"l\1\0\1"
    half.send(data[4:])
    assert half.reply_to(900).body == [two.unique_name]
    with joined(address) as newcomer:
        assert newcomer.unique_name == ":1.4"


def _call() -> bytes:
    return wire.message(
        wire.CALL, 900, path=b"/org/freedesktop/DBus", interface=b"org.freedesktop.DBus",
        member=b"GetNameOwner", destination=b"org.freedesktop.DBus", sender=None,
        signature="s", body=wire.marshal("s", ["com.example.N"]),
    )  # fmt: skip


def pid_of(client: RawClient) -> int:
    asked = client.driver(b"GetConnectionUnixProcessID", "s", "org.freedesktop.DBus")
    return int(client.reply_to(asked).body[0])


@pytest.mark.parametrize("what", WRONG)
def test_the_old_bus_goes_on(
    what: str, bus: buses.Daemon, busy: list[RawClient], tmp_path: Path
) -> None:
    change, reason = WRONG[what]
    program = build(tmp_path, change)
    asker = busy[1]
    before = descriptors(bus.pid)
    for _ in range(1 if "hangs" in what else 2):
        with pytest.raises(NotUpgraded, match=f"(?s)^Upgrade failed: .*{reason}.*goes on"):
            upgrade(asker, program)
    assert pid_of(asker) == bus.pid
    # No process is left, and no descriptor.
    assert not Path(f"/proc/{bus.pid}/task/{bus.pid}/children").read_text().split()
    until(lambda: descriptors(bus.pid) <= before)
    goes_on(bus.address, busy)
    assert upgrade(asker)["upgrades"] == 1
    assert pid_of(asker) != bus.pid
    assert (bus.directory / "bus").exists()


def test_a_failure_after_an_upgrade(
    bus: buses.Daemon, busy: list[RawClient], tmp_path: Path
) -> None:
    upgrade(busy[1])
    current = pid_of(busy[1])
    for change, reason in (WRONG["crashes when it has taken over"], WRONG["ends at once"]):
        with pytest.raises(NotUpgraded, match=reason):
            upgrade(busy[1], build(tmp_path, change))
    assert pid_of(busy[1]) == current
    goes_on(bus.address, busy)
    upgrade(busy[1])


@pytest.mark.parametrize("program", ["/nowhere/jitney-daemon", "/etc/passwd", "/bin/true"])
def test_what_is_no_jitney_at_all(bus: buses.Daemon, busy: list[RawClient], program: str) -> None:
    with pytest.raises(NotUpgraded, match="Upgrade failed: "):
        upgrade(busy[1], program)
    goes_on(bus.address, busy)


def test_a_configuration_that_is_broken_by_now(bus: buses.Daemon, busy: list[RawClient]) -> None:
    file = bus.directory / "bus.conf"
    good = file.read_text()
    file.write_text("<busconfig><nonsense>")
    with pytest.raises(NotUpgraded, match=r"bus\.conf"):
        upgrade(busy[1])
    file.write_text(good)
    goes_on(bus.address, busy)
    upgrade(busy[1])


@pytest.mark.skipif(bool(kdbusmount.why_not()), reason=kdbusmount.why_not() or "-")
def test_a_mount_cannot_come_along(tmp_path: Path) -> None:
    """Who is under it would be cut off: then the bus had better stay where it is."""
    mount = tmp_path / "kdbus"
    mount.mkdir()
    with buses.running([*buses.jitney_command(), f"--kdbus-mount={mount}"]) as bus:
        one = joined(bus.address)
        with pytest.raises(NotUpgraded, match="Upgrade is not possible: there are clients of kd"):
            upgrade(one)
        assert settled(one) == []


def test_the_old_one_dies_meanwhile(
    bus: buses.Daemon, busy: list[RawClient], tmp_path: Path
) -> None:
    """Before it has handed over: the bus is gone, and the new process with it."""
    mark = tmp_path / "mark"
    program = build(
        tmp_path,
        f"open({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1)",
    )
    busy[1].driver(b"Upgrade", "s", program, interface=b"org.jitney.Upgrade1")
    until(lambda: mark.exists() and mark.read_text())
    os.kill(bus.pid, 9)
    until(lambda: not alive(int(mark.read_text())))


def test_the_old_one_dies_before_it_says_go(
    bus: buses.Daemon, busy: list[RawClient], tmp_path: Path
) -> None:
    """When all is taken over: the new process is the bus, since nobody else is."""
    program = build(
        tmp_path,
        f"""
old = {bus.pid}
receive, wait = taker.Taker.receive, taker.Taker.wait
def received(self):
    # So that it does not hear the answer any more.
    send = self.channel.send
    self.channel.send = lambda packet: (os.kill(old, signal.SIGSTOP), send(packet))
    receive(self)
    self.channel.send = send
def waited(self):
    os.kill(old, signal.SIGKILL)
    wait(self)
taker.Taker.receive, taker.Taker.wait = received, waited
""",
    )
    asker = busy[1]
    serial = asker.driver(b"Upgrade", "s", program, interface=b"org.jitney.Upgrade1")
    reply = asker.reply_to(serial, 30)
    pid = json.loads(reply.body[0])["pid"]
    try:
        assert pid_of(asker) == pid != bus.pid
        goes_on(bus.address, busy)
        assert upgrade(asker)["connections"] == 4
    finally:
        last = pid_of(asker)
        os.kill(pid if last == pid or alive(pid) else last, 15)
    until(lambda: not alive(pid) and not alive(last))
