"""A bus that is upgraded while clients are on it: none of them can tell, whatever they were at."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from array import array
from collections.abc import Iterator
from pathlib import Path

import buses
import kernel
import pytest
from floods import until_held
from rawclient import RawClient, build
from upgrading import NotUpgraded, descriptors, joined, settled, upgrade
from upgrading import build as a_build
from waiting import alive, until

from jitney.compat import wire


@pytest.fixture
def bus() -> Iterator[buses.Daemon]:
    with buses.running(buses.jitney_command()) as running:
        yield running


def pid_of(client: RawClient) -> int:
    reply = client.reply_to(
        client.driver(b"GetConnectionUnixProcessID", "s", "org.freedesktop.DBus")
    )
    return int(reply.body[0])


def test_nobody_can_tell(bus: buses.Daemon) -> None:
    watcher = joined(bus.address)
    watcher.reply_to(watcher.driver(b"AddMatch", "s", "sender='org.freedesktop.DBus'"))
    owner, waiting, caller = joined(bus.address), joined(bus.address), joined(bus.address)
    for client in (owner, waiting):
        client.reply_to(client.driver(b"RequestName", "su", "com.example.N", 0))
    settled(watcher)
    bus_id = watcher.reply_to(watcher.driver(b"GetId")).body
    call = caller.message(
        destination=b"com.example.N", path=b"/", interface=b"com.example.I", member=b"M"
    )
    settled(owner)
    pids = {pid_of(watcher)}
    for i in range(3):
        numbers = upgrade(caller)
        assert numbers["connections"] == 4
        assert numbers["names"] == 1
        assert numbers["replies"] == 1
        assert numbers["upgrades"] == i + 1
        pids.add(pid_of(watcher))
    assert len(pids) == 4
    assert not settled(watcher), "somebody was told of something"
    assert watcher.reply_to(watcher.driver(b"GetId")).body == bus_id
    # The call is answered, as the requested reply that it was.
    owner.message(
        wire.RETURN, destination=caller.unique_name.encode(), reply_serial=call, signature="s",
        values=["done"],
    )  # fmt: skip
    assert caller.reply_to(call).body == ["done"]
    queued = watcher.reply_to(watcher.driver(b"ListQueuedOwners", "s", "com.example.N")).body[0]
    assert queued == [owner.unique_name, waiting.unique_name]
    # Names go on where they were, and the next newcomer gets the next number.
    owner.close()
    changes = [(m.member, m.body) for m in (watcher.receive(), watcher.receive()) if m is not None]
    assert (
        "NameOwnerChanged",
        ["com.example.N", owner.unique_name, waiting.unique_name],
    ) in changes
    assert joined(bus.address).unique_name == ":1.4"


def message(serial: int, to: RawClient, fds: int = 0) -> bytes:
    fields = [(1, "o", "/x"), (2, "s", "com.example.I"), (3, "s", "Cut")]
    fields.append((6, "s", to.unique_name))
    if fds:
        fields.append((9, "u", fds))
    return build(wire.SIGNAL, serial, fields, "su", ["to be continued", serial])


@pytest.mark.parametrize("fds", [0, 2])
def test_messages_cut_at_every_byte(bus: buses.Daemon, fds: int) -> None:
    receiver = joined(bus.address)
    size = len(message(1, receiver, fds))
    senders = []
    for cut in range(size + 1):
        sender = joined(bus.address)
        senders.append(sender)
        data = message(cut + 1, receiver, fds)
        if cut:
            # A descriptor comes with the first byte.
            sender.send(data[:cut], [0] * fds)
    asker = joined(bus.address)
    upgrade(asker)
    whole = settled(receiver)
    assert [m.body[1] for m in whole] == [size + 1]
    # Half of what is left, and another cut.
    for cut, sender in enumerate(senders):
        data = message(cut + 1, receiver, fds)
        middle = cut + (size - cut) // 2
        sender.send(data[cut:middle], [0] * fds if cut == 0 and middle else [])
    upgrade(asker)
    for cut, sender in enumerate(senders[:-1]):
        data = message(cut + 1, receiver, fds)
        sender.send(data[cut + (size - cut) // 2 :])
        got = receiver.receive()
        assert got is not None
        assert got.body == ["to be continued", cut + 1]
        assert got.sender == sender.unique_name
        assert len(got.fds) == fds
        got.close_fds()
        whole_now = sender.reply_to(sender.driver(b"GetId", serial=900))
        assert whole_now.type == wire.RETURN


def test_conversations_cut_at_every_byte(bus: buses.Daemon) -> None:
    identity = str(os.geteuid()).encode().hex().encode()
    lines = (
        b"\0AUTH NOSUCH\r\nAUTH EXTERNAL\r\nDATA "
        + identity
        + b"\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
    )
    hello = build(
        wire.CALL, 1, [(1, "o", "/org/freedesktop/DBus"), (3, "s", "Hello"),
                       (6, "s", "org.freedesktop.DBus")]
    )  # fmt: skip
    data = lines + hello
    path = bus.address.partition("path=")[2].partition(",")[0]
    asker = joined(bus.address)
    clients = []
    for start in range(0, len(data), 40):
        # So many may be unfinished at a time.
        clients.clear()
        for cut in range(start, min(start + 40, len(data))):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(30)
            sock.connect(path)
            sock.sendall(data[:cut])
            clients.append((cut, sock))
        settled(asker)
        assert upgrade(asker)["authenticating"] > 0 or start > len(lines)
        for cut, sock in clients:
            sock.sendall(data[cut:])
            got = b""
            while b":1." not in got:
                more = sock.recv(4096)
                assert more, (cut, got)
                got += more
            ok = got.partition(b"l\2\1")[0]
            assert [line[:8] for line in ok.splitlines()] == [
                b"REJECTED", b"DATA", ok.splitlines()[2][:8], b"AGREE_UN"
            ], cut  # fmt: skip
            sock.close()


def test_slow_readers_get_all_in_order(bus: buses.Daemon) -> None:
    readers = [joined(bus.address) for _ in range(3)]
    for reader in readers:
        reader.reply_to(reader.driver(b"AddMatch", "s", "interface='com.example.Flood'"))
    sender = joined(bus.address)
    inward, outward = os.pipe()
    bodies = [0, 10, 3000, 20000, 70000]
    for i in range(200):
        sender.message(
            wire.SIGNAL, destination=None, path=b"/", interface=b"com.example.Flood", member=b"F",
            signature="uay", values=[i, bytes(bodies[i % 5])], fds=[outward] if i % 7 == 0 else [],
        )  # fmt: skip
    settled(sender)
    assert upgrade(sender)["queued_bytes"] > 5_000_000
    for reader in readers:
        for i in range(60):
            check(reader, i, bodies[i % 5])
    assert upgrade(sender)["queued_bytes"] > 1_000_000
    for reader in readers:
        for i in range(60, 200):
            check(reader, i, bodies[i % 5])
    assert upgrade(sender)["queued_bytes"] == 0
    os.close(outward)
    # Nobody holds the other end any more: each descriptor was closed by everybody.
    assert os.read(inward, 1) == b""
    os.close(inward)


def check(reader: RawClient, i: int, size: int) -> None:
    got = reader.receive()
    assert got is not None
    assert got.body == [i, bytes(size)] or got.body == [i, list(bytes(size))], i
    assert len(got.fds) == (i % 7 == 0)
    for fd in got.fds:
        assert os.fstat(fd)
    got.close_fds()


def test_held_senders_stay_held_and_are_let_go() -> None:
    limits = '<limit name="max_incoming_bytes">200000</limit>'
    with buses.running(buses.jitney_command(), extra=limits) as bus:
        reader, sender, asker = (joined(bus.address) for _ in range(3))
        fields = [(1, "o", "/"), (2, "s", "a.b"), (3, "s", "F"), (6, "s", reader.unique_name)]
        sent, data = until_held(
            sender, asker,
            (build(wire.SIGNAL, i, fields, "uay", [i, bytes(50000)]) for i in range(1, 1000)),
        )  # fmt: skip
        sent += 1  # the last of them in part
        before = upgrade(asker)["queued_bytes"]
        assert before >= 200000
        # It is still not read from: nothing more may come to be queued.
        assert upgrade(asker)["queued_bytes"] == before
        for i in range(1, sent):
            got = reader.receive()
            assert got is not None
            assert got.body[0] == i
        sender.sock.sendall(data)
        got = reader.receive()
        assert got is not None
        assert got.body[0] == sent


def test_monitors_go_on(bus: buses.Daemon) -> None:
    monitor, one, two = (joined(bus.address) for _ in range(3))
    monitor.reply_to(
        monitor.driver(
            b"BecomeMonitor", "asu", ["interface='com.example.I'"], 0,
            interface=b"org.freedesktop.DBus.Monitoring",
        )
    )  # fmt: skip
    for i in range(4):
        for j in range(2):
            one.message(
                wire.SIGNAL, destination=two.unique_name.encode(), path=b"/",
                interface=b"com.example.I", member=b"S%d" % (2 * i + j),
            )  # fmt: skip
            if j == 0:
                upgrade(two)
    settled(one)
    seen = []
    while len(seen) < 8:
        got = monitor.receive()
        assert got is not None
        if got.interface == "com.example.I":
            seen.append(got.member)
            assert got.sender == one.unique_name
    assert seen == [f"S{i}" for i in range(8)]
    # And a monitor may still not speak.
    monitor.driver(b"GetId")
    until(lambda: monitor.closed or monitor.receive() is None)


def test_tracers_go_on(bus: buses.Daemon) -> None:
    tracer, one = joined(bus.address), joined(bus.address)
    options = {"match": ("as", ["type='method_call',path='/traced'"]), "payload": ("u", 16)}
    tracer.reply_to(tracer.driver(b"Start", "a{sv}", options, interface=b"org.jitney.Trace1"))
    for i in range(3):
        one.message(destination=one.unique_name.encode(), path=b"/traced", member=b"T%d" % i)
        upgrade(one)
    one.message(destination=one.unique_name.encode(), path=b"/traced", member=b"T3")
    members: list[str] = []
    while len(members) < 4:
        got = tracer.receive()
        assert got is not None
        if got.member == "Records":
            lost, records = got.body
            assert lost == 0
            members += [record[16] for record in records if record[2] == 1]
    assert members == ["T0", "T1", "T2", "T3"]


def test_match_rules_and_unique_senders(bus: buses.Daemon) -> None:
    one, two, three = (joined(bus.address) for _ in range(3))
    for rule in (f"sender='{two.unique_name}'", "sender='com.example.N'", "arg0namespace='a.b'"):
        one.reply_to(one.driver(b"AddMatch", "s", rule))
    two.reply_to(two.driver(b"RequestName", "su", "com.example.N", 0))
    upgrade(three)

    def heard(client: RawClient, argument: str) -> int:
        client.message(
            wire.SIGNAL, destination=None, path=b"/", interface=b"x.y", member=b"S",
            signature="s", values=[argument],
        )  # fmt: skip
        settled(client)
        return len([m for m in settled(one) if m.member == "S"])

    assert heard(two, "z") == 1
    assert heard(three, "z") == 0
    assert heard(three, "a.b.c") == 1
    one.reply_to(one.driver(b"RemoveMatch", "s", "arg0namespace='a.b'"))
    assert heard(three, "a.b.c") == 0
    again = one.reply_to(one.driver(b"RemoveMatch", "s", "arg0namespace='a.b'"))
    assert again.error_name == "org.freedesktop.DBus.Error.MatchRuleNotFound"
    # The rule that names him goes with him, as it would have.
    two.close()
    until(lambda: not any_owner(three, ":1.1"))
    gone = one.reply_to(one.driver(b"RemoveMatch", "s", "sender=':1.1'"))
    assert gone.error_name == "org.freedesktop.DBus.Error.MatchRuleNotFound"


def any_owner(client: RawClient, name: str) -> bool:
    return bool(client.reply_to(client.driver(b"NameHasOwner", "s", name)).body[0])


def test_replies_are_still_due(bus: buses.Daemon) -> None:
    with buses.running(
        buses.jitney_command(), extra='<limit name="reply_timeout">2500</limit>'
    ) as timed:
        one, two, three = (joined(timed.address) for _ in range(3))
        call = one.message(destination=two.unique_name.encode(), path=b"/", member=b"M")
        settled(two)
        upgrade(three)
        upgrade(three)
        reply = one.reply_to(call)
        assert reply.error_name == "org.freedesktop.DBus.Error.NoReply"
        # Who goes without having replied is told on.
        call = one.message(destination=two.unique_name.encode(), path=b"/", member=b"M")
        settled(two)
        upgrade(three)
        two.close()
        assert one.reply_to(call).error_name == "org.freedesktop.DBus.Error.NoReply"
        # What nobody asked for is no reply.
        three.message(wire.RETURN, destination=one.unique_name.encode(), reply_serial=call)


def test_new_configuration_is_read(bus: buses.Daemon) -> None:
    one = joined(bus.address)
    one.reply_to(one.driver(b"RequestName", "su", "com.example.Kept", 0))
    assert upgrade(one)["names"] == 1
    file = bus.directory / "bus.conf"
    file.write_text(file.read_text().replace('<allow own="*"/>', '<deny own="*"/>'))
    (bus.directory / "services" / "x.service").write_text(
        "[D-BUS Service]\nName=com.example.New\nExec=/bin/true\n"
    )
    one.reply_to(one.driver(b"AddMatch", "s", "member='ActivatableServicesChanged'"))
    settled(one)
    upgrade(one)
    denied = one.reply_to(one.driver(b"RequestName", "su", "com.example.Other", 0))
    assert denied.error_name == "org.freedesktop.DBus.Error.AccessDenied"
    # What it has, it keeps, as after ReloadConfig.
    assert one.reply_to(one.driver(b"GetNameOwner", "s", "com.example.Kept")).type == wire.RETURN
    names = one.reply_to(one.driver(b"ListActivatableNames")).body[0]
    assert "com.example.New" in names


def test_policies_of_groups_and_of_users() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be others")
    rules = (
        '<policy context="default"><deny own="com.example.N"/></policy>'
        f'<policy group="{os.getegid()}"><allow own="com.example.N"/></policy>'
    )
    with buses.running(buses.jitney_command(), extra=rules) as bus:
        one, other = joined(bus.address), joined(bus.address, uid=65534, groups=[65534])
        upgrade(one)
        denied = other.reply_to(other.driver(b"RequestName", "su", "com.example.N", 0))
        assert denied.error_name == "org.freedesktop.DBus.Error.AccessDenied"
        assert one.reply_to(one.driver(b"RequestName", "su", "com.example.N", 0)).body == [1]
        asked = one.driver(b"GetConnectionCredentials", "s", other.unique_name)
        found = one.reply_to(asked).body[0]
        assert found["UnixUserID"] == ("u", 65534)
        assert found.get("ProcessID") == kernel.MY_PID


@pytest.mark.timeout(300)
def test_many_in_a_row_leave_nothing(bus: buses.Daemon) -> None:
    one, two = joined(bus.address), joined(bus.address)
    upgrade(one)
    first = pid_of(one)
    count = descriptors(first)
    gone = [first]
    for i in range(20):
        two.message(
            wire.SIGNAL, destination=one.unique_name.encode(), path=b"/", interface=b"a.b",
            member=b"S", signature="u", values=[i], fds=[0],
        )  # fmt: skip
        assert upgrade(two)["upgrades"] == i + 2
        gone.append(pid_of(two))
    found = settled(one)
    assert [m.body for m in found] == [[i] for i in range(20)]
    for m in found:
        m.close_fds()
    current = gone.pop()
    until(lambda: not any(alive(pid) for pid in gone))
    until(lambda: descriptors(current) <= count)
    os.kill(bus.pid, signal.SIGTERM)
    until(lambda: not alive(current))
    assert one.receive() is None
    assert not (bus.directory / "bus").exists()


def test_signals_go_to_the_bus(bus: buses.Daemon) -> None:
    one = joined(bus.address)
    before = pid_of(one)
    os.kill(bus.pid, signal.SIGUSR2)
    until(lambda: pid_of(one) != before)
    assert pid_of(one) != bus.pid
    second = pid_of(one)
    os.kill(bus.pid, signal.SIGUSR2)
    until(lambda: pid_of(one) != second)
    one.reply_to(one.driver(b"AddMatch", "s", "member='ActivatableServicesChanged'"))
    os.kill(bus.pid, signal.SIGHUP)
    got = one.receive()
    assert got is not None
    assert got.member == "ActivatableServicesChanged"


def test_a_bus_ends_with_its_keeper(bus: buses.Daemon) -> None:
    one = joined(bus.address)
    upgrade(one)
    current = pid_of(one)
    os.kill(bus.pid, signal.SIGKILL)
    until(lambda: not alive(current))


def test_a_keeper_ends_as_its_bus_did(bus: buses.Daemon) -> None:
    one = joined(bus.address)
    upgrade(one)
    upgrade(one)
    os.kill(pid_of(one), signal.SIGKILL)
    status = os.waitpid(bus.pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_a_daemon_that_forked_keeps_its_pid(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    config = tmp_path / "bus.conf"
    text = buses.CONFIG.format(type="session", directory=tmp_path, extra="")
    config.write_text(text.replace("<auth>", f"<pidfile>{pidfile}</pidfile><auth>"))
    output = subprocess.run(
        [*buses.jitney_command(), "--config-file=bus.conf", "--fork", "--print-pid",
         "--print-address"],
        cwd=tmp_path, stdout=subprocess.PIPE, check=True, timeout=30,
    ).stdout.split()  # fmt: skip
    address, pid = output[0].decode(), int(output[1])
    try:
        one = joined(address)
        for _ in range(2):
            upgrade(one)
        assert int(pidfile.read_text()) == pid
        current = pid_of(one)
        assert os.readlink(f"/proc/{current}/cwd") == "/"
    finally:
        os.kill(pid, signal.SIGTERM)
    until(lambda: not alive(current) and not alive(pid))
    assert not pidfile.exists()
    assert not (tmp_path / "bus").exists()


def test_who_may_ask(bus: buses.Daemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be others")
    nobody = joined(bus.address, uid=65534)
    with pytest.raises(NotUpgraded, match="rejected attempt to call Upgrade"):
        upgrade(nobody)


def test_two_at_a_time(bus: buses.Daemon, tmp_path: Path) -> None:
    one, two = joined(bus.address), joined(bus.address)
    go = tmp_path / "go"
    slow = a_build(tmp_path, f"while not os.path.exists({str(go)!r}): time.sleep(0.01)")
    first = one.driver(b"Upgrade", "s", slow, interface=b"org.jitney.Upgrade1")
    settled(one)
    with pytest.raises(NotUpgraded, match="under way already"):
        upgrade(two)
    go.touch()
    assert one.reply_to(first, 30).type == wire.RETURN
    upgrade(two)


def test_metrics_go_on(tmp_path: Path) -> None:
    place = tmp_path / "metrics"
    command = [*buses.jitney_command(), f"--metrics=unix:{place}"]
    with buses.running(command) as bus:
        one = joined(bus.address)
        for _ in range(2):
            upgrade(one)
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(30)
            sock.connect(str(place))
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            got = b""
            while data := sock.recv(65536):
                got += data
            assert b"jitney" in got
            sock.close()
    assert not place.exists()


def test_counted_on(bus: buses.Daemon) -> None:
    one = joined(bus.address)
    for _ in range(10):
        one.reply_to(one.driver(b"GetId"))
    upgrade(one)
    status = one.reply_to(one.driver(b"GetPeer", "s", "", interface=b"org.jitney.Inspect1"))
    assert json.loads(status.body[0])["sent"][1] >= 12


def test_newcomers_wait_in_line(bus: buses.Daemon) -> None:
    one = joined(bus.address)
    serial = one.driver(b"Upgrade", "s", "", interface=b"org.jitney.Upgrade1")
    names = []
    while True:
        client = joined(bus.address)
        names.append(client.unique_name)
        client.close()
        one.sock.setblocking(False)
        try:
            if one.sock.recv(1, socket.MSG_PEEK):
                break
        except BlockingIOError:
            pass
    one.sock.settimeout(30)
    assert one.reply_to(serial).type == wire.RETURN
    names.append(joined(bus.address).unique_name)
    assert names == [f":1.{i + 1}" for i in range(len(names))]


def test_descriptors_half_way(bus: buses.Daemon) -> None:
    """They have come, and their message has not; they are of the reader that the old bus was."""
    one, two = joined(bus.address), joined(bus.address)
    inward, outward = os.pipe()
    data = message(5, two, 2)
    extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [outward, outward]))]
    one.sock.sendmsg([data[:1]], extra)
    os.close(outward)
    settled(two)
    upgrade(two)
    upgrade(two)
    one.send(data[1:])
    got = two.receive()
    assert got is not None
    for fd in got.fds:
        os.write(fd, b"x")
    assert os.read(inward, 10) == b"xx"
    got.close_fds()
    assert os.read(inward, 1) == b""
    os.close(inward)
