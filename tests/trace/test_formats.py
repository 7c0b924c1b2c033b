"""What records look like, paired and written; no bus is there."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from jitney.broker.message import Message
from jitney.compat import wire
from jitney.compat.trace import pcap
from jitney.compat.trace.chrome import Chrome
from jitney.compat.trace.lines import JsonLines, Lines
from jitney.compat.trace.pairing import KEPT, Pairs
from jitney.compat.trace.pcap import Pcap
from jitney.compat.trace.records import JUDGED, Record
from jitney.compat.trace.rewrite import rewritten

EMPTY = Record(0, 1, 4, 0, 0, 1, 0, 100, 0, None, None, *[""] * 9, b"")  # type: ignore[arg-type]
CALL = EMPTY._replace(
    time=10**18, type=1, serial=5, sender=":1.1", sender_uid=7, receiver=":1.2",
    destination="com.example.A", path="/a", interface="com.example.I", member="Do",
)  # fmt: skip
REPLY = EMPTY._replace(
    time=10**18 + 2_500_000, type=2, serial=9, reply_serial=5, sender=":1.2", destination=":1.1",
    receiver=":1.1",
)  # fmt: skip
SIGNAL = EMPTY._replace(sender=":1.2", path="/a", interface="com.example.I", member="Changed")
REFUSED = CALL._replace(
    kind=JUDGED, verdict="org.freedesktop.DBus.Error.AccessDenied", why="rule: f.conf:3"
)


def written(kind: Any, *records: Record) -> str:
    out = io.StringIO()
    writer = kind(out)
    pairs = Pairs()
    for record in records:
        writer.record(record, pairs.call_of(record))
    writer.lost(3)
    writer.close()
    return out.getvalue()


def test_pairs() -> None:
    pairs = Pairs()
    assert pairs.call_of(CALL) is None
    assert pairs.call_of(CALL._replace(serial=6, flags=1)) is None
    assert pairs.call_of(REPLY._replace(destination=":1.9")) is None
    assert pairs.call_of(REPLY) is CALL
    assert pairs.call_of(REPLY) is None
    assert (pairs.answered, list(pairs.unanswered)) == (1, [])


def test_pairs_do_not_grow_without_end() -> None:
    pairs = Pairs()
    for serial in range(1, KEPT + 11):
        pairs.call_of(CALL._replace(serial=serial))
    assert len(pairs.open) == KEPT
    assert pairs.call_of(REPLY._replace(reply_serial=1)) is None


def test_lines() -> None:
    call, reply, refused, lost = written(Lines, CALL, REPLY, REFUSED).splitlines()
    assert call.endswith(
        "call     :1.1 -> com.example.A (:1.2)  /a  com.example.I.Do  #5  100 bytes"
    )
    assert reply.endswith("reply    :1.2 -> :1.1  com.example.I.Do  #5  100 bytes  2.500 ms")
    assert "REFUSED" in refused
    assert "AccessDenied: rule: f.conf:3" in refused
    assert "3 records lost" in lost


def test_arguments_in_lines() -> None:
    data = wire.message(wire.SIGNAL, 1, path=b"/a", interface=b"a.b", member=b"C", signature="su",
                        body=wire.marshal("su", ("x\ny", 3)))  # fmt: skip
    text = written(Lines, SIGNAL._replace(payload=data))
    assert "    'x\\ny'\n    3\n" in text
    assert "the first 20 bytes" in written(Lines, SIGNAL._replace(payload=data[:20], cut=2))


def test_json_lines() -> None:
    found = [json.loads(line) for line in written(JsonLines, CALL, REPLY, REFUSED).splitlines()]
    call, reply, refused, lost = found
    assert call["type"] == "method_call"
    assert call["sender_uid"] == 7
    assert reply["latency_ns"] == 2_500_000
    assert reply["call"]["member"] == "Do"
    assert refused["event"] == "refused"
    assert refused["why"] == "rule: f.conf:3"
    assert lost == {"event": "lost", "count": 3}


def test_chrome() -> None:
    trace = json.loads(written(Chrome, CALL, SIGNAL, REPLY, REFUSED))
    events = trace["traceEvents"]
    begin, end = (next(e for e in events if e["ph"] == kind) for kind in "be")
    assert end["ts"] - begin["ts"] == pytest.approx(2500, abs=1)
    assert (begin["id"], begin["pid"]) == (end["id"], end["pid"])
    named = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert named[begin["pid"]] == "com.example.A (:1.2)"
    assert sorted(e["cat"] for e in events if e["ph"] == "i") == ["refused", "signal"]
    assert json.loads(written(Chrome))["traceEvents"]


def sent(big: bool) -> bytes:
    """A call whose sender lies about who it is."""
    import rawclient

    return rawclient.build(
        wire.CALL, 4,
        [(1, "o", "/a"), (7, "s", ":1.99"), (3, "s", "Do"), (6, "s", ":1.2"), (77, "u", 1)],
        "sa{sv}", ["text :1.1", {"k": ("u", 3)}], big_endian=big,
    )  # fmt: skip


@pytest.mark.parametrize("big", [False, True])
def test_pcap_has_the_true_sender(big: bool) -> None:
    data = sent(big)
    out = io.BytesIO()
    writer = Pcap(out)
    writer.record(CALL._replace(payload=data, size=len(data)), None)
    writer.record(REFUSED._replace(payload=data), None)
    (packet,) = pcap.read(io.BytesIO(out.getvalue()))
    assert packet.time == CALL.time
    msg = Message()
    assert msg.load(packet.data)
    assert (msg.sender, msg.destination, msg.serial) == (b":1.1", b":1.2", 4)
    assert wire.unmarshal(msg.signature, msg.body(), msg.big_endian) == [
        "text :1.1", {"k": ("u", 3)},
    ]  # fmt: skip


def test_pcap_of_what_was_cut() -> None:
    data = sent(False)
    out = io.BytesIO()
    Pcap(out).record(CALL._replace(payload=data[:50], size=len(data), cut=2), None)
    (packet,) = pcap.read(io.BytesIO(out.getvalue()))
    assert (packet.data, packet.size) == (data[:50], len(data))


@pytest.mark.parametrize("data", [b"", b"x" * 24, b"\xd4\xc3\xb2\xa1" + bytes(20)])
def test_no_pcap_of_ours(data: bytes) -> None:
    with pytest.raises(ValueError, match="pcap"):
        list(pcap.read(io.BytesIO(data)))


def test_pcap_that_ends_early() -> None:
    out = io.BytesIO()
    writer = Pcap(out)
    for _ in range(2):
        writer.record(CALL._replace(payload=sent(False)), None)
    assert len(list(pcap.read(io.BytesIO(out.getvalue()[:-5])))) == 1


@pytest.mark.parametrize("big", [False, True])
def test_rewritten(big: bool) -> None:
    msg = Message()
    assert msg.load(pcap.with_sender(sent(big), ":1.1"))
    new = Message()
    assert new.load(rewritten(msg, {":1.1": ":1.7", ":1.2": ":1.8"}))
    assert (new.sender, new.destination, new.path) == (None, b":1.8", b"/a")
    # What peers say to each other is not looked into.
    assert new.body() == msg.body()
    assert new.big_endian == big


def test_rewritten_rules() -> None:
    msg = Message()
    rule = "type='signal',sender=':1.1',arg0=':1.10'"
    assert msg.load(
        wire.message(wire.CALL, 4, path=b"/", member=b"AddMatch", signature="s", sender=b":1.1",
                     destination=b"org.freedesktop.DBus", body=wire.string(rule))
    )  # fmt: skip
    new = Message()
    assert new.load(rewritten(msg, {":1.1": ":1.20"}))
    assert new.string_arg(0) == b"type='signal',sender=':1.20',arg0=':1.10'"
