"""The core's tracer: what it notes, what it leaves out, and what becomes of one that does not read.

What is written is held against the parser of messages and against marshalling that knows nothing
of it.
"""

from __future__ import annotations

from typing import Any

import pytest
from corebus import call, join, make_bus, message, received, signal

from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.match import Rule
from jitney.broker.message import Message
from jitney.broker.trace import RECORD, ROOM, Tracer
from jitney.compat import matchrule, wire
from jitney.compat.trace import records
from jitney.compat.trace.records import Record

HEAD = wire.message(
    wire.SIGNAL, 1, flags=1, path=b"/t", interface=b"t.T", member=b"Records",
    signature=f"ua{RECORD}",
)  # fmt: skip


class Tracing:
    """A tracer on a bus of its own, and the times that it was `ready`."""

    def __init__(self, *rules: str, uid: int = 1000, **options: Any) -> None:
        self.bus = make_bus()
        self.ready: list[Tracer] = []
        self.conn = join(self.bus, uid)
        wanted = [matchrule.parse(text.encode()) for text in rules]
        self.conn.tracer = self.tracer = Tracer(
            self.bus, self.conn, HEAD, self.ready.append, wanted, **options
        )
        listening = [*wanted, Rule(2), Rule(3)] if wanted else [Rule()]
        self.bus.become_monitor(self.conn, listening)
        self.read()

    def read(self) -> tuple[int, list[Record]]:
        """Ships, and reads what came as any client would, and as our own does."""
        self.tracer.ship()
        lost, found = 0, []
        for msg in received(self.conn):
            if msg.member != b"Records":
                continue
            body = msg.body()
            count, listed = wire.unmarshal(msg.signature, body, False)
            same, some = records.read(body, 0)
            assert same == count
            for plain, record in zip(listed, some, strict=True):
                assert plain[11:20] == record[11:20]
                assert plain[5:9] == record[5:9]
                assert plain[20] == record.payload
            lost += count
            found += some
        return lost, found

    def members(self) -> list[str]:
        return [record.member or f"re {record.reply_serial}" for record in self.read()[1]]


def pair(bus: Bus) -> tuple[Connection, Connection]:
    return join(bus, 1001), join(bus, 1002)


def reply(dest: Connection, serial: int) -> Message:
    return message(wire.RETURN, 77, reply_serial=serial, destination=dest.unique_name)


def test_fields() -> None:
    trace = Tracing()
    one, two = pair(trace.bus)
    trace.bus.request_name(two, b"com.example.Two", 0)
    msg = message(
        wire.CALL, 9, path=b"/a/b", interface=b"com.example.I", member=b"Do",
        destination=b"com.example.Two", signature="s", values=("text",),
    )  # fmt: skip
    trace.bus.dispatch(one, msg)
    trace.bus.dispatch(two, reply(one, 9))
    trace.bus.dispatch(two, message(wire.ERROR, 8, reply_serial=4, error_name=b"a.b",
                                    destination=one.unique_name))  # fmt: skip
    sent, answer, error = trace.read()[1]
    assert (sent.kind, sent.type, sent.serial, sent.size) == (1, wire.CALL, 9, msg.size)
    assert (sent.sender, sent.receiver) == (one.unique_name.decode(), two.unique_name.decode())
    assert (sent.sender_uid, sent.receiver_uid) == (1001, 1002)
    assert (sent.destination, sent.path, sent.what) == (
        "com.example.Two", "/a/b", "com.example.I.Do",
    )  # fmt: skip
    assert (answer.type, answer.reply_serial, answer.destination) == (2, 9, sent.sender)
    assert sent.time <= answer.time <= error.time
    assert error.error == "a.b"
    assert not sent.payload


def test_payload_whole_and_cut() -> None:
    trace = Tracing(payload=1 << 20)
    one, _ = pair(trace.bus)
    msg = signal(signature="ay", values=(bytes(100_000),))
    trace.bus.dispatch(one, msg)
    (record,) = trace.read()[1]
    assert record.payload == msg.wire()
    assert not record.cut
    cut = Tracing(payload=40)
    one, _ = pair(cut.bus)
    cut.bus.dispatch(one, msg)
    (record,) = cut.read()[1]
    assert record.payload == msg.wire()[:40]
    assert record.cut == 2
    assert record.size == msg.size


def test_a_path_without_end_is_cut() -> None:
    trace = Tracing()
    one, _ = pair(trace.bus)
    trace.bus.dispatch(one, signal(path=b"/a" * 40_000))
    (record,) = trace.read()[1]
    assert record.cut == 1
    assert record.path == "/a" * 2048


def test_replies_come_with_their_calls_alone() -> None:
    trace = Tracing("member='M'")
    one, two = pair(trace.bus)
    other = message(
        wire.CALL, 5, path=b"/a", interface=b"com.example.I", member=b"N",
        destination=two.unique_name,
    )  # fmt: skip
    trace.bus.dispatch(one, call(two.unique_name, 4))
    trace.bus.dispatch(one, other)
    trace.bus.dispatch(two, reply(one, 5))
    trace.bus.dispatch(two, reply(one, 4))
    trace.bus.dispatch(two, reply(one, 4))
    assert trace.members() == ["M", "re 4"]


def test_a_rule_that_replies_fit_finds_all_of_them() -> None:
    bus_name = "type='method_return'"
    trace = Tracing(bus_name)
    one, two = pair(trace.bus)
    trace.bus.dispatch(one, call(two.unique_name, 4))
    trace.bus.dispatch(two, reply(one, 4))
    assert trace.members() == ["re 4"]


def test_sampling_keeps_calls_and_replies_together() -> None:
    trace = Tracing(every=3)
    one, two = pair(trace.bus)
    for serial in range(1, 10):
        trace.bus.dispatch(one, call(two.unique_name, serial))
    for serial in range(1, 10):
        trace.bus.dispatch(two, reply(one, serial))
    found = trace.read()[1]
    calls = [record.serial for record in found if record.type == 1]
    replies = [record.reply_serial for record in found if record.type == 2]
    assert calls == replies
    assert len(calls) == 3


def test_users() -> None:
    trace = Tracing(users=frozenset({1002}))
    one, two = pair(trace.bus)
    three = join(trace.bus, 1003)
    trace.bus.dispatch(one, call(two.unique_name, 1))
    trace.bus.dispatch(two, call(three.unique_name, 2))
    trace.bus.dispatch(one, call(three.unique_name, 3))
    assert [record.serial for record in trace.read()[1]] == [1, 2]


def test_refusals() -> None:
    trace = Tracing(judged_only=True)
    one, two = pair(trace.bus)
    msg = call(two.unique_name, 1)
    trace.bus.dispatch(one, msg)
    trace.tracer.verdict(msg, one, two, b"x.Denied", b"rule: f:1")
    (record,) = trace.read()[1]
    assert (record.kind, record.verdict, record.why) == (2, "x.Denied", "rule: f:1")


def test_ready_is_said_once_until_it_ships() -> None:
    trace = Tracing()
    one, _ = pair(trace.bus)
    trace.read()
    trace.ready.clear()
    for _ in range(10):
        trace.bus.dispatch(one, signal())
    assert len(trace.ready) == 1
    assert len(trace.read()[1]) == 10


def test_a_batch_does_not_wait_when_it_is_large() -> None:
    trace = Tracing()
    one, _ = pair(trace.bus)
    for _ in range(1000):
        trace.bus.dispatch(one, signal())
    assert trace.conn.queue.size > 0
    assert len(trace.read()[1]) == 1000


def test_one_that_does_not_read_loses_and_is_told() -> None:
    trace = Tracing(payload=65536)
    one, two = pair(trace.bus)
    msg = signal(signature="ay", values=(bytes(50_000),))
    for _ in range(200):
        trace.bus.dispatch(one, msg)
    assert trace.conn.queue.size <= ROOM + 2 * 65536
    assert trace.tracer.lost > 50
    # Others do not notice: nothing waits at their expense, nothing of theirs was dropped.
    assert one.user.bytes == two.user.bytes == 0
    assert one.dropped == two.dropped == 0
    _, first = trace.read()
    # It reads again: what comes next says what is missing.
    trace.bus.dispatch(one, msg)
    lost, second = trace.read()
    assert len(first) + lost + len(second) == 201
    assert lost > 50


def test_told_even_if_nothing_follows() -> None:
    trace = Tracing(payload=65536)
    one, _ = pair(trace.bus)
    msg = signal(signature="ay", values=(bytes(50_000),))
    for _ in range(200):
        trace.bus.dispatch(one, msg)
    _, first = trace.read()
    lost, second = trace.read()
    assert len(first) + lost + len(second) == 200


def test_calls_without_replies_do_not_pile_up() -> None:
    from jitney.broker.trace import FOLLOWED

    trace = Tracing("member='M'")
    bus = make_bus(max_replies_per_connection=10**6)
    assert bus is not None
    one, two = pair(trace.bus)
    # Not routed, which would be limited: noted alone.
    for serial in range(1, FOLLOWED + 100):
        trace.tracer.note(call(two.unique_name, serial), one, two)
        if serial % 100 == 0:
            trace.read()
    trace.read()
    trace.tracer.note(reply(one, FOLLOWED + 50), two, one)
    trace.tracer.note(reply(one, 5), two, one)
    assert trace.members() == [f"re {FOLLOWED + 50}"]


def test_after_its_end_nothing_is_sent() -> None:
    trace = Tracing()
    one, _ = pair(trace.bus)
    trace.bus.dispatch(one, signal())
    trace.bus.disconnect(trace.conn)
    trace.tracer.ship()
    assert trace.conn.queue.size == 0
    assert not trace.bus.monitors
    trace.bus.dispatch(one, signal())


@pytest.mark.parametrize("body", [b"", b"\0" * 7, b"\0\0\0\0\1\0\0\0", b"\0\0\0\0\4\0\0\0abcd"])
def test_nonsense_is_no_record(body: bytes) -> None:
    with pytest.raises(ValueError, match="record"):
        records.read(body, 0)


def test_one_that_wants_everything_is_not_alone_for_long() -> None:
    trace = Tracing()
    one, two = pair(trace.bus)
    trace.bus.dispatch(one, signal())
    other = join(trace.bus)
    trace.bus.become_monitor(other, [Rule(4)])
    received(other)
    trace.read()
    trace.bus.dispatch(one, signal(2))
    trace.bus.dispatch(one, call(two.unique_name, 3))
    assert trace.members() == ["S", "M"]
    assert [msg.member for msg in received(other)] == [b"S"]
    trace.bus.disconnect(other)
    trace.bus.dispatch(one, signal(4))
    assert trace.members() == ["S"]
