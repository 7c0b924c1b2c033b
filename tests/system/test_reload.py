"""Reloading: the same things done to dbus-daemon and to jitney-daemon, with the same outcome.

Each change is made to the files of a running bus and asked for by SIGHUP, by ReloadConfig, or by
nobody: then it is the watched directory that makes it known.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import buses
import pytest
from rawclient import RawClient, Received

from jitney.compat import wire

DENIED = "org.freedesktop.DBus.Error.AccessDenied"
LIMIT = "org.freedesktop.DBus.Error.LimitsExceeded"

CONFIG = """<busconfig>
  <type>session</type>
  <listen>unix:path={directory}/bus</listen>
  <servicedir>{directory}/services</servicedir>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
  <includedir>{directory}/more</includedir>
  {extra}
</busconfig>
"""
DENY = '<policy context="mandatory"><deny send_interface="a.b" send_member="Forbidden"/></policy>'
MORE = "<busconfig>{}</busconfig>"
SERVICE = "[D-BUS Service]\nName={}\nExec=/bin/false\n"


@pytest.fixture(params=["dbus-daemon", "jitney"])
def bus(request: pytest.FixtureRequest) -> Iterator[buses.Daemon]:
    command = buses.jitney_command()
    if request.param == "dbus-daemon":
        if buses.REFERENCE is None:
            pytest.skip("no dbus-daemon to compare with")
        command = [buses.REFERENCE]
    with buses.running(command, config=CONFIG) as running:
        # Not there when it started: what is watched from now on was found by a reload.
        (running.directory / "more").mkdir()
        with RawClient(running.address) as client:
            client.hello()
            assert not call(client, b"ReloadConfig").error_name
        yield running


@pytest.fixture
def client(bus: buses.Daemon) -> Iterator[RawClient]:
    """Somebody who was there before anything changed."""
    with RawClient(bus.address) as client:
        client.hello()
        yield client


def is_jitney(bus: buses.Daemon) -> bool:
    return b"dbus-daemon" not in Path(f"/proc/{bus.pid}/cmdline").read_bytes().split(b"\0")[0]


def call(client: RawClient, member: bytes, signature: str = "", *values: object) -> Received:
    return client.reply_to(client.driver(member, signature, *values))


def forbidden(client: RawClient) -> bool:
    """Whether the policy in force denies a certain call of this client to itself."""
    client.message(
        destination=client.unique_name.encode(), path=b"/", interface=b"a.b", member=b"Forbidden"
    )
    while True:
        message = client.receive()
        assert message is not None
        if message.member == "Forbidden":
            # Calls that wait for an answer are limited, and changes may take their time.
            client.message(
                wire.RETURN, destination=client.unique_name.encode(), reply_serial=message.serial
            )
            return False
        if message.error_name == DENIED:
            return True


def wait_until(client: RawClient, expected: bool) -> None:
    """Until the policy is the expected one, or the test's time is over."""
    while forbidden(client) != expected:
        time.sleep(0.01)


def main_file(bus: buses.Daemon, extra: str) -> None:
    file = bus.directory / "bus.conf"
    file.write_text(CONFIG.format(directory=bus.directory, extra=extra))


def log(bus: buses.Daemon, text: str) -> str:
    """The log, once a text is in it, or the test's time is over."""
    while text not in (found := (bus.directory / "log").read_text()):
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("how", ["SIGHUP", "ReloadConfig"])
def test_policy_and_limits_for_who_is_there(bus: buses.Daemon, client: RawClient, how: str) -> None:
    with RawClient(bus.address) as other:
        other.hello()
        assert not forbidden(other)
        for number in range(3):
            assert not call(other, b"AddMatch", "s", f"member='M{number}'").error_name
        main_file(bus, DENY + '<limit name="max_match_rules_per_connection">2</limit>')
        if how == "SIGHUP":
            os.kill(bus.pid, signal.SIGHUP)
            wait_until(client, True)
        else:
            assert not call(client, b"ReloadConfig").error_name
        # In one step: who sees one half of it sees the other.
        assert forbidden(other)
        assert call(other, b"AddMatch", "s", "member='M4'").error_name == LIMIT
        assert call(client, b"AddMatch", "s", "member='M4'").error_name is None
        main_file(bus, "")
        assert not call(other, b"ReloadConfig").error_name
        assert not forbidden(other)
        assert not forbidden(client)
        assert call(other, b"AddMatch", "s", "member='M4'").error_name is None


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (DENY + "<nonsense/>", "Element <nonsense> not allowed inside <busconfig>"),
        (DENY + '<limit name="max_names_per_connection">many</limit>', "max_names_per_connection"),
        (DENY + '<include ignore_missing="no">/nonexistent.conf</include>', "/nonexistent.conf"),
        (DENY + "<policy", ""),
    ],
)
def test_broken_main_file(bus: buses.Daemon, client: RawClient, broken: str, reason: str) -> None:
    main_file(bus, broken)
    reply = call(client, b"ReloadConfig")
    name = "FileNotFound" if "nonexistent" in broken else "Failed"
    assert reply.error_name == f"org.freedesktop.DBus.Error.{name}"
    text = reply.body[0]
    assert reason in text
    assert f"Unable to reload configuration: {text}" in log(bus, text)
    if is_jitney(bus):
        assert re.search(rf"{bus.directory}/bus\.conf(:9\b|, line 10)", text)
    assert not forbidden(client)
    before = log(bus, "").count("Unable to reload")
    os.kill(bus.pid, signal.SIGHUP)
    while log(bus, "").count("Unable to reload") == before:
        time.sleep(0.01)
    assert not forbidden(client)
    main_file(bus, DENY)
    assert not call(client, b"ReloadConfig").error_name
    assert forbidden(client)


def test_included_directory(bus: buses.Daemon, client: RawClient) -> None:
    """Noticed when a file comes, goes, is renamed; a broken one is left out, with a warning."""
    folder = bus.directory / "more"
    (folder / "a.conf").write_text(MORE.format(DENY))
    wait_until(client, True)
    (folder / "a.conf").rename(folder / "a.disabled")
    wait_until(client, False)
    # Written elsewhere and moved into place, as package managers do it.
    (bus.directory / "broken").write_text(MORE.format("<nonsense/>"))
    (bus.directory / "broken").rename(folder / "broken.conf")
    log(bus, "Encountered error")
    (folder / "b.conf").write_text(MORE.format(DENY))
    wait_until(client, True)
    assert not call(client, b"ReloadConfig").error_name
    assert forbidden(client)
    (folder / "b.conf").unlink()
    wait_until(client, False)
    if is_jitney(bus):
        assert f"({folder}/broken.conf:1)" in log(bus, "")


def test_service_directory(bus: buses.Daemon, client: RawClient) -> None:
    call(client, b"AddMatch", "s", "member='ActivatableServicesChanged'")
    file = bus.directory / "services/org.example.New.service"

    def changed() -> None:
        while True:
            message = client.receive()
            assert message is not None
            if message.member == "ActivatableServicesChanged":
                return

    def listed() -> bool:
        return "org.example.New" in call(client, b"ListActivatableNames").body[0]

    assert not listed()
    file.write_text(SERVICE.format("org.example.New"))
    changed()
    while not listed():
        changed()
    file.write_text("nonsense\n")
    while listed():
        changed()
    # The rest of the configuration was read again as well, and is as it was.
    assert not forbidden(client)
