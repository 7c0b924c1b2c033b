"""`jitney trace`, `record` and `replay` on a running bus, and who may use them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import buses
import pytest
from rawclient import RawClient, connected
from waiting import until

from jitney.compat import errors, wire
from jitney.compat.trace import pcap

TRACE = b"org.jitney.Trace1"
MAIN = "from jitney.compat.command import main_entry; main_entry()"
RULES = """<policy context="default">
  <deny send_interface="com.example.I" send_member="Secret"/>
  <deny own="com.example.Mine"/>
</policy>"""


@pytest.fixture
def bus() -> Iterator[buses.Daemon]:
    with buses.running(buses.jitney_command(), extra=RULES) as bus:
        yield bus


def jitney(*words: str) -> list[str]:
    return [sys.executable, "-c", MAIN, *words]


@contextlib.contextmanager
def tracing(
    bus: buses.Daemon, *words: str, command: str = "trace"
) -> Iterator[subprocess.Popen[str]]:
    """A tracer that has begun; ended by a signal when the block is, unless it ended itself."""
    before = _said(bus, "became a tracer")
    process = subprocess.Popen(
        jitney(command, *words, "--address", bus.address),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: _said(bus, "became a tracer") > before)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)


def _said(bus: buses.Daemon, words: str) -> int:
    """How often the bus's log has these words."""
    return (bus.directory / "log").read_text().count(words)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    return process.communicate(timeout=30)


def call(client: RawClient, dest: RawClient, member: bytes, *values: Any) -> int:
    return client.message(
        destination=dest.unique_name.encode(), path=b"/a", interface=b"com.example.I",
        member=member, signature="s" * len(values), values=values,
    )  # fmt: skip


def answer(client: RawClient) -> None:
    while True:
        message = client.receive()
        assert message is not None
        if message.type == wire.CALL:
            assert message.sender is not None
            client.message(
                wire.RETURN, destination=message.sender.encode(), reply_serial=message.serial
            )
            return


def converse(bus: buses.Daemon) -> None:
    """A call with its reply, one that is refused, and a signal."""
    with connected(bus.address) as one, connected(bus.address) as two:
        serial = call(one, two, b"Do", "hello")
        answer(two)
        one.reply_to(serial)
        assert one.reply_to(call(one, two, b"Secret")).error_name == errors.ACCESS_DENIED
        one.message(
            wire.SIGNAL, destination=None, path=b"/a", interface=b"com.example.I", member=b"Done"
        )
        one.reply_to(one.driver(b"GetId"))


def test_json_lines(bus: buses.Daemon) -> None:
    with tracing(bus, "--interface", "com.example.I", "--format=jsonl", "--count=6") as process:
        converse(bus)
        out, err = finish(process)
    found = [json.loads(line) for line in out.splitlines()]
    kinds = [(record["event"], record["type"], record.get("member")) for record in found]
    assert kinds == [
        ("message", "method_call", "Do"),
        ("message", "method_return", None),
        ("message", "method_call", "Secret"),
        ("refused", "method_call", "Secret"),
        ("message", "error", None),
        ("message", "signal", "Done"),
    ]
    assert found[1]["call"]["member"] == "Do"
    assert found[1]["latency_ns"] > 0
    assert "bus.conf" in found[3]["why"]
    assert not any("body" in record for record in found)
    assert "2 calls answered, 0 not, 1 refused, 0 records lost" in err


def test_refusals_alone(bus: buses.Daemon) -> None:
    with tracing(bus, "--denied", "--count=1") as process:
        converse(bus)
        out, _ = finish(process)
    (line,) = out.splitlines()
    assert "com.example.I.Secret" in line
    assert f"AccessDenied: rule: {bus.directory}/bus.conf:" in line


def test_a_name_that_is_refused(bus: buses.Daemon) -> None:
    with tracing(bus, "--denied", "--count=1") as process, connected(bus.address) as client:
        refused = client.reply_to(client.driver(b"RequestName", "su", "com.example.Mine", 0))
        assert refused.error_name == errors.ACCESS_DENIED
        out, _ = finish(process)
    assert "org.freedesktop.DBus.RequestName" in out
    assert f"AccessDenied: rule: {bus.directory}/bus.conf:" in out


def test_a_broadcast_that_is_refused(bus: buses.Daemon) -> None:
    with connected(bus.address) as deaf:
        deaf.reply_to(deaf.driver(b"AddMatch", "s", "member='Secret'"))
        with tracing(bus, "--denied", "--count=1") as process, connected(bus.address) as client:
            client.message(
                wire.SIGNAL, destination=None, path=b"/a", interface=b"com.example.I",
                member=b"Secret",
            )  # fmt: skip
            out, _ = finish(process)
    assert f"-> {deaf.unique_name}" in out
    assert "com.example.I.Secret" in out


def test_lines_with_arguments(bus: buses.Daemon) -> None:
    with tracing(bus, "--member=Do", "--payload", "--count=2") as process:
        converse(bus)
        out, _ = finish(process)
    assert "com.example.I.Do" in out.splitlines()[0]
    assert out.splitlines()[1] == "    'hello'"
    assert out.splitlines()[2].endswith(" ms")


def test_chrome(bus: buses.Daemon, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    with tracing(bus, "--format=chrome", "--output", str(file), "--peer", "com.example.X",
                 "--interface=com.example.I", "--match", "member='Do'") as process:  # fmt: skip
        converse(bus)
        # What was traced last is written soon, and the file is whole when it is told to end.
        until(lambda: '"ph": "e"' in file.read_text())
    finish(process)
    events = json.loads(file.read_text())["traceEvents"]
    assert [event["name"] for event in events if event["ph"] == "b"] == ["com.example.I.Do"]
    assert file.stat().st_mode & 0o77 == 0


def test_pcap_in_wireshark(bus: buses.Daemon, tmp_path: Path) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    file = tmp_path / "session.pcap"
    with tracing(bus, str(file), "--interface=com.example.I", "--count=6", command="record") as p:
        converse(bus)
        finish(p)
    shown = subprocess.run(
        ["tshark", "-r", str(file), "-T", "fields", "-e", "dbus.message_type", "-e", "dbus.member",
         "-e", "dbus.serial", "-e", "dbus.reply_serial", "-e", "_ws.expert.message"],
        capture_output=True, text=True, check=True, timeout=50,
    ).stdout  # fmt: skip
    rows = [line.split("\t") for line in shown.splitlines()]
    assert [(row[0], row[1]) for row in rows] == [
        ("1", "Do"), ("2", ""), ("1", "Secret"), ("3", ""), ("4", "Done"),
    ]  # fmt: skip
    assert rows[1][3] == rows[0][2]
    assert not any(len(row) > 4 and row[4] for row in rows), "Wireshark complains"


def test_pcap_as_from_dbus_monitor(bus: buses.Daemon, tmp_path: Path) -> None:
    """The same traffic, byte for byte, whoever wrote it down."""
    if shutil.which("dbus-monitor") is None:
        pytest.skip("dbus-monitor is not installed")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    monitor = None
    try:
        with theirs.open("wb") as out:
            monitor = subprocess.Popen(
                ["dbus-monitor", "--address", bus.address, "--pcap", "interface='com.example.I'"],
                stdout=out,
            )
        until(lambda: _said(bus, "became a monitor") > 0)
        with tracing(
            bus, str(ours), "--type=method_call", "--interface=com.example.I", "--count=4",
            command="record",
        ) as process:  # fmt: skip
            converse(bus)
            # The count is reached with the replies; what dbus-monitor was told, calls and signal.
            finish(process)
        until(lambda: len(_calls(theirs)) >= 2, "dbus-monitor has written both")
    finally:
        if monitor is not None:
            monitor.terminate()
            monitor.wait(30)
    assert len(_calls(ours)) == 2
    assert _calls(ours) == _calls(theirs)


def _calls(file: Path) -> list[bytes]:
    found = [packet.data for packet in pcap.read(io.BytesIO(file.read_bytes()))]
    return [data for data in found if data[1] == wire.CALL]


def test_recorded_and_replayed(bus: buses.Daemon, tmp_path: Path) -> None:
    file = tmp_path / "session.pcap"
    with tracing(bus, str(file), "--count=30", command="record") as process:
        while process.poll() is None:
            converse(bus)
        finish(process)
    with buses.running(buses.jitney_command(), extra=RULES) as other:
        again = tmp_path / "again.pcap"
        with tracing(other, str(again), command="record") as second:
            done = subprocess.run(
                jitney("replay", str(file), "--address", other.address, "--fast"),
                capture_output=True, text=True, timeout=50, check=False,
            )  # fmt: skip
            whole = _shape(file)
            assert whole
            until(lambda: len(_shape(again)) >= len(whole), "all of it is recorded again")
        finish(second)
    assert "sent " in done.stdout, done.stderr
    # A recording that was cut off may end between a call and its reply.
    assert done.stdout.count(" 0 did not") or done.returncode == 1
    played = _shape(again)
    assert played[: len(whole)] == whole


def _shape(file: Path) -> list[tuple[Any, ...]]:
    """What peers said, without names that differ."""
    from jitney.broker.message import Message

    shape = []
    for packet in pcap.read(io.BytesIO(file.read_bytes())):
        msg = Message()
        assert msg.load(packet.data)
        if msg.interface == b"com.example.I" or (msg.type == 2 and msg.sender[:1] == b":"):  # type: ignore[index]
            shape.append((msg.type, msg.member, msg.body(), msg.serial, msg.reply_serial))
    return shape


# Who may, and what it costs others


def start(client: RawClient, **options: Any) -> Any:
    serial = client.driver(b"Start", "a{sv}", options, interface=TRACE)
    return client.reply_to(serial)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_other_users_see_nothing(bus: buses.Daemon) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    with (
        connected(bus.address, uid=nobody) as spy,
        connected(bus.address) as one,
        connected(bus.address) as two,
    ):
        for options in ({}, {"payload": ("u", 100)}, {"users": ("au", [nobody])}):
            assert start(spy, **options).error_name == errors.ACCESS_DENIED
        serial = call(one, two, b"Do", "password")
        answer(two)
        one.reply_to(serial)
        # It is a client as before, and has got nothing but its own replies.
        assert spy.reply_to(spy.driver(b"GetId")).type == wire.RETURN


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"colour": ("s", "red")}, "knows no"),
        ({"every": ("s", "2")}, "must be of type u"),
        ({"every": ("u", 0)}, "cannot be 0"),
        ({"match": ("as", ["type='nonsense'"])}, "Invalid message type"),
    ],
)
def test_bad_options_change_nothing(
    daemon: buses.Daemon, options: dict[str, Any], complaint: str
) -> None:
    with connected(daemon.address) as client:
        refused = start(client, **options)
        assert complaint in refused.body[0]
        assert client.unique_name in client.reply_to(client.driver(b"ListNames")).body[0]


def test_a_tracer_that_does_not_read_harms_nobody(daemon: buses.Daemon) -> None:
    with (
        connected(daemon.address) as stuck,
        connected(daemon.address) as one,
        connected(daemon.address) as two,
    ):
        assert start(stuck, payload=("u", 1 << 20)).type == wire.RETURN
        for _ in range(200):
            serial = call(one, two, b"Do", "x" * 100_000)
            answer(two)
            assert one.reply_to(serial).type == wire.RETURN
        # Then it looks what it has got: records, and how many are missing.
        records = lost = 0
        stuck.timeout = 1.0
        with contextlib.suppress(TimeoutError):
            while lost == 0 or records + lost < 400:
                batch = stuck.receive()
                assert batch is not None
                if batch.member == "Records":
                    lost += batch.body[0]
                    records += len(batch.body[1])
        assert lost > 0
        assert records > 0


def test_a_tracer_that_speaks_is_sent_away(daemon: buses.Daemon) -> None:
    with connected(daemon.address) as rude, connected(daemon.address) as client:
        start(rude)
        rude.driver(b"GetId")
        while rude.receive() is not None:
            pass
        assert client.reply_to(client.driver(b"GetId")).type == wire.RETURN


def test_what_is_no_jitney(tmp_path: Path) -> None:
    if buses.REFERENCE is None:
        pytest.skip("dbus-daemon is not installed")
    with buses.running([buses.REFERENCE]) as other:
        done = subprocess.run(
            jitney("trace", "--address", other.address),
            capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "no jitney" in done.stderr
