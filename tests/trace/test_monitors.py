"""The monitors that everybody has, beside dbus-daemon: the same traffic looks the same on both.

What differs between two runs of any bus is taken out: times, serials of the bus's own messages.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import buses
import pytest
from rawclient import RawClient, connected
from waiting import given_time, until

from jitney.broker.message import Message
from jitney.compat import wire
from jitney.compat.trace import pcap

END = b"TheEnd"
BUSES = {"jitney": buses.jitney_command()}
if buses.REFERENCE is not None:
    BUSES["dbus-daemon"] = [buses.REFERENCE]


def needs(*programs: str) -> None:
    for program in (*programs, "dbus-daemon"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def watcher(bus: buses.Daemon) -> RawClient:
    """Somebody who hears of who comes and goes."""
    client = connected(bus.address)
    client.reply_to(client.driver(b"AddMatch", "s", "type='signal',member='NameOwnerChanged'"))
    return client


def until_gone(watcher: RawClient, client: RawClient) -> None:
    while (message := watcher.receive()) is not None:
        if message.member == "NameOwnerChanged" and message.body == [client.unique_name] * 2 + [""]:
            return
    raise AssertionError("the bus has gone instead")


@contextlib.contextmanager
def watched(
    bus: buses.Daemon, words: list[str], out: Path, writes: Callable[[], None] | None = None
) -> Iterator[None]:
    """Runs a monitor from when it has become one until it has written the last of the block; how
    that is waited for may be given."""
    with watcher(bus) as watch:
        with out.open("wb") as file:
            process = subprocess.Popen(words, stdout=file, stderr=subprocess.DEVNULL)
        try:
            while True:
                message = watch.receive()
                assert message is not None
                if message.member == "NameOwnerChanged" and not message.body[2]:
                    break
        except BaseException:
            process.kill()
            process.wait()
            raise
    try:
        yield
        if writes is None:
            until(lambda: END in out.read_bytes(), "it has written all")
        else:
            writes()
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            process.kill()
            process.wait()


def converse(bus: buses.Daemon) -> None:
    """Two talk and go; then a third one, who was told of that, says so."""
    with connected(bus.address) as one, connected(bus.address) as two:
        two.reply_to(two.driver(b"RequestName", "su", "com.example.Two", 0))
        serial = one.message(
            destination=b"com.example.Two", path=b"/a", interface=b"com.example.I",
            member=b"Do", signature="sa{sv}", values=["text", {"k": ("u", 3)}],
        )  # fmt: skip
        while (got := two.receive()) is not None and got.member != "Do":
            pass
        two.message(wire.RETURN, destination=one.unique_name.encode(), reply_serial=serial)
        one.reply_to(serial)
        one.reply_to(
            one.message(destination=b"com.example.Nobody", path=b"/", member=b"Do", flags=2)
        )
        two.message(
            wire.SIGNAL, destination=None, path=b"/a", interface=b"com.example.I",
            member=b"Changed", signature="ay", values=[b"\0\1"],
        )  # fmt: skip
        two.reply_to(two.driver(b"GetId"))
        last = watcher(bus)
        # Of two who go at once a bus may take leave of either first.
        two.close()
        until_gone(last, two)
    with last:
        until_gone(last, one)
        last.message(
            wire.SIGNAL, destination=None, path=b"/a", interface=b"com.example.I", member=END
        )
        last.reply_to(last.driver(b"GetId"))


def seen(tmp_path: Path, words: list[str]) -> dict[str, bytes]:
    found = {}
    for name, command in BUSES.items():
        with buses.running(command) as bus:
            out = tmp_path / name
            address = bus.address.partition(",guid=")[0]
            with watched(bus, [word.replace("ADDRESS", address) for word in words], out):
                converse(bus)
            found[name] = out.read_bytes()
    return found


def test_dbus_monitor_text(tmp_path: Path) -> None:
    needs("dbus-monitor")
    found = {
        name: _without_luck(data.decode())
        for name, data in seen(tmp_path, ["dbus-monitor", "--address", "ADDRESS"]).items()
    }
    assert any("com.example.I; member=Do" in line for line in found["jitney"])
    assert found["jitney"] == found["dbus-daemon"]


def _without_luck(text: str) -> list[str]:
    lines = []
    for raw in text.splitlines():
        line = re.sub(r"time=[\d.]+ ", "", raw)
        if "sender=org.freedesktop.DBus " in line:
            line = re.sub(r" serial=\d+", "", line)
        # GetId's answer is another one for each bus.
        lines.append(re.sub(r"[0-9a-f]{32}", "GUID", line))
    # Who watches the monitor leaves before or after its first words.
    start = next(i for i, line in enumerate(lines) if "member=Hello" in line)
    end = next(i for i, line in enumerate(lines) if f"member={END.decode()}" in line)
    return lines[start:end]


@pytest.mark.parametrize("form", ["--pcap", "--binary"])
def test_dbus_monitor_bytes(tmp_path: Path, form: str) -> None:
    needs("dbus-monitor")
    found = {}
    for name, data in seen(tmp_path, ["dbus-monitor", form, "--address", "ADDRESS"]).items():
        found[name] = _shapes(_whole(data, form))
    assert (wire.CALL, b"Do", b":1.2") in [shape[:3] for shape in found["jitney"]]
    assert found["jitney"] == found["dbus-daemon"]


def _whole(data: bytes, form: str) -> list[bytes]:
    import io

    if form == "--pcap":
        return [packet.data for packet in pcap.read(io.BytesIO(data))]
    messages = []
    while len(data) >= 16:
        order = "little" if data[:1] == b"l" else "big"
        size = 16 + (int.from_bytes(data[12:16], order) + 7 & ~7)  # type: ignore[arg-type]
        size += int.from_bytes(data[4:8], order)  # type: ignore[arg-type]
        messages.append(data[:size])
        data = data[size:]
    return messages


def _shapes(messages: list[bytes]) -> list[tuple[object, ...]]:
    shapes = []
    for data in messages:
        msg = Message()
        assert msg.load(data), data
        body = re.sub(rb"[0-9a-f]{32}", b"GUID", msg.body())
        shapes.append(
            (msg.type, msg.member, msg.sender, msg.destination, msg.path, msg.error_name,
             msg.reply_serial, msg.flags, body)
        )  # fmt: skip
    start = next(i for i, shape in enumerate(shapes) if shape[1] == b"Hello")
    end = next(i for i, shape in enumerate(shapes) if shape[1] == END)
    return shapes[start:end]


def test_busctl_monitor(tmp_path: Path) -> None:
    needs("busctl")
    found = {}
    for name, data in seen(tmp_path, ["busctl", "--address=ADDRESS", "monitor"]).items():
        text = re.sub(r"[0-9a-f]{32}", "GUID", data.decode())
        text = re.sub(r"Timestamp=.*|  UniqueName=.*|\x1b\[[\d;]*m", "", text)
        blocks = re.split(r"\n\n+", text.partition(f"Member={END.decode()}")[0])
        found[name] = [
            re.sub(r"Cookie=\d+", "", block) if "Sender=org.freedesktop.DBus" in block else block
            for block in blocks[next(i for i, b in enumerate(blocks) if "Member=Hello" in b) :]
        ]
    assert any("Member=Do" in block for block in found["jitney"])
    assert found["jitney"] == found["dbus-daemon"]


def test_busctl_capture(tmp_path: Path) -> None:
    needs("busctl")
    found = {}
    for name, data in seen(tmp_path, ["busctl", "--address=ADDRESS", "capture"]).items():
        found[name] = _shapes(_whole(data, "--pcap"))
    assert found["jitney"] == found["dbus-daemon"]


def test_bustle(tmp_path: Path) -> None:
    """What Bustle's recorder makes; it writes when it ends. A second connection of its own asks for
    names, before or after the two that talk come: only what these say is compared."""
    needs("bustle-pcap")
    given_time(lambda pause: bustle(tmp_path, pause), 1, 4, 15)


def bustle(tmp_path: Path, pause: int) -> None:
    found = {}
    for name, command in BUSES.items():
        recorded = tmp_path / f"{name}.pcap"
        with buses.running(command) as bus:
            address = bus.address.partition(",guid=")[0]
            words = ["sh", "-c", 'echo; exec bustle-pcap -q -a "$1" "$2"', "sh", address, recorded]
            words = [str(word) for word in words]
            with watched(bus, words, tmp_path / name, lambda: time.sleep(pause)):
                converse(bus)
            shapes = _shapes(_whole(recorded.read_bytes(), "--pcap"))
        called = next(shape for shape in shapes if shape[1] == b"Do")
        asked = next(shape for shape in shapes if shape[1] == b"GetId")
        talkers = {called[2]: "one", asked[2]: "two"}
        found[name] = [
            (kind, member, talkers.get(sender), talkers.get(destination), path, error)
            for kind, member, sender, destination, path, error, *_ in shapes
            if {sender, destination} & talkers.keys() and member != b"NameLost"
        ]
    assert (wire.CALL, b"Do", "one", None, b"/a", None) in found["jitney"]
    assert found["jitney"] == found["dbus-daemon"]


def test_a_monitor_that_does_not_read_costs_others_nothing(daemon: buses.Daemon) -> None:
    with RawClient(daemon.address) as monitor, RawClient(daemon.address) as one:
        monitor.hello()
        monitor.reply_to(
            monitor.driver(
                b"BecomeMonitor", "asu", [], 0, interface=b"org.freedesktop.DBus.Monitoring"
            )
        )
        one.hello()
        with RawClient(daemon.address) as two:
            two.hello()
            body = [bytes(1_000_000)]
            # More than any queue may hold; each of them has to arrive where it is sent to.
            for _ in range(100):
                serial = one.message(
                    destination=two.unique_name.encode(), path=b"/a", member=b"Do",
                    signature="ay", values=body,
                )  # fmt: skip
                while (got := two.receive()) is not None and got.member != "Do":
                    pass
                two.message(wire.RETURN, destination=one.unique_name.encode(), reply_serial=serial)
                assert one.reply_to(serial).type == wire.RETURN
        stats = b"org.freedesktop.DBus.Debug.Stats"
        mine = one.reply_to(
            one.driver(b"GetConnectionStats", "s", one.unique_name, interface=stats)
        )
        assert mine.body[0]["org.jitney.DroppedMessages"][1] == 0
