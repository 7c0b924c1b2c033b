"""A refusal: dbus-daemon's words for the peer, and for the log the rule behind it as well."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator

import buses
import pytest
from rawclient import RawClient

CONFIG = """<busconfig>
  <type>{type}</type>
  <listen>unix:path={directory}/bus</listen>
  <policy context="default">
    <allow user="*"/>
    <deny user="daemon"/>
    <allow own="com.example.Fine"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <deny send_interface="com.example.Secret"/>
    <allow send_interface="com.example.Secret" send_member="Known" log="true"/>
    <deny receive_interface="com.example.Unheard"/>
  </policy>
</busconfig>
"""
DENIED = "org.freedesktop.DBus.Error.AccessDenied"


def line_of(text: str) -> int:
    """The line of CONFIG with this text; 0 for none."""
    lines = CONFIG.splitlines()
    return next((i for i, line in enumerate(lines, 1) if text in line), 0)


@pytest.fixture
def bus() -> Iterator[buses.Daemon]:
    with buses.running(buses.jitney_command(), config=CONFIG) as daemon:
        yield daemon


def logged(bus: buses.Daemon, start: str) -> str:
    """The last line of the log with this in it."""
    lines = (bus.directory / "log").read_text().splitlines()
    return [line for line in lines if start in line][-1]


def call(client: RawClient, dest: str, interface: bytes, member: bytes = b"Any") -> tuple[str, str]:
    """Error name and text of what the call brings back; empty if it is no error of the bus."""
    serial = client.message(
        destination=dest.encode(), path=b"/", interface=interface, member=member
    )
    reply = client.reply_to(serial)
    return (reply.error_name or "", str(reply.body[0]) if reply.body else "")


def test_where_the_rule_stands(bus: buses.Daemon) -> None:
    file = bus.directory / "bus.conf"
    with RawClient(bus.address) as a, RawClient(bus.address) as b:
        a.hello()
        b.hello()
        error, text = call(a, b.unique_name, b"com.example.Secret")
        assert error == DENIED
        assert text.startswith("Rejected send message, 2 matched rules; ")
        assert str(file) not in text
        found = logged(bus, "Rejected send message")
        line = line_of("<deny send_interface")
        assert found.endswith(f"{text} (rule: {file}:{line})")

        error, text = call(a, b.unique_name, b"com.example.Unheard")
        assert error == DENIED
        assert text.startswith("Rejected receive message, 2 matched rules; ")
        line = line_of("<deny receive_interface")
        assert logged(bus, "Rejected receive").endswith(f"{text} (rule: {file}:{line})")


def test_a_rule_that_allows_and_logs(bus: buses.Daemon) -> None:
    with RawClient(bus.address) as a, RawClient(bus.address) as b:
        a.hello()
        b.hello()
        a.message(
            destination=b.unique_name.encode(), path=b"/", interface=b"com.example.Secret",
            member=b"Known", flags=1,
        )  # fmt: skip
        while (message := b.receive()) is not None and message.member != "Known":
            pass
        line = line_of("log=")
        found = logged(bus, "Would reject message")
        assert found.endswith(f"(rule: {bus.directory / 'bus.conf'}:{line})")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
def test_who_may_not_connect(bus: buses.Daemon) -> None:
    uid = pwd.getpwnam("daemon").pw_uid
    with RawClient(bus.address, uid=uid) as client:
        assert client.receive() is None
    line = line_of("<deny user")
    found = logged(bus, f"Rejected connection of user {uid}")
    assert found.endswith(f"(rule: {bus.directory / 'bus.conf'}:{line})")


def test_a_name_that_nobody_may_own(bus: buses.Daemon) -> None:
    with RawClient(bus.address) as a:
        a.hello()
        reply = a.reply_to(a.driver(b"RequestName", "su", b"com.example.Other", 0))
        assert reply.error_name == DENIED
        assert logged(bus, "is not allowed to own").endswith(f"{reply.body[0]} (no rule allows it)")
        assert a.reply_to(a.driver(b"RequestName", "su", b"com.example.Fine", 0)).body == [1]
