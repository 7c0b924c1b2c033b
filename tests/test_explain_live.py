"""A running bus explains the policy that it has, about those who are on it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import buses
import pytest
from rawclient import RawClient, connected

from jitney.compat import explain

POLICY = b"org.jitney.Policy1"
NOBODY = 65534
EXTRA = """<policy context="default">
  <deny send_destination="com.example.A" send_member="Off" send_interface="com.example.I"/>
  <deny receive_sender="com.example.A" receive_type="signal"/>
</policy>
<policy user="0"><deny own="com.example.Own"/></policy>"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="some clients have to be other users")


@pytest.fixture
def bus() -> Iterator[buses.Daemon]:
    with buses.running(buses.jitney_command(), extra=EXTRA) as running:
        yield running


def variants(about: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    kinds = {bool: "b", int: "u", str: "s"}
    return {key: (kinds[type(value)], value) for key, value in about.items()}


def ask(client: RawClient, **about: Any) -> Any:
    """The account, or the error's name and text."""
    reply = client.reply_to(client.driver(b"Explain", "a{sv}", variants(about), interface=POLICY))
    if reply.error_name:
        return reply.error_name.rpartition(".")[2], reply.body[0]
    return json.loads(reply.body[0])


def call(member: str) -> dict[str, str]:
    return {"interface": "com.example.I", "member": member}


def test_a_call(bus: buses.Daemon) -> None:
    with (
        connected(bus.address, "com.example.A") as service,
        connected(bus.address, "com.example.A") as queued,
    ):
        found = ask(queued, destination="com.example.A", **call("Off"))
        assert not found["allowed"]
        decider = found["send"]["decided_by"]
        assert decider["rule"] == (
            '<deny send_destination="com.example.A" send_interface="com.example.I"'
            ' send_member="Off"/>'
        )
        assert decider["file"] == f"{bus.directory}/bus.conf"
        assert found["receiver"]["unique_name"] == service.unique_name
        assert found["receiver"]["names"] == ["com.example.A"]
        assert found["receive"]["allowed"]
        # What it says is what happens.
        serial = queued.message(destination=b"com.example.A", path=b"/", interface=b"com.example.I",
                                member=b"Off")  # fmt: skip
        assert "AccessDenied" in (queued.reply_to(serial).error_name or "")
        assert ask(service, destination="com.example.A", **call("On"))["allowed"]
        # Whoever waits for the name is meant by the rule, too, by whatever name he is called.
        found = ask(service, receiver=queued.unique_name, **call("Off"))
        assert found["message"]["destination"] == queued.unique_name
        assert not found["allowed"]


def test_a_broadcast_and_an_eavesdropper(bus: buses.Daemon) -> None:
    with connected(bus.address, "com.example.A") as service, connected(bus.address) as other:
        signal = {"type": "signal", **call("S")}
        found = ask(other, sender="com.example.A", receiver=other.unique_name, **signal)
        assert found["send"]["allowed"]
        assert not found["receive"]["allowed"]
        assert found["receive"]["remedy"]["rule"] == (
            '<allow receive_sender="com.example.A" receive_type="signal"'
            ' receive_interface="com.example.I" receive_member="S"/>'
        )
        assert ask(other, receiver=service.unique_name, **signal)["allowed"]
        heard = ask(
            other, receiver=other.unique_name, destination="com.example.A", eavesdrop=True,
            **call("On"),
        )  # fmt: skip
        assert heard["allowed"]
        assert heard["receiver"]["unique_name"] == other.unique_name


def test_owning_and_connecting(bus: buses.Daemon) -> None:
    with connected(bus.address) as client:
        found = ask(client, own="com.example.Own")
        assert found["allowed"] == (os.geteuid() != 0)
        assert ask(client, own="com.example.Other")["allowed"]
        assert ask(client, connect=os.getuid())["allowed"]


def test_nobody_is_there(bus: buses.Daemon) -> None:
    with connected(bus.address) as client:
        found = ask(client, destination="com.example.A", **call("Off"))
        assert not found["allowed"]
        assert found["receive"] is None
        assert found["notes"][0].startswith("nobody owns com.example.A now")


@pytest.mark.parametrize(
    ("about", "error"),
    [
        ({"nonsense": "x"}, "InvalidArgs"),
        ({"fds": "x"}, "InvalidArgs"),
        ({"destination": "no name"}, "InvalidArgs"),
        ({"type": "signal", "interface": "a.b"}, "InvalidArgs"),
        ({"destination": "a.b", "receiver": "org.freedesktop.DBus"}, "InvalidArgs"),
        ({"destination": "a.b", "eavesdrop": True}, "InvalidArgs"),
        ({"own": "no name"}, "InvalidArgs"),
        ({"own": "a.b", "sender": "org.freedesktop.DBus"}, "InvalidArgs"),
        ({"sender": ":1.999"}, "NameHasNoOwner"),
        ({"receiver": ""}, "NameHasNoOwner"),
    ],
)
def test_bad_questions(bus: buses.Daemon, about: dict[str, Any], error: str) -> None:
    with connected(bus.address) as client:
        assert ask(client, **about)[0] == error
        # Nothing of it leaves a mark.
        assert ask(client, own="com.example.Other")["allowed"]


@needs_root
def test_who_may_ask(bus: buses.Daemon) -> None:
    with connected(bus.address) as root, connected(bus.address, uid=NOBODY) as nobody:
        about = {"destination": root.unique_name, **call("On")}
        assert ask(nobody, **about)[0] == "AccessDenied"
        assert ask(nobody, sender=nobody.unique_name, **about)[0] == "AccessDenied"
        assert ask(nobody, connect=NOBODY)[0] == "AccessDenied"
        assert ask(root, sender=nobody.unique_name, **about)["sender"]["uid"] == NOBODY
        assert ask(root, connect=NOBODY)["allowed"]
        assert ask(root, sender=nobody.unique_name, own="com.example.Own")["allowed"]


def test_the_policy_in_force_is_not_the_file(bus: buses.Daemon) -> None:
    file: Path = bus.directory / "bus.conf"
    words = ["--destination", "com.example.A", "--interface", "com.example.I", "--member", "Off"]
    with connected(bus.address, "com.example.A") as client:
        file.write_text(file.read_text().replace('send_member="Off"', 'send_member="Other"'))
        assert explain.main(["--config", str(file), *words]) == 0
        assert explain.main(["--address", bus.address, *words]) == 1
        client.reply_to(client.driver(b"ReloadConfig"))
        assert explain.main(["--address", bus.address, *words]) == 0


def test_the_command(bus: buses.Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    with connected(bus.address, "com.example.A") as client:
        words = ["--address", bus.address, "--sender", client.unique_name]
        about = ["--receiver", client.unique_name, "--interface", "com.example.I"]
        assert explain.main([*words, *about, "--member", "Off"]) == 1
        shown = capsys.readouterr().out.splitlines()
        assert shown[0] == f"denied: method_call com.example.I.Off to {client.unique_name}"
        assert f"({client.unique_name}, com.example.A) may not send it" in shown[2]
        assert shown[3].startswith(f"  {bus.directory}/bus.conf:")
        assert explain.main([*words, "--own", "a.b"]) == 0
        assert explain.main([*words, "--connect"]) == 0
        assert explain.main([*words, "--destination", "no name"]) == 2


@pytest.mark.skipif(buses.REFERENCE is None, reason="no dbus-daemon here")
def test_a_bus_that_is_no_jitney(capsys: pytest.CaptureFixture[str]) -> None:
    assert buses.REFERENCE is not None
    with buses.running([buses.REFERENCE]) as other:
        assert explain.main(["--address", other.address, "--own", "a.b"]) == 2
    assert "no jitney" in capsys.readouterr().err


def test_a_bus_that_lets_nobody_ask(capsys: pytest.CaptureFixture[str]) -> None:
    extra = (
        '<policy context="default"><deny send_destination="org.freedesktop.DBus"'
        ' send_interface="org.jitney.Policy1"/></policy>'
    )
    with buses.running(buses.jitney_command(), extra=extra) as bus:
        assert explain.main(["--address", bus.address, "--own", "a.b"]) == 2
    assert 'send_interface="org.jitney.Policy1"' in capsys.readouterr().err


def test_a_line_of_the_log(bus: buses.Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Why was this refused: the line says all that there is to ask, of the bus or of its files."""
    file = f"{bus.directory}/bus.conf"
    with connected(bus.address, "com.example.A") as service, connected(bus.address) as client:
        serial = client.message(destination=b"com.example.A", path=b"/", interface=b"com.example.I",
                                member=b"Off")  # fmt: skip
        error = client.reply_to(serial).body[0]
        client.reply_to(client.driver(b"RequestName", "su", "com.example.Own", 0))
        lines = (bus.directory / "log").read_text().splitlines()
        refused = next(line for line in lines if "Rejected send message" in line)
        not_owned = next(line for line in lines if "com.example.Own" in line)
        where = refused.rpartition("(rule: ")[2].removesuffix(")")
        assert where.startswith(file)
        for source in (["--address", bus.address], ["--config", file]):
            for line in (refused, error):
                assert explain.main([*source, "--refusal", line]) == 1
                said = capsys.readouterr().out
                assert where in said
                assert "com.example.I.Off" in said
        assert explain.main(["--address", bus.address, "--refusal", not_owned]) == 1
        assert not_owned.rpartition("(rule: ")[2].removesuffix(")") in capsys.readouterr().out
        # What the command line says goes before what the line says.
        words = ["--config", file, "--refusal", refused, "--member", "On"]
        assert explain.main(words) == 0
        capsys.readouterr()
        service.reply_to(service.driver(b"GetId"))
    with pytest.raises(SystemExit) as status:
        explain.main(["--config", file, "--refusal", "all is well"])
    assert status.value.code == 2
