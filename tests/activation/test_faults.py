"""Services that hang, crash, lie, fork or come late, on a running bus: callers always learn it.

Every test holds on dbus-daemon as well.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import kernel
import pytest
from activation.living import NAME, Living, call, outcome, processes
from rawclient import RawClient
from waiting import given_time, until

from jitney.compat import wire

Start = Callable[..., Living]
OTHER = "jitney.test.Other"
TIMED_OUT = (
    "TimedOut",
    f"Failed to activate service '{NAME}': timed out (service_start_timeout=1500ms)",
)


def start_service(client: RawClient, name: str = NAME) -> int:
    return client.driver(b"StartServiceByName", "su", name, 0)


def alive(bus: Living) -> bool:
    """Whether the bus still answers somebody new."""
    client = bus.client()
    return client.reply_to(client.driver(b"GetId")).type == wire.RETURN


# ---- the ways to fail


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (["exit", "3"], ("Spawn.ChildExited", f"Process {NAME} exited with status 3")),
        (["exit", "1"], ("Spawn.ChildExited", f"Process {NAME} exited with status 1")),
        (["signal", "SIGSEGV"], ("Spawn.ChildSignaled", f"Process {NAME} received signal 11")),
        (["signal", "SIGKILL"], ("Spawn.ChildSignaled", f"Process {NAME} received signal 9")),
        (["hello-exit", "4"], ("Spawn.ChildExited", f"Process {NAME} exited with status 4")),
        (["fork", "5"], ("Spawn.ChildExited", f"Process {NAME} exited with status 5")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_service_ends(bus: Living, way: list[str], expected: tuple[str, str]) -> None:
    bus.odd(*way)
    first, second = bus.client(), bus.client()
    asked, sent = start_service(first), call(second)
    assert outcome(first.reply_to(asked)) == expected
    assert outcome(second.reply_to(sent)) == expected
    # One start, or one each, if the first had failed when the second caller came.
    assert set(bus.started) <= {NAME}
    assert f"Activated service '{NAME}' failed: {expected[1]}" in bus.log
    assert alive(bus)


@pytest.mark.parametrize(
    ("exec", "expected"),
    [
        ("/no/such/program", (
            "Spawn.ExecFailed", f"Failed to execute program {NAME}: No such file or directory")),
        ("/etc/passwd", (
            "Spawn.ExecFailed", f"Failed to execute program {NAME}: Permission denied")),
        ("/tmp", (
            "Spawn.ExecFailed", f"Failed to execute program {NAME}: Permission denied")),
        ("sh -c true", (
            "Spawn.ExecFailed", f"Failed to execute program {NAME}: No such file or directory")),
        ("/bin/sh 'unclosed", ("InvalidArgs", "Unclosed quotes in command line")),
        ('/bin/sh -c "exit 7"', (
            "Spawn.ChildExited", f"Process {NAME} exited with status 7")),
        ("/bin/sh -c 'kill -TERM $$$$'", None),
        ("/bin/sh -c exit\\ 8", ("Spawn.ChildExited", f"Process {NAME} exited with status 8")),
        ("/bin/sh -c 'exit 9' # exit 10", (
            "Spawn.ChildExited", f"Process {NAME} exited with status 9")),
        ("/bin/sh -c 'exit '$HOME", None),
    ],
)  # fmt: skip
def test_command_line(
    bus: Living, exec: str, expected: tuple[str, str] | None, tmp_path: Path
) -> None:
    bus.file(NAME, exec.replace("\\", "\\\\"))
    client = bus.client()
    got = outcome(client.reply_to(call(client)))
    if expected is not None:
        assert got == expected
    else:
        # What the shell makes of it; no variable was ever replaced by the bus.
        assert got[0] in ("Spawn.ChildSignaled", "Spawn.ChildExited")
    assert alive(bus)


@pytest.mark.parametrize(
    "way", [["hang"], ["wrong-name", OTHER], ["hello-exit", "0"], ["exit", "0"]]
)
def test_name_is_never_claimed(start: Start, way: list[str]) -> None:
    """It hangs, or claims another name, or looks like the parent of a daemon: time decides."""
    bus = start(timeout=1500)
    bus.odd(*way)
    first, second = bus.client(), bus.client()
    asked, sent = start_service(first), call(second)
    assert outcome(first.reply_to(asked)) == TIMED_OUT
    assert outcome(second.reply_to(sent)) == TIMED_OUT
    assert len(bus.started) <= 1
    # What was started for it is gone.
    mark = f"JITNEY_TEST_NOTES={bus.daemon.directory}"
    until(lambda: not processes(mark), "the service is killed")
    # The next caller gets a start of its own, for which a busy machine needs longer than that.
    config = bus.daemon.directory / "bus.conf"
    config.write_text(config.read_text().replace('_timeout">1500<', '_timeout">20000<'))
    bus.odd("claim")
    third = bus.client()
    third.reply_to(third.driver(b"ReloadConfig"))
    assert outcome(third.reply_to(call(third, b"Echo", "again"))) == ("again",)


def test_other_name_than_asked_for(start: Start) -> None:
    """Who waits for the name that was claimed is served, who waits for the other is told."""
    given_time(lambda limit: other_name(start(timeout=limit), limit), 5000, 18000)


def other_name(bus: Living, limit: int) -> None:
    bus.odd("wrong-name", OTHER)
    bus.odd("hang", name=OTHER)
    wrong, right = bus.client(), bus.client()
    for_other = call(right, b"Echo", "hello", to=OTHER)
    until(lambda: bus.started == [OTHER], "the other is started")
    for_name = call(wrong)
    assert outcome(right.reply_to(for_other)) == ("hello",)
    kind, text = outcome(wrong.reply_to(for_name))
    assert (kind, text.partition(": ")[2]) == (
        "TimedOut", f"timed out (service_start_timeout={limit}ms)"
    )  # fmt: skip


@pytest.mark.parametrize("name", ["", "no-dot", ":1.5", "org.freedesktop.DBus", "a..b"])
def test_names_that_cannot_be_started(bus: Living, name: str) -> None:
    client = bus.client()
    text = f"The name {name} was not provided by any .service files"
    assert outcome(client.reply_to(start_service(client, name))) == ("ServiceUnknown", text)


# ---- the ways to succeed


@pytest.mark.parametrize("way", [["claim"], ["fork"], ["fork", "0"]])
def test_service_comes(bus: Living, way: list[str]) -> None:
    bus.odd(*way)
    client = bus.client()
    serials = [call(client, b"Echo", str(number)) for number in range(20)]
    # One caller's messages keep their order, before the name was there and after.
    for number, serial in enumerate(serials):
        reply = client.receive()
        while reply is not None and reply.type != wire.RETURN:
            reply = client.receive()
        assert reply is not None
        assert (reply.reply_serial, reply.body) == (serial, [str(number)])
    assert outcome(client.reply_to(start_service(client))) == ("2",)
    assert bus.started == [NAME]
    assert f"Successfully activated service '{NAME}'" in bus.log


def test_start_is_answered_before_messages_go_on(bus: Living) -> None:
    bus.odd("wait", str(bus.daemon.directory / "go"))
    client = bus.client()
    sent, asked = call(client, b"Echo", "x"), start_service(client)
    (bus.daemon.directory / "go").touch()
    got = []
    while len(got) < 2:
        message = client.receive()
        assert message is not None
        if message.reply_serial in (sent, asked):
            got.append((message.reply_serial, message.body))
    assert got == [(asked, [1]), (sent, ["x"])]


def test_no_auto_start(bus: Living) -> None:
    bus.odd("claim")
    client = bus.client()
    kind, text = outcome(client.reply_to(call(client, flags=wire.NO_AUTO_START)))
    assert kind == "NameHasNoOwner"
    assert text == f'Name "{NAME}" does not exist'
    assert bus.started == []


def test_signals_start_services(bus: Living) -> None:
    """A signal to a name is delivered like a call; nobody is told if that fails."""
    bus.odd("claim")
    client = bus.client()
    client.message(wire.SIGNAL, destination=NAME.encode(), path=b"/", interface=b"a.b", member=b"C")
    assert outcome(client.reply_to(call(client, b"Echo", "after"))) == ("after",)
    assert bus.started == [NAME]


@kernel.needs_linux_ways
def test_dies_and_is_started_again(bus: Living) -> None:
    bus.odd("claim")
    client = bus.client()

    def owned() -> bool:
        return bool(client.reply_to(client.driver(b"NameHasOwner", "s", NAME)).body[0])

    for turn in (1, 2):
        assert outcome(client.reply_to(call(client, b"Echo", "x"))) == ("x",)
        assert bus.started == [NAME] * turn
        pid = client.reply_to(client.driver(b"GetConnectionUnixProcessID", "s", NAME)).body[0]
        os.kill(pid, signal.SIGKILL)
        until(lambda: not owned(), "the name is free again")


# ---- many, and in the middle


@pytest.mark.timeout(120)
def test_a_thousand_callers(bus: Living) -> None:
    """One start; each is answered; whoever has gone meanwhile is no trouble."""
    go = bus.daemon.directory / "go"
    bus.odd("wait", str(go))
    callers = [bus.client() for _ in range(1000)]
    serials = [call(client, b"Echo", str(number)) for number, client in enumerate(callers)]
    for client in callers[::10]:
        client.close()
    probe = bus.client()
    assert probe.reply_to(probe.driver(b"GetId")).type == wire.RETURN
    go.touch()
    for number, (client, serial) in enumerate(zip(callers, serials, strict=True)):
        if not client.closed:
            assert outcome(client.reply_to(serial)) == (str(number),)
    assert bus.started == [NAME]


@pytest.mark.timeout(120)
def test_a_thousand_callers_of_a_failure(bus: Living) -> None:
    go = bus.daemon.directory / "go"
    bus.file(NAME, f"/bin/sh -c 'while ! test -e {go}; do sleep 0.05; done; exit 6'")
    callers = [bus.client() for _ in range(1000)]
    serials = [call(client) for client in callers]
    go.touch()
    expected = ("Spawn.ChildExited", f"Process {NAME} exited with status 6")
    for client, serial in zip(callers, serials, strict=True):
        assert outcome(client.reply_to(serial)) == expected
    assert alive(bus)


def test_more_than_may_wait(start: Start) -> None:
    """The limit is on messages that wait, not on services."""
    bus = start(pending=20)
    client = bus.client()
    bus.odd("hang")
    serials = [call(client) for _ in range(40)]
    replies = [outcome(client.reply_to(serial)) for serial in serials[20:]]
    text = (
        "The maximum number of pending activations has been reached, "
        f"activation of {NAME} failed (max_pending_service_starts=20)"
    )
    assert replies == [("LimitsExceeded", text)] * 20
    until(lambda: bus.started == [NAME], "one service is started")


def test_caller_goes_away(bus: Living) -> None:
    """The service comes all the same, and its next caller is served."""
    go = bus.daemon.directory / "go"
    bus.odd("wait", str(go))
    client = bus.client()
    call(client)
    until(lambda: bus.started == [NAME], "the service is started")
    client.close()
    other = bus.client()
    serial = call(other, b"Echo", "mine")
    go.touch()
    assert outcome(other.reply_to(serial)) == ("mine",)
    assert bus.started == [NAME]


@pytest.mark.parametrize("how", ["ReloadConfig", "SIGHUP"])
def test_reload_during_a_start(bus: Living, how: str) -> None:
    """Who waits goes on waiting, even if the file that started it all is gone."""
    go = bus.daemon.directory / "go"
    path = bus.odd("wait", str(go))
    client = bus.client()
    serial = call(client, b"Echo", "still here")
    until(lambda: bus.started == [NAME], "the service is started")
    path.unlink()
    other = bus.client()
    other.reply_to(other.driver(b"AddMatch", "s", "member='ActivatableServicesChanged'"))
    if how == "SIGHUP":
        os.kill(bus.daemon.pid, signal.SIGHUP)
        message = other.receive()
        while message is not None and message.member != "ActivatableServicesChanged":
            message = other.receive()
    else:
        assert other.reply_to(other.driver(b"ReloadConfig")).type == wire.RETURN
    names = other.reply_to(other.driver(b"ListActivatableNames")).body[0]
    assert NAME not in names
    go.touch()
    assert outcome(client.reply_to(serial)) == ("still here",)
    assert bus.started == [NAME]


def test_policy_is_asked_before_anything_starts(start: Start) -> None:
    rule = f"""
      <policy context="mandatory">
        <deny send_destination="{NAME}" send_interface="jitney.test.Odd" send_member="Forbidden"/>
        <deny send_interface="jitney.test.Odd" send_member="Secret"/>
      </policy>"""
    bus = start(rule)
    bus.odd("claim")
    client = bus.client()
    kind, text = outcome(client.reply_to(call(client, b"Secret")))
    assert kind == "AccessDenied"
    assert text.startswith("Rejected send message, 2 matched rules; type=")
    assert text.endswith(f'destination="{NAME}" (bus)')
    assert bus.started == []
    # A rule on the destination can only be told once that has an owner.
    kind, _ = outcome(client.reply_to(call(client, b"Forbidden")))
    assert kind == "AccessDenied"
    assert outcome(client.reply_to(call(client, b"Echo", "yes"))) == ("yes",)


# ---- what is kept is counted


def test_same_program_for_two_names(bus: Living) -> None:
    """It ends: whoever waits for another name from the same command line need not wait on."""
    go = bus.daemon.directory / "go"
    exec = f"/bin/sh -c 'while ! test -e {go}; do sleep 0.05; done; exit 5'"
    bus.file(NAME, exec)
    bus.file(OTHER, exec)
    client = bus.client()
    serials = {call(client, to=NAME), call(client, to=OTHER)}
    client.reply_to(client.driver(b"GetId"))
    go.touch()
    errors = []
    while serials:
        message = client.receive()
        assert message is not None
        serials.discard(message.reply_serial)
        errors.append(outcome(message))
    # Both are told of the one that ended first.
    assert errors[0] == errors[1]
    assert errors[0][1] in [f"Process {name} exited with status 5" for name in (NAME, OTHER)]


def test_descriptors_wait_with_their_message(bus: Living) -> None:
    go = bus.daemon.directory / "go"
    bus.odd("wait", str(go))
    client = bus.client()
    ours, theirs = os.pipe()
    serial = client.message(
        destination=NAME.encode(), path=b"/", interface=b"jitney.test.Odd", member=b"Take",
        signature="h", values=(0,), fds=[theirs],
    )  # fmt: skip
    os.close(theirs)
    client.reply_to(client.driver(b"GetId"))
    go.touch()
    # The service says how many came, and closes them: nobody else has one any more.
    assert client.reply_to(serial).body == ["1"]
    os.set_blocking(ours, False)
    until(lambda: ended(ours), "the descriptor is closed everywhere")
    os.close(ours)


def ended(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def test_descriptors_of_a_service_that_never_comes(start: Start) -> None:
    bus = start(timeout=1500)
    bus.odd("hang")
    client = bus.client()
    ours, theirs = os.pipe()
    serial = client.message(
        destination=NAME.encode(), path=b"/", interface=b"jitney.test.Odd", member=b"Take",
        signature="h", values=(0,), fds=[theirs],
    )  # fmt: skip
    os.close(theirs)
    assert outcome(client.reply_to(serial)) == TIMED_OUT
    os.set_blocking(ours, False)
    until(lambda: ended(ours), "the descriptor is closed everywhere")
    os.close(ours)


def test_bytes_that_may_wait(start: Start) -> None:
    """One caller can have so much waiting; after that its further messages are refused.

    dbus-daemon would not read anything more of it, replies that it owes others included."""
    bus = start('<limit name="max_incoming_bytes">100000</limit>')
    if not bus.ours:
        pytest.skip("dbus-daemon stops reading instead")
    go = bus.daemon.directory / "go"
    bus.odd("wait", str(go))
    client, other = bus.client(), bus.client()
    serials = [call(client, b"Echo", f"{number:040000}") for number in range(6)]
    refused = [outcome(client.reply_to(serial)) for serial in serials[3:]]
    assert {kind for kind, _ in refused} == {"LimitsExceeded"}
    assert {text.rpartition("failed ")[2] for _, text in refused} == {"(max_incoming_bytes=100000)"}
    # Others are not in the way, and neither is anything but what waits.
    served = call(other, b"Echo", "other")
    assert client.reply_to(client.driver(b"GetId")).type == wire.RETURN
    go.touch()
    assert outcome(other.reply_to(served)) == ("other",)
    for number in range(3):
        message = client.receive()
        assert message is not None
        assert (message.reply_serial, message.body) == (serials[number], [f"{number:040000}"])
    assert outcome(client.reply_to(call(client, b"Echo", "again"))) == ("again",)


def test_answered_calls_are_not_counted_any_more(start: Start) -> None:
    """Failed starts leave nothing behind, however many there are."""
    bus = start(pending=3)
    bus.file(NAME, "/bin/false")
    client = bus.client()
    for _ in range(30):
        assert outcome(client.reply_to(call(client)))[0] == "Spawn.ChildExited"
