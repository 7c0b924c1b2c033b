"""Activation by systemd, which a client plays here, on a running bus.

Every test holds on dbus-daemon as well.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from activation.living import NAME, Living, call, outcome
from rawclient import RawClient

from jitney.compat import wire

Start = Callable[..., Living]
SYSTEMD = "org.freedesktop.systemd1"
UNIT = "jitney-test.service"
FAILURE = ("org.example.Unit.Failed", "the unit did not like it")


@pytest.fixture
def bus(start: Start) -> Living:
    """A bus on which NAME belongs to a unit, and would fail if it were started directly."""
    return with_unit(start)


def with_unit(start: Start, timeout: int = 20000) -> Living:
    bus = start("", "--systemd-activation", timeout=timeout)
    bus.file(NAME, "/bin/false", f"SystemdService={UNIT}")
    return bus


def systemd(bus: Living) -> RawClient:
    """Not waiting for the answer: what was kept for it comes before that."""
    client = bus.client()
    client.driver(b"RequestName", "su", SYSTEMD, 4)
    return client


def fail(client: RawClient, unit: str = UNIT) -> None:
    client.message(
        wire.SIGNAL,
        path=b"/org/freedesktop/systemd1",
        interface=b"org.freedesktop.systemd1.Activator",
        member=b"ActivationFailure",
        signature="sss",
        values=(unit, *FAILURE),
    )


def test_request_and_success(bus: Living) -> None:
    manager = systemd(bus)
    first, second = bus.client(), bus.client()
    asked = first.driver(b"StartServiceByName", "su", NAME, 0)
    request = manager.next_with("ActivationRequest")
    assert (request.type, request.sender, request.destination) == (
        wire.SIGNAL, "org.freedesktop.DBus", SYSTEMD
    )  # fmt: skip
    assert (request.path, request.interface) == (
        "/org/freedesktop/DBus", "org.freedesktop.systemd1.Activator"
    )  # fmt: skip
    assert (request.signature, request.body) == ("s", [UNIT])
    # A second caller makes no second request.
    sent = call(second, b"Echo", "x")
    second.reply_to(second.driver(b"GetId"))
    service = bus.client()
    service.driver(b"RequestName", "su", NAME, 4)
    echo = service.next_with("Echo")
    assert (echo.sender, echo.serial, echo.body) == (second.unique_name, sent, ["x"])
    assert first.reply_to(asked).body == [1]
    manager.driver(b"GetId", serial=77)
    message = manager.receive()
    assert message is not None
    assert message.reply_serial == 77


def test_systemd_comes_later(bus: Living) -> None:
    """What is for systemd waits for it, as for any service, in order."""
    client = bus.client()
    sent = call(client)
    other = bus.client()
    update = other.driver(b"UpdateActivationEnvironment", "a{ss}", {"JITNEY_TEST": "1 2"})
    assert other.reply_to(update).type == wire.RETURN
    manager = systemd(bus)
    assert manager.next_with("ActivationRequest").body == [UNIT]
    environment = manager.next_with("SetEnvironment")
    assert environment.body == [["JITNEY_TEST=1 2"]]
    fail(manager)
    assert outcome(client.reply_to(sent)) == FAILURE


def test_systemd_never_comes(start: Start) -> None:
    bus = with_unit(start, timeout=1500)
    client = bus.client()
    kind, text = outcome(client.reply_to(call(client)))
    assert kind == "TimedOut"
    assert f"'{NAME}': timed out (service_start_timeout=1500ms)" in text


def test_failure_is_told_to_all(bus: Living) -> None:
    manager = systemd(bus)
    callers = [bus.client() for _ in range(5)]
    serials = [call(client) for client in callers]
    manager.next_with("ActivationRequest")
    callers[-1].reply_to(callers[-1].driver(b"GetId"))
    fail(manager, "another.service")
    fail(manager)
    for client, serial in zip(callers, serials, strict=True):
        assert outcome(client.reply_to(serial)) == FAILURE
    # The next one is a new request.
    call(callers[0])
    assert manager.next_with("ActivationRequest").body == [UNIT]


def test_forged_failure(bus: Living) -> None:
    """Said by anybody but systemd it is ignored, and systemd does not hear of it."""
    manager = systemd(bus)
    client, liar = bus.client(), bus.client()
    sent = call(client)
    manager.next_with("ActivationRequest")
    fail(liar)
    liar.reply_to(liar.driver(b"GetId"))
    assert (
        f"Ignoring forged ActivationFailure message from connection {liar.unique_name}" in bus.log
    )
    service = bus.client()
    service.driver(b"RequestName", "su", NAME, 4)
    echo = service.next_with("Echo")
    service.message(wire.RETURN, destination=(echo.sender or "").encode(), reply_serial=echo.serial)
    assert client.reply_to(sent).type == wire.RETURN


def test_without_a_unit_it_is_started_directly(bus: Living) -> None:
    systemd(bus)
    bus.odd("claim", name="jitney.test.Direct")
    client = bus.client()
    assert outcome(client.reply_to(call(client, b"Echo", "d", to="jitney.test.Direct"))) == ("d",)


def test_unit_counts_for_nothing_without_the_option(start: Start) -> None:
    bus = start()
    bus.file(NAME, "/bin/sh -c 'exit 15'", f"SystemdService={UNIT}")
    systemd(bus)
    client = bus.client()
    expected = ("Spawn.ChildExited", f"Process {NAME} exited with status 15")
    assert outcome(client.reply_to(call(client))) == expected
