"""What a directly started service finds around it, and where service files are looked for.

Every test holds on dbus-daemon as well.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from activation.living import NAME, ODD, Living, call, outcome
from rawclient import RawClient
from waiting import until

from jitney.compat import wire

Start = Callable[..., Living]


def environment(client: RawClient, to: str = NAME) -> dict[str, str]:
    found: dict[str, str] = client.reply_to(call(client, b"Env", to=to)).body[0]
    return found


# ---- environment


@pytest.mark.parametrize("type", ["session", "system", "other"])
def test_environment(start: Start, type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS"):
        monkeypatch.setenv(name, "unix:path=/somewhere/else")
    monkeypatch.setenv("JITNEY_TEST_INHERITED", "as it was = all of it")
    bus = start(type=type)
    bus.odd("claim")
    found = environment(bus.client())
    assert found["DBUS_STARTER_ADDRESS"] == bus.daemon.address
    assert found["DBUS_STARTER_BUS_TYPE"] == type
    assert found["JITNEY_TEST_INHERITED"] == "as it was = all of it"
    for kind in ("session", "system"):
        expected = bus.daemon.address if kind == type else "unix:path=/somewhere/else"
        assert found[f"DBUS_{kind.upper()}_BUS_ADDRESS"] == expected


def test_update_activation_environment(bus: Living) -> None:
    bus.odd("claim")
    client = bus.client()
    variables = {
        "JITNEY_TEST_NEW": "new",
        "HOME": "/changed",
        "JITNEY_TEST_EMPTY": "",
        "DBUS_STARTER_ADDRESS": "a lie",
    }
    answer = client.reply_to(client.driver(b"UpdateActivationEnvironment", "a{ss}", variables))
    assert answer.type == wire.RETURN
    found = environment(client)
    assert found["JITNEY_TEST_NEW"] == "new"
    assert found["HOME"] == "/changed"
    assert found["JITNEY_TEST_EMPTY"] == ""
    assert found["DBUS_STARTER_ADDRESS"] == bus.daemon.address


@pytest.mark.skipif(os.geteuid() != 0, reason="a client has to be another user")
def test_environment_is_not_for_others(bus: Living) -> None:
    stranger = bus.client(uid=65534)
    call_ = stranger.driver(b"UpdateActivationEnvironment", "a{ss}", {"PATH": "/evil"})
    assert stranger.reply_to(call_).error_name == "org.freedesktop.DBus.Error.AccessDenied"
    bus.odd("claim")
    assert environment(bus.client())["PATH"] == os.environ["PATH"]


# ---- descriptors, signals, limits


def test_no_descriptor_and_no_limit_of_the_bus(start: Start) -> None:
    bus = start(files=200)
    bus.odd("claim")
    client = bus.client()
    for _ in range(20):
        bus.client()
    files = client.reply_to(call(client, b"Files")).body[0]
    kept = {line.split()[0]: line.split()[1] for line in files if line}
    sockets = [line for line in kept.values() if line.startswith("socket:")]
    # Its own connection and nothing else.
    assert len(sockets) == 1
    assert kept["0"] == "/dev/null"
    assert kept["2"] == str(bus.daemon.directory / "log")
    assert not [line for line in kept.values() if "eventpoll" in line or "inotify" in line]
    # Nor one that the bus itself was given by mistake.
    assert os.readlink(f"/proc/{bus.daemon.pid}/fd/9") == "/dev/zero"
    assert "/dev/zero" not in kept.values()
    limits = client.reply_to(call(client, b"Limits")).body[0]
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert line.split()[3:5] == ["200", str(hard)]
    if bus.ours:
        # dbus-daemon only raises its own if it may have 65536.
        assert line not in Path(f"/proc/{bus.daemon.pid}/limits").read_text()


def test_signals_are_as_the_bus_found_them(bus: Living) -> None:
    """Nothing is blocked, nothing is ignored but SIGPIPE, what Python itself ignores, and what was
    ignored when the bus was started."""
    bus.odd("claim")
    client = bus.client()
    status = dict(
        line.split(":\t", 1)
        for line in client.reply_to(call(client, b"Status")).body[0].splitlines()
    )
    assert int(status["SigBlk"], 16) == 0
    before = re.search(r"SigIgn:\t(\w+)", Path("/proc/self/status").read_text())
    assert before is not None
    # Bit 12 is SIGPIPE, bit 24 SIGXFSZ.
    ignored = 1 << 12 | 1 << 24 | int(before[1], 16)
    assert int(status["SigIgn"], 16) & ~ignored == 0


# ---- service files come, change and go


def activatable(client: RawClient) -> list[str]:
    names: list[str] = client.reply_to(client.driver(b"ListActivatableNames")).body[0]
    return names


def changes(client: RawClient) -> None:
    """Returns once ActivatableServicesChanged has come."""
    while True:
        message = client.receive()
        assert message is not None
        if message.member == "ActivatableServicesChanged":
            assert (message.sender, message.path) == (
                "org.freedesktop.DBus", "/org/freedesktop/DBus"
            )  # fmt: skip
            assert message.body == []
            return


def test_file_appears_changes_and_vanishes(bus: Living) -> None:
    client = bus.client()
    client.reply_to(client.driver(b"AddMatch", "s", "member='ActivatableServicesChanged'"))
    assert activatable(client) == ["org.freedesktop.DBus"]
    assert outcome(client.reply_to(call(client)))[0] == "ServiceUnknown"

    path = bus.file(NAME, "/bin/sh -c 'exit 11'")
    changes(client)
    until(lambda: NAME in activatable(client), "the new file is listed")
    assert outcome(client.reply_to(call(client)))[1].endswith("exited with status 11")

    bus.file(NAME, "/bin/sh -c 'exit 12'")

    def ends_anew() -> bool:
        return outcome(client.reply_to(call(client)))[1].endswith("exited with status 12")

    # Without inotify's help dbus-daemon would need a second to tell the files apart.
    assert ends_anew() if bus.ours else until(ends_anew, "the new file is read") is None

    path.unlink()
    assert outcome(client.reply_to(call(client)))[0] == "ServiceUnknown"
    until(lambda: NAME not in activatable(client), "the file is not listed any more")


def test_file_of_another_name_or_none(bus: Living) -> None:
    """A file may be called what it likes; one that makes no sense provides nothing."""
    bus.file(NAME, "/bin/sh -c 'exit 13'", called="anything")
    (bus.services / "broken.service").write_text("[D-BUS Service]\nName=jitney.test.Broken\n")
    (bus.services / "noend.servic").write_text("[D-BUS Service]\nName=a.b\nExec=/bin/true\n")
    os.mkfifo(bus.services / "fifo.service") if bus.ours else None
    client = bus.client()
    assert outcome(client.reply_to(call(client)))[1].endswith("exited with status 13")
    assert outcome(client.reply_to(call(client, to="jitney.test.Broken")))[0] == "ServiceUnknown"
    assert outcome(client.reply_to(call(client, to="a.b")))[0] == "ServiceUnknown"


# ---- places

PLACES = """<busconfig>
  <type>session</type>
  <listen>unix:path={directory}/bus</listen>
  <servicedir>{directory}/services</servicedir>
  <standard_session_servicedirs/>
  <servicedir>{directory}/last</servicedir>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
  {extra}
</busconfig>
"""


def test_session_places_in_order(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """<servicedir>s as they stand, the standard ones where they stand among them."""
    for name in ("XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_DATA_DIRS"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("XDG_DATA_DIRS", f"{tmp_path}/one:{tmp_path}/two")
    os.mkdir(tmp_path / "XDG_RUNTIME_DIR", 0o700)
    places = {
        "runtime": tmp_path / "XDG_RUNTIME_DIR/dbus-1/services",
        "home": tmp_path / "XDG_DATA_HOME/dbus-1/services",
        "one": tmp_path / "one/dbus-1/services",
        "two": tmp_path / "two/dbus-1/services",
    }
    for place in places.values():
        place.mkdir(parents=True)
    bus = start(config=PLACES)
    places = {"services": bus.services, **places, "last": bus.daemon.directory / "last"}
    places["last"].mkdir()
    order = list(places)
    # The name number N is provided from place N on: the first of them is to win.
    for number, first in enumerate(order):
        for place in order[number:]:
            (places[place] / f"jitney.test.N{number}.service").write_text(
                f"[D-BUS Service]\nName=jitney.test.N{number}\n"
                f"Exec={shlex.join([sys.executable, str(ODD), first + '-' + place, 'exit', '9'])}\n"
            )
    client = bus.client()
    client.reply_to(client.driver(b"ReloadConfig"))
    for number in range(len(order)):
        client.reply_to(call(client, to=f"jitney.test.N{number}"))
    assert bus.started == [f"{place}-{place}" for place in order]


def test_transient_services_are_called_after_their_names(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    os.chmod(tmp_path, 0o700)
    bus = start(config=PLACES)
    place = tmp_path / "dbus-1/services"
    assert place.is_dir()  # the bus makes it
    text = "[D-BUS Service]\nName={}\nExec=/bin/sh -c 'exit 14'\n"
    (place / "strict.test.Right.service").write_text(text.format("strict.test.Right"))
    (place / "wrong.service").write_text(text.format("strict.test.Wrong"))
    client = bus.client()
    right = outcome(client.reply_to(call(client, to="strict.test.Right")))
    wrong = outcome(client.reply_to(call(client, to="strict.test.Wrong")))
    assert right == ("Spawn.ChildExited", "Process strict.test.Right exited with status 14")
    assert wrong[0] == "ServiceUnknown"
    assert 'should have been named "strict.test.Wrong.service": not loading it' in bus.log
