"""Weaknesses of other brokers that show on a running bus; see `test_table.py`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import buses
import pytest
from floods import flood
from rawclient import RawClient

from jitney.compat import wire

ERROR = "org.freedesktop.DBus.Error."
STATS = b"org.freedesktop.DBus.Debug.Stats"


def until_reply(client: RawClient, serial: int) -> list[str]:
    """Members and error names of all that comes up to the reply."""
    found = []
    while True:
        message = client.receive()
        assert message is not None
        message.close_fds()
        if message.reply_serial == serial:
            return found
        found.append(message.member or message.error_name or "")


@pytest.mark.weakness("CVE-2014-3477")
def test_refused_when_the_service_is_there() -> None:
    """Whether the message may pass is known only once it is seen who the service is."""
    extra = """<policy context="default"><deny send_destination="org.example.Private"/></policy>"""
    with buses.running(buses.jitney_command(), extra=extra) as bus:
        (bus.directory / "services" / "a.service").write_text(
            "[D-BUS Service]\nName=org.example.A\nExec=/bin/sleep 60\n"
        )
        with RawClient(bus.address) as caller, RawClient(bus.address) as service:
            caller.hello()
            service.hello()
            caller.reply_to(caller.driver(b"ReloadConfig"))
            serial = caller.message(
                destination=b"org.example.A", path=b"/", interface=b"a.b", member=b"Secret"
            )
            # Answered at once, so that the call above waits by now.
            caller.reply_to(caller.driver(b"GetId"))
            for name in ("org.example.Private", "org.example.A"):
                service.reply_to(service.driver(b"RequestName", "su", name, 0))
            reply = caller.reply_to(serial)
            assert reply.error_name == ERROR + "AccessDenied"
            came = until_reply(service, service.driver(b"GetId"))
            assert "Secret" not in came
            assert not [name for name in came if name.startswith(ERROR)]


@pytest.mark.weakness("CVE-2014-3638")
def test_many_calls_without_a_reply() -> None:
    extra = '<limit name="max_replies_per_connection">50000</limit>'
    with (
        buses.running(buses.jitney_command(), extra=extra) as bus,
        RawClient(bus.address, timeout=30) as caller,
        RawClient(bus.address) as service,
    ):
        caller.hello()
        service.hello()

        clock = ~bus.pid << 3 | 2  # the CPU time of the bus, whatever else the machine does

        def call_and_answer(count: int) -> float:
            start = time.clock_gettime(clock)
            for _ in range(count):
                serial = caller.message(
                    destination=service.unique_name.encode(), path=b"/", interface=b"a.b",
                    member=b"Answered",
                )  # fmt: skip
                while (message := service.receive()) is not None:
                    if message.member == "Answered":
                        break
                service.message(
                    wire.RETURN, destination=caller.unique_name.encode(), reply_serial=serial
                )
                caller.reply_to(serial)
            return time.clock_gettime(clock) - start

        call_and_answer(50)
        few = min(call_and_answer(100) for _ in range(3))
        # Nobody answers these.
        for _ in range(10):
            for _ in range(1000):
                caller.message(
                    destination=service.unique_name.encode(), path=b"/", interface=b"a.b",
                    member=b"Ignored",
                )  # fmt: skip
            for _ in range(1000):
                assert service.receive() is not None
        many = min(call_and_answer(100) for _ in range(3))
        assert many < few * 5


@pytest.mark.weakness("CVE-2020-12049")
def test_more_descriptors_than_the_bus_reads(daemon: buses.Daemon) -> None:
    """The fixture counts those that the daemon holds before and after."""
    with RawClient(daemon.address) as witness:
        witness.hello()
        fd = os.open("/dev/null", os.O_RDONLY)
        for _ in range(10):
            with RawClient(daemon.address) as client:
                client.hello()
                client.send(b"l\1\0\1", [fd] * 253)
                client.send(b"l\1\0\1", [fd] * 253)
                while client.receive() is not None:
                    pass
        os.close(fd)
        assert witness.reply_to(witness.driver(b"GetId")).signature == "s"


@pytest.mark.weakness("CVE-2023-34969")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_a_refused_reply_of_the_bus_under_a_monitor() -> None:
    """The bus's answer may not reach its receiver, and there is nobody to send an error to."""
    extra = """<policy user="nobody"><deny receive_sender="org.freedesktop.DBus"
    receive_type="error" receive_requested_reply="true"/></policy>"""
    with (
        buses.running(buses.jitney_command(), extra=extra) as bus,
        RawClient(bus.address) as monitor,
        RawClient(bus.address, uid=65534) as client,
    ):
        monitor.hello()
        client.hello()
        monitor.reply_to(
            monitor.driver(
                b"BecomeMonitor", "asu", [], 0, interface=b"org.freedesktop.DBus.Monitoring"
            )
        )
        client.driver(b"NoSuchMethod")
        assert client.reply_to(client.driver(b"GetId")).signature == "s"
        seen = []
        while "GetId" not in seen:
            message = monitor.receive()
            assert message is not None
            seen.append(message.member or message.error_name or "")
        assert ERROR + "UnknownMethod" in seen
        assert ERROR + "AccessDenied" in seen


@pytest.mark.weakness("dbus-broker#260")
def test_the_same_monitor_filter_twice(daemon: buses.Daemon) -> None:
    rule = "type='signal',member='Twice'"
    with RawClient(daemon.address) as monitor, RawClient(daemon.address) as sender:
        monitor.hello()
        sender.hello()
        monitor.reply_to(
            monitor.driver(
                b"BecomeMonitor", "asu", [rule, rule], 0,
                interface=b"org.freedesktop.DBus.Monitoring",
            )
        )  # fmt: skip
        for member in (b"Twice", b"Twice"):
            sender.message(4, destination=None, path=b"/", interface=b"a.b", member=member)
        seen = []
        while len(seen) < 2:
            message = monitor.receive()
            assert message is not None
            if message.member == "Twice":
                seen.append(message.serial)
        assert len(set(seen)) == 2
        monitor.close()
        assert sender.reply_to(sender.driver(b"GetId")).signature == "s"
    # As ordinary rules: each goes with the removal that is its own, and a third is one too many.
    with RawClient(daemon.address) as client:
        client.hello()
        for method in (b"AddMatch", b"AddMatch", b"RemoveMatch", b"RemoveMatch"):
            assert not client.reply_to(client.driver(method, "s", rule)).error_name
        reply = client.reply_to(client.driver(b"RemoveMatch", "s", rule))
        assert reply.error_name == ERROR + "MatchRuleNotFound"


@pytest.mark.weakness("dbus-broker#354")
def test_descriptors_of_the_bus_for_a_slow_receiver(daemon: buses.Daemon) -> None:
    """Credentials come with a process descriptor where the kernel has them; those that wait in a
    queue are open until they are sent, and closed once. The fixture counts them."""
    with RawClient(daemon.address) as slow, RawClient(daemon.address) as other:
        slow.hello()
        other.hello()
        flood(other, slow.unique_name, 10)  # more than its socket holds
        assert other.reply_to(other.driver(b"GetId")).signature == "s"
        serials = [
            slow.driver(b"GetConnectionCredentials", "s", slow.unique_name) for _ in range(30)
        ]
        assert other.reply_to(other.driver(b"GetId")).signature == "s"
        for serial in serials[:15]:
            reply = slow.reply_to(serial)
            assert reply.n_fds == len(reply.fds)
            for fd in reply.fds:
                assert "pidfd" in os.readlink(f"/proc/self/fd/{fd}")
            reply.close_fds()
        # The rest goes with its receiver.


@pytest.mark.weakness("dbus#343")
def test_a_reload_when_a_user_has_vanished(tmp_path: Path) -> None:
    """Rules about a user whom nobody knows any more, at the time of a reload."""
    with buses.running(buses.jitney_command()) as bus, RawClient(bus.address) as client:
        client.hello()
        file = bus.directory / "bus.conf"
        plain = file.read_text()
        for policy in (
            '<policy user="no-such-user"><deny send_interface="a.b"/><allow own="x.y"/></policy>',
            '<policy group="no-such-group"><deny own="a.b"/></policy>',
            '<policy user="4294967294"><deny own="a.b"/></policy>',
        ):
            file.write_text(plain.replace("</busconfig>", policy + "</busconfig>"))
            assert not client.reply_to(client.driver(b"ReloadConfig")).error_name
            with RawClient(bus.address) as newcomer:
                newcomer.hello()


@pytest.mark.weakness("dbus#481")
def test_two_hundred_watched_directories(tmp_path: Path) -> None:
    folders = [tmp_path / f"services{i}" for i in range(200)]
    for folder in folders:
        folder.mkdir()
    os.chmod(tmp_path, 0o755)
    extra = "".join(f"<servicedir>{folder}</servicedir>" for folder in folders)
    with buses.running(buses.jitney_command(), extra=extra) as bus, RawClient(bus.address) as a:
        a.hello()
        a.reply_to(a.driver(b"AddMatch", "s", "member='ActivatableServicesChanged'"))
        (folders[-1] / "x.service").write_text(
            "[D-BUS Service]\nName=org.example.X\nExec=/bin/true\n"
        )
        while (message := a.receive()) is not None:
            if message.member == "ActivatableServicesChanged":
                break
        names = a.reply_to(a.driver(b"ListActivatableNames")).body[0]
        assert "org.example.X" in names
        assert not a.reply_to(a.driver(b"ReloadConfig")).error_name
