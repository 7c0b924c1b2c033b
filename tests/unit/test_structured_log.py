"""Log entries with fields: what they say, and that no sink can hold up the bus."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import buses
import pytest
from rawclient import RawClient

from jitney.compat import cli, ways, wire
from jitney.compat.log import Log


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(30)
        yield sock


def parsed(packet: bytes) -> dict[str, list[bytes]]:
    """As "Native Journal Protocol" has it."""
    found: dict[str, list[bytes]] = {}
    while packet:
        line, _, packet = packet.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(packet[:8], "little")
            value, packet = packet[8 : 8 + size], packet[8 + size :]
            assert packet[:1] == b"\n"
            packet = packet[1:]
        found.setdefault(name.decode(), []).append(value)
    return found


def test_to_the_journal(tmp_path: Path, journal: socket.socket) -> None:
    logger = Log(stderr=False, syslog=True, journal=True, syslog_path=str(tmp_path / "journal"))
    assert logger.structured
    logger.log("security", "two\nlines \u00e9\udcff", {"event": "denied", "names": ["a.b", "a.c"],
                                                      "uid": 5})  # fmt: skip
    found = parsed(journal.recv(10000))
    assert found["MESSAGE"] == ["two\nlines \u00e9".encode() + b"\xff"]
    assert (found["PRIORITY"], found["SYSLOG_FACILITY"]) == ([b"5"], [b"4"])
    assert found["SYSLOG_IDENTIFIER"] == [b"dbus-daemon"]
    assert found["JITNEY_NAMES"] == [b"a.b", b"a.c"]
    assert (found["JITNEY_EVENT"], found["JITNEY_UID"]) == ([b"denied"], [b"5"])


def test_a_journal_that_does_not_read(tmp_path: Path, journal: socket.socket) -> None:
    logger = Log(stderr=False, syslog=True, journal=True, syslog_path=str(tmp_path / "journal"))
    for _ in range(5000):
        logger.log("info", "x" * 1000, {"event": "e"})
    assert logger.lost > 0
    lost = logger.lost
    journal.close()
    os.unlink(tmp_path / "journal")
    logger.log("info", "x", {"event": "e"})
    assert logger.lost == lost + 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "journal"))
        again.settimeout(30)
        logger.log("info", "back", {"event": "e"})
        assert parsed(again.recv(1000))["MESSAGE"] == [b"back"]
    # What is larger than a datagram may be is lost, and that is all.
    logger.log("info", "y" * (64 << 20), {})


def test_json_lines() -> None:
    ends = os.pipe()
    logger = Log(prefix="[system] ", json=True, stderr_fd=ends[1])
    assert logger.structured
    logger.log("warning", 'a "quoted"\nthing \udcff', {"event": "dropped", "names": ["a.b"]})
    logger.info("plain")
    first, second = os.read(ends[0], 10000).splitlines()
    entry = json.loads(first)
    assert entry["message"] == '[system] a "quoted"\nthing \udcff'
    assert (entry["severity"], entry["event"], entry["names"]) == ("warning", "dropped", ["a.b"])
    assert entry["bus_pid"] == os.getpid()
    assert "event" not in json.loads(second)
    # No line is longer than a pipe takes at once, and all are whole.
    logger.log("info", "\x01" * 10000, {"event": "e"})
    line = os.read(ends[0], 100000)
    assert len(line) <= 4096
    assert json.loads(line)["cut"]
    # Nobody reads: it is lost, not waited for.
    for _ in range(1000):
        logger.log("info", "z" * 1000, {"event": "e"})
    assert logger.lost > 0
    os.close(ends[0])
    logger.log("info", "nobody", {})
    os.close(ends[1])


def test_without_them_nothing_is_gathered() -> None:
    assert not Log().structured
    assert not Log(stderr=False, json=True).structured
    assert not Log(journal=True).structured


def test_command_line() -> None:
    options = cli.parse(["--session", "--log-format=json", "--log-format=journal"])
    assert (options.log_json, options.log_journal) == (True, True)
    with pytest.raises(cli.Exit):
        cli.parse(["--session", "--log-format=xml"])


def entries(bus: buses.Daemon) -> dict[str, dict[str, Any]]:
    """The latest of each event; every line must be JSON."""
    found = {}
    for line in (bus.directory / "log").read_text().splitlines():
        entry = json.loads(line)
        found[entry.get("event", "")] = entry
    return found


def test_events_of_a_bus() -> None:
    extra = """<policy context="default">
        <deny send_destination="a.b" send_interface="a.i" send_member="Off"/>
        <deny own="a.no"/></policy>
        <limit name="max_outgoing_bytes">1000</limit>"""
    command = [*buses.jitney_command(), "--log-format=json"]
    with buses.running(command, extra=extra) as bus, RawClient(bus.address) as one:
        one.hello()
        one.reply_to(one.driver(b"RequestName", "su", "a.b", 0))
        (bus.directory / "services" / "a.s.service").write_text(
            "[D-BUS Service]\nName=a.s\nExec=/bin/false\n"
        )
        one.reply_to(one.driver(b"ReloadConfig"))
        one.reply_to(one.message(destination=b"a.b", path=b"/", interface=b"a.i", member=b"Off"))
        denied = entries(bus)["denied"]
        assert denied["rule"].startswith(f"{bus.directory}/bus.conf:")
        assert (denied["peer"], denied["uid"]) == (one.unique_name, os.getuid())
        assert denied.get("pid") == (os.getpid() if ways.PEER_PIDS else None)
        assert (denied["names"], denied["receiver_names"]) == (["a.b"], ["a.b"])
        assert (denied["interface"], denied["member"]) == ("a.i", "Off")
        assert denied["reason"] == "Rejected send message"
        assert denied["severity"] == "security"
        one.reply_to(one.driver(b"RequestName", "su", "a.no", 0))
        denied = entries(bus)["denied"]
        assert (denied["reason"], denied["name"]) == ("own", "a.no")
        assert denied["rule"].startswith(f"{bus.directory}/bus.conf:")
        one.reply_to(one.driver(b"StartServiceByName", "su", "a.s", 0))
        found = entries(bus)
        assert found["activating"]["peer"] == one.unique_name
        assert found["activation-failed"]["name"] == "a.s"
        one.reply_to(one.driver(b"AddMatch", "s", "type='signal',interface='a.i'"))
        with RawClient(bus.address) as other:
            other.hello()
            for _ in range(3000):
                other.message(
                    wire.SIGNAL, destination=None, path=b"/", interface=b"a.i", member=b"S",
                    signature="ay", values=[bytes(5000)],
                )  # fmt: skip
            other.reply_to(other.driver(b"GetId"))
            dropped = entries(bus)["dropped"]
            assert (dropped["peer"], dropped["receiver_peer"]) == (
                other.unique_name, one.unique_name,
            )  # fmt: skip


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_log_that_nobody_reads(tmp_path: Path, format: str) -> None:
    """The bus is as quick as ever with a full pipe for a log, and lives on when that breaks."""
    file = tmp_path / "bus.conf"
    deny = '<policy context="default"><deny send_destination="a.b" send_interface="a.i"/></policy>'
    file.write_text(buses.CONFIG.format(type="session", directory=tmp_path, extra=deny))
    words = ["--log-format=json"] if format == "json" else []
    process = subprocess.Popen(
        [*buses.jitney_command(), f"--config-file={file}", "--nofork", "--print-address=1", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with RawClient(process.stdout.readline().decode().strip()) as one:
            one.hello()
            one.reply_to(one.driver(b"RequestName", "su", "a.b", 0))

            def refused(times: int) -> None:
                for _ in range(times):
                    one.message(destination=b"a.b", path=b"/", interface=b"a.i", member=b"M")
                assert one.reply_to(one.driver(b"GetId")).body

            # Many times what a pipe holds.
            refused(2000)
            status = one.reply_to(one.driver(b"GetStatus", interface=b"org.jitney.Inspect1"))
            assert json.loads(status.body[0])["log_lines_lost"] > 500
            process.stderr.close()
            refused(10)
            assert process.poll() is None
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
    assert process.returncode == 0
