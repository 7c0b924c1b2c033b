"""The load notices whatever a broker does wrong, and every scenario runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from started import broker

pytest.importorskip("jitney.bench.link", reason="the load is compiled code")

from jitney.bench import load, verdict, wire
from jitney.bench.link import Histogram, Link, LoadError
from jitney.bench.run import Plan, Runner
from jitney.bench.scenarios import GROWTHS, SCENARIOS, Scenario
from jitney.bench.special import SPECIALS

BODY = wire.byte_array(20_000)


def forwarded(sender: bytes, serial: int, body: bytes = BODY, kind: int = wire.SIGNAL) -> bytes:
    """A signal as a broker would pass it on."""
    fields = [
        wire.field(1, b"o", wire.PATH),
        wire.field(2, b"s", wire.INTERFACE),
        wire.field(3, b"s", b"Tick"),
        wire.field(8, b"g", b"ay"),
        wire.field(7, b"s", sender),
    ]
    if kind != wire.SIGNAL:
        fields = [*fields[3:], wire.field(5, b"u", struct.pack("<I", serial))]
    return wire.message(kind, fields, body, serial)


class Liar:
    """Lets two clients in; when the first says something, the second gets `answers`.

    A process of its own, since the load keeps Python to itself."""

    def __init__(self, folder: Path, answers: list[bytes]) -> None:
        self.path = str(folder / "bus")
        self.answers = answers
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(self.path)
        self.sock.listen()
        self.pid = os.fork()
        if not self.pid:
            try:
                self.run()
            finally:
                os._exit(0)

    def run(self) -> None:
        clients = []
        for i in range(2):
            client, _ = self.sock.accept()
            data = b""
            while not data.endswith(wire.hello()):
                data += client.recv(4096)
            name = wire.string(b":1.%d" % i)
            fields = [wire.field(5, b"u", struct.pack("<I", 1)), wire.field(8, b"g", b"s")]
            client.sendall(b"OK 00\r\n" + wire.message(wire.RETURN, fields, name))
            clients.append(client)
        with contextlib.suppress(OSError):
            clients[0].recv(4096)
            clients[1].sendall(b"".join(self.answers))
            if len(self.answers) > 1 or self.answers[0] != LIES["end"][0]:
                signal.pause()
        for client in clients:
            client.close()


@contextlib.contextmanager
def two_links(folder: Path, answers: list[bytes]) -> Iterator[tuple[Link, Link]]:
    """A sender of signals and somebody who expects them, on a broker that answers like this."""
    liar = Liar(folder, answers)
    try:
        sender, receiver = Link(liar.path), Link(liar.path)
        sender.prepare(wire.signal(b"Tick", b"ay", BODY))
        sender.expect(wire.SIGNAL, sender.name, BODY)
        receiver.expect(wire.SIGNAL, sender.name, BODY)
        yield sender, receiver
    finally:
        liar.sock.close()
        os.kill(liar.pid, signal.SIGKILL)
        os.waitpid(liar.pid, 0)


def damaged(at: int) -> bytes:
    body = bytearray(BODY)
    body[at] ^= 1
    return bytes(body)


LIES = {
    "order": [forwarded(b":1.0", 10), forwarded(b":1.0", 12)],
    "twice": [forwarded(b":1.0", 10), forwarded(b":1.0", 10)],
    "sender": [forwarded(b":1.1", 10)],
    "kind": [forwarded(b":1.0", 10, kind=wire.RETURN)],
    "error": [forwarded(b":1.0", 10, kind=wire.ERROR)],
    "short": [forwarded(b":1.0", 10, BODY[:-4])],
    "first byte": [forwarded(b":1.0", 10, damaged(4))],
    "on a page": [forwarded(b":1.0", 10, damaged(8192))],
    "last byte": [forwarded(b":1.0", 10, damaged(len(BODY) - 1))],
    "junk": [b"junk" * 8],
    "end": [forwarded(b":1.0", 10)],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found(tmp_path: Path, lie: str) -> None:
    with two_links(tmp_path, LIES[lie]) as (sender, receiver), pytest.raises(LoadError):
        load.signals(sender, [receiver], [], 1, 1, 5.0, Histogram())


def test_every_byte_of_every_sixteenth_body(tmp_path: Path) -> None:
    answers = [forwarded(b":1.0", n, damaged(5001) if n == 16 else BODY) for n in range(10, 17)]
    with two_links(tmp_path, answers) as (sender, receiver):
        with pytest.raises(LoadError, match="another body"):
            load.signals(sender, [receiver], [], 1, 1, 5.0, Histogram())
        assert receiver.received == 6


def test_percentiles() -> None:
    histogram = Histogram()
    for value in range(1, 1001):
        histogram.record(value)
    assert histogram.count == 1000
    for share in (0.01, 0.5, 0.99, 0.999):
        assert histogram.percentile(share) == pytest.approx(1000 * share, rel=0.02, abs=1.1)


SMALL = [growth.at(growth.xs[1]) for growth in GROWTHS]


@pytest.mark.parametrize("scenario", [*SCENARIOS, *SMALL], ids=lambda s: s.id or s.title)
def test_every_scenario_runs_twice(scenario: Scenario) -> None:
    with (
        broker("jitney").start(scenario.config) as running,
        scenario.open(running.path) as op,
    ):
        for _ in range(2):
            histogram = Histogram()
            count, seconds = op(0.03, histogram)
            assert count > 0
            assert seconds > 0
            assert histogram.count > 0


def test_a_run_has_all_figures(tmp_path: Path) -> None:
    plan = Plan([broker("jitney")], 2, 0.05, 1, frozenset({"roundtrip"}), libraries=False)
    results = Runner(plan).run()
    rows = results.scenarios["roundtrip"].rounds["jitney"]
    assert len(rows) == 2
    for name in ("rate", "cpu_us", "switches", "p50_us", "p99_us", "p999_us", "peak_kb"):
        assert rows[0][name] > 0
    text = verdict.text(results)
    assert "missing  roundtrip" in text
    assert text.endswith("0 of 3 points of the bar reached")


@pytest.mark.parametrize("special", SPECIALS, ids=lambda special: special.id)
def test_special_measurements(special: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from jitney.bench import special as module

    monkeypatch.setattr(module, "SETTLE", 0.1)
    monkeypatch.setattr(module, "IDLE", 100)
    monkeypatch.setattr(module, "FLOOD_BYTES", 5_000_000)
    row = special.measure(broker("jitney"), os.sched_getaffinity(0))  # type: ignore[attr-defined]
    assert row
    if "arrived" in row:
        assert row["arrived"] > 4_900_000
