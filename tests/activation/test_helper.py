"""Services of a system bus, started by the installed set-uid helper; the same on dbus-daemon.

The helper reads /usr/share/dbus-1/system.conf itself and only obeys the user named there.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from activation.living import NAME, ODD, call, outcome
from activation.systembus import SystemBus, commands, impossible, system_bus

from jitney.compat import wire

WHY_NOT = impossible()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")


# The policy of the machine forbids it before the bus would.
ENVIRONMENT = """
  <policy user="root">
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"
           send_member="UpdateActivationEnvironment"/>
  </policy>"""


@pytest.fixture(scope="module", params=commands(), ids=lambda param: param[0])
def bus(request: pytest.FixtureRequest) -> Iterator[SystemBus]:
    with system_bus(request.param[1], ENVIRONMENT) as started:
        yield started


def test_runs_as_messagebus(bus: SystemBus) -> None:
    assert Path(f"/proc/{bus.pid}").owner() == "messagebus"


@pytest.mark.parametrize(
    ("name", "exec", "user", "called", "expected"),
    [
        # The exit status of the service is that of the helper, whatever it means there.
        ("exit", "/bin/sh -c 'exit 42'", "root", "", (
            "Spawn.ChildExited", "Launch helper exited with unknown return code 42")),
        ("who", "/bin/sh -c 'test $(id -un):$(id -Gn) = nobody:nogroup && exit 43'", "nobody", "", (
            "Spawn.ChildExited", "Launch helper exited with unknown return code 43")),
        ("signal", "/bin/sh -c 'kill -SEGV $$'", "root", "", (
            "Spawn.ChildSignaled", "Process {name} received signal 11")),
        ("exec", "/no/such/program", "root", "", (
            "Spawn.ExecFailed", "Cannot launch daemon, file not found or permissions invalid")),
        ("user", "/bin/true", "no-such-user", "", (
            "Spawn.FailedToSetup", "Failed to setup environment correctly")),
        ("nouser", "/bin/true", "", "", (
            "Spawn.FileInvalid", "Cannot do system-bus activation with no user\n")),
        ("misnamed", "/bin/true", "root", "other", (
            "Spawn.ServiceNotFound", "Bus name not found in system service directory")),
        ("quotes", "/bin/sh -c 'open", "root", "", (
            "InvalidArgs", "Invalid arguments to command line")),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalnum() else "",
)  # fmt: skip
def test_failure(
    bus: SystemBus, name: str, exec: str, user: str, called: str, expected: tuple[str, str]
) -> None:
    full = f"jitney.test.{name.capitalize()}"
    lines = [f"User={user}"] if user else []
    bus.file(full, exec, *lines, called=called and f"jitney.test.{called.capitalize()}")
    with bus.client() as client:
        got = outcome(client.reply_to(call(client, to=full)))
    assert got == (expected[0], expected[1].format(name=full))


def test_success(bus: SystemBus) -> None:
    """Messages wait; the service has another user, a clean environment and the bus's address."""
    folder = str(Path(__file__).resolve().parent.parent)
    # The environment does not come through: what Python needs has to be on the command line.
    path = ":".join([folder, os.environ.get("PYTHONPATH", "")])
    command = ["/usr/bin/env", f"PYTHONPATH={path}", sys.executable, str(ODD), NAME, "claim"]
    bus.file(NAME, shlex.join(command), "User=root")
    with bus.client() as client:
        asked = client.driver(b"StartServiceByName", "su", NAME, 0)
        sent = call(client, b"Env")
        assert client.reply_to(asked).body == [1]
        found = client.reply_to(sent).body[0]
        shown = {key for key in found if key.startswith("DBUS_")}
        assert shown == {"DBUS_STARTER_ADDRESS", "DBUS_STARTER_BUS_TYPE"}
        assert found["DBUS_STARTER_ADDRESS"].startswith("unix:path=/run/dbus/system_bus_socket")
        assert found["DBUS_STARTER_BUS_TYPE"] == "system"
        assert "HOME" not in found


def test_environment_cannot_be_changed(bus: SystemBus) -> None:
    with bus.client() as client:
        serial = client.driver(b"UpdateActivationEnvironment", "a{ss}", {"A": "b"})
        reply = client.reply_to(serial)
        assert reply.type == wire.ERROR
        expected = ("AccessDenied", "Cannot change activation environment on a system bus.")
        assert outcome(reply) == expected
