"""The client's codec, without a socket: there and back, and against the bus's own reading.

Invariant: what the client writes, `jitney.kdbus` reads as the same thing; bytes that nobody wrote
are a FormatError and never anything else.
"""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jitney.broker.kdbus import constants as c
from jitney.client import frames, items, rules
from jitney.client.envelope import Envelope, InMemfd, Off, Part, Vec
from jitney.client.frames import Answer, Fed, FormatError, Request, Splitter, Wake
from jitney.client.memory import Outbox
from jitney.kdbus import uapi
from jitney.kdbus.request import Parsed

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
I32 = st.integers(-1, (1 << 31) - 1)
NAMES = st.from_regex(r"[a-z]{1,8}\.[a-z]{1,8}", fullmatch=True)
TEXTS = st.binary(max_size=30).map(
    lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape")
)

requests = st.builds(
    Request,
    op=U16,
    serial=U32,
    body=st.binary(max_size=200),
    quiet=st.booleans(),
    frees=st.lists(U64, max_size=20).map(tuple),
    credit=st.integers(0, frames.CREDIT_MAX),
    tid=U32,
)
from_bus: Any = st.one_of(
    st.builds(
        Answer, op=st.integers(0, 0x107), serial=U32, error=U32, n_fds=U32,
        body=st.binary(max_size=100),
    ),
    st.builds(Fed, offset=U64, size=U64, flags=U64, lost=U64, n_fds=U32),
    st.just(Wake()),
)  # fmt: skip
parts: Any = st.one_of(
    st.builds(Vec, U64, U64), st.builds(Off, U64, U64), st.builds(InMemfd, U64, U64, I32)
)
envelopes = st.builds(
    Envelope,
    dst=U64,
    flags=U64,
    cookie=U64,
    timeout=U64,
    priority=st.integers(-(1 << 63), (1 << 63) - 1),
    payload_type=U64,
    src=U64,
    name=st.none() | NAMES.map(str.encode),
    bloom=st.none() | st.tuples(U64, st.binary(max_size=64)),
    parts=st.lists(parts, max_size=6),
    fds=st.lists(I32, max_size=7).map(tuple),
    others=st.lists(st.tuples(st.integers(0x9000, 0x9100), st.binary(max_size=40)), max_size=4),
)


@given(requests)
def test_requests(request: Request) -> None:
    frame = request.pack()
    assert Request.parse(frame) == request
    assert frame[request.base :] == request.body


@given(from_bus)
def test_what_the_bus_sends(sent: Any) -> None:
    assert frames.parse(sent.pack()) == sent


@given(st.lists(from_bus, max_size=8), st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_a_stream_is_cut(sent: list[Any], sizes: list[int]) -> None:
    data = b"".join(frame.pack() for frame in sent)
    splitter = Splitter()
    found = []
    at = turn = 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        found += splitter.feed(data[at : at + size])
        at += size
        turn += 1
    assert [frames.parse(frame) for frame in found] == sent


@given(st.binary(max_size=300))
def test_anything_else_is_refused(data: bytes) -> None:
    for parse in (
        frames.parse, Request.parse, Envelope.parse, items.metadata_of, Splitter().feed,
    ):  # fmt: skip
        try:
            parse(data)
        except FormatError:
            pass


@given(envelopes)
def test_envelopes(envelope: Envelope) -> None:
    data = envelope.pack()
    assert len(data) == envelope.size
    assert Envelope.parse(data) == envelope
    # Payload that follows is no part of it.
    assert Envelope.parse(data + b"payload") == envelope


numbers: Any = st.one_of(
    st.builds(items.Creds, *[U64] * 8),
    st.builds(items.Pids, U64, U64, U64),
    st.builds(items.Timestamp, U64, U64, U64),
    st.builds(items.Caps, U32, U64, U64, U64, U64),
    st.builds(items.Audit, U32, U32),
)


@given(
    st.builds(
        items.Metadata,
        creds=st.none() | st.builds(items.Creds, *[U64] * 8),
        pids=st.none() | st.builds(items.Pids, U64, U64, U64),
        timestamp=st.none() | st.builds(items.Timestamp, U64, U64, U64),
        groups=st.none() | st.lists(U64, max_size=5).map(tuple),
        names=st.lists(st.builds(items.OwnedName, U64, NAMES), max_size=3),
        tid_comm=st.none() | TEXTS,
        exe=st.none() | TEXTS,
        command_line=st.none() | st.lists(TEXTS, min_size=1, max_size=4).map(tuple),
        caps=st.none() | st.builds(items.Caps, U32, U64, U64, U64, U64),
        audit=st.none() | st.builds(items.Audit, U32, U32),
        description=st.none() | TEXTS,
    )
)
def test_metadata(told: items.Metadata) -> None:
    assert items.metadata_of(told.data()) == told


@given(
    st.one_of(
        st.builds(items.IdAdded, U64, U64),
        st.builds(items.IdRemoved, U64, U64),
        st.builds(items.NameAdded, NAMES, U64, U64, U64, U64),
        st.builds(items.NameRemoved, NAMES, U64, U64, U64, U64),
        st.builds(items.NameChanged, NAMES, U64, U64, U64, U64),
        st.builds(items.ReplyDead),
        st.builds(items.ReplyTimedOut),
    )
)
def test_notifications(notice: items.Notification) -> None:
    found = items.notification_of(notice.KIND, notice.data())
    assert found == notice
    assert type(found) is type(notice)


# The bus reads it the same way


def read_by_the_bus(name: str, data: bytes) -> Parsed:
    parsed = Parsed(uapi.BY_NAME[name] if name else uapi.MESSAGE_FORM, 0, bytearray(data))
    parsed.parse()
    return parsed


RULES = (
    rules.BloomMask((bytes(8), bytes(8))),
    rules.FromName("org.example"),
    rules.FromId(7),
    rules.ToId(7),
    rules.OnIdAdded(),
    rules.OnIdRemoved(3),
    rules.OnName(items.NameAdded),
    rules.OnName(items.NameRemoved, "org.example"),
    rules.OnName(items.NameChanged, "org.example", 3, 4),
)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_is_taken_by_the_bus(rule: rules.Rule) -> None:
    data = frames.command("MATCH_ADD", 0, struct.pack("<Q", 9), rule.pack())
    parsed = read_by_the_bus("MATCH_ADD", data)
    assert parsed.u64(24) == 9
    assert len(parsed.order) == 1


def test_a_policy_is_taken_by_the_bus() -> None:
    from jitney.kdbus.commands import policy_rules

    policy = [
        ("org.example", [rules.Access(rules.Right.OWN, rules.Whom.USER, 5)]),
        ("org.example.*", [rules.Access(rules.Right.TALK)]),
    ]
    data = frames.command("ENDPOINT_UPDATE", items=rules.pack_policy(policy))
    assert policy_rules(read_by_the_bus("ENDPOINT_UPDATE", data)) == [
        (b"org.example", [(c.FOR_USER, c.OWN, 5)]),
        (b"org.example.*", [(c.FOR_WORLD, c.TALK, 0)]),
    ]


@given(
    st.lists(st.builds(Vec, st.integers(1, 1 << 20), U64), max_size=4),
    NAMES,
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
def test_a_message_is_taken_by_the_bus(sent: list[Part], name: str, fds: list[int]) -> None:
    envelope = Envelope(0, 0, 5, name=name.encode(), payload_type=1)
    envelope.parts, envelope.fds = sent, tuple(fds)
    parsed = read_by_the_bus("", envelope.pack())
    assert parsed.text(c.ITEM_DST_NAME) == name.encode()
    assert len(parsed.found.get(c.ITEM_PAYLOAD_VEC, ())) == len(sent)
    assert parsed.get(c.ITEM_FDS) == struct.pack(f"<{len(fds)}i", *fds)


def test_an_item_that_is_all_of_a_commands_limit() -> None:
    with pytest.raises(FormatError):
        frames.command("MATCH_ADD", items=items.pack(c.ITEM_BLOOM_MASK, bytes(c.CMD_MAX_SIZE)))
    with pytest.raises(FormatError):
        frames.head(frames.OPS["SEND"], 1, frames.LENGTH_MAX)


# The outbox


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 400)), max_size=80))
def test_the_outbox_keeps_what_was_not_answered(steps: list[tuple[bool, int]]) -> None:
    outbox = Outbox(1000)
    try:
        held: dict[int, tuple[int, bytes]] = {}
        serial = 0
        for answered, number in steps:
            if answered and held:
                # An answer to any of them says that those before it were read, too.
                serials = sorted(held)
                which = serials[number % len(serials)]
                outbox.answered(which)
                held = {key: value for key, value in held.items() if key > which}
            else:
                serial += 1
                data = bytes([serial % 251]) * number
                at = outbox.write([memoryview(data)], number)
                if at is not None:
                    outbox.hold(serial)
                    held[serial] = (at, data)
                else:
                    assert held, "an empty outbox has room for this"
            for at, data in held.values():
                assert outbox.map[at : at + len(data)] == data
    finally:
        outbox.close()
