"""Messages: read as dbus-fast reads them, judged as libdbus judges them, forwarded untouched."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import io
from typing import Any

import corebus
import pytest
from dbus_fast import Message as FastMessage
from dbus_fast import MessageType, Variant
from hypothesis import given, settings
from hypothesis import strategies as st
from rawclient import build

from jitney.broker.mem import COMPILED
from jitney.broker.message import Message
from jitney.compat import wire

try:
    from dbus_fast.unmarshaller import Unmarshaller
except ImportError:  # where it has been since dbus-fast 5.1
    from dbus_fast._private.unmarshaller import Unmarshaller

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
PATHS = st.sampled_from(["/", "/a", "/a/b_c/D9", "/org/freedesktop/DBus"])
SIGNATURES = st.sampled_from(["", "s", "a{sv}", "(ii)aas", "ybnqiuxtdsog"])
BASIC: dict[str, st.SearchStrategy[Any]] = {
    "y": st.integers(0, 255),
    "b": st.booleans(),
    "n": st.integers(-(2**15), 2**15 - 1),
    "q": st.integers(0, 2**16 - 1),
    "i": st.integers(-(2**31), 2**31 - 1),
    "u": st.integers(0, 2**32 - 1),
    "x": st.integers(-(2**63), 2**63 - 1),
    "t": st.integers(0, 2**64 - 1),
    "d": st.floats(allow_nan=False),
    "s": TEXT,
    "o": PATHS,
    "g": SIGNATURES,
}
TYPES = st.recursive(
    st.sampled_from("ybnqiuxtdsogv"),
    lambda inner: (
        inner.map(lambda t: "a" + t)
        | st.lists(inner, min_size=1, max_size=3).map(lambda ts: "(" + "".join(ts) + ")")
        | st.tuples(st.sampled_from("sunyo"), inner).map(lambda kv: "a{" + "".join(kv) + "}")
    ),
    max_leaves=5,
)


def value_of(draw: st.DrawFn, signature: str) -> Any:
    """A value as dbus-fast takes it."""
    code = signature[0]
    if code == "v":
        inner = draw(st.sampled_from(["s", "i", "as", "(yd)", "a{su}"]))
        return Variant(inner, value_of(draw, inner))
    if signature.startswith("a{"):
        keys = draw(st.lists(BASIC[signature[2]], max_size=3, unique=True))
        return {key: value_of(draw, signature[3:-1]) for key in keys}
    if signature == "ay":
        return draw(st.binary(max_size=20))
    if code == "a":
        return [value_of(draw, signature[1:]) for _ in range(draw(st.integers(0, 3)))]
    if code == "(":
        return [value_of(draw, part) for part in wire.split_signature(signature[1:-1])]
    return draw(BASIC[code])


@st.composite
def messages(draw: st.DrawFn) -> FastMessage:
    parts = draw(st.lists(TYPES, max_size=4))
    kind = draw(st.sampled_from(list(MessageType)))
    answers = kind in (MessageType.METHOD_RETURN, MessageType.ERROR)
    return FastMessage(
        message_type=kind,
        destination=draw(st.sampled_from([":1.1", "com.example.A"])),
        path=None if answers else draw(PATHS),
        interface=None if answers else draw(st.sampled_from(["a.b", "com.example.Some_1"])),
        member=None if answers else draw(st.sampled_from(["M", "Do_it9"])),
        error_name="com.example.Error" if kind is MessageType.ERROR else None,
        reply_serial=draw(st.integers(1, 2**32 - 1)) if answers else 0,
        serial=draw(st.integers(1, 2**32 - 1)),
        signature="".join(parts),
        body=[value_of(draw, part) for part in parts],
    )


def text(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


@settings(max_examples=300, deadline=None)
@given(messages())
def test_round_trip_against_dbus_fast(sent: FastMessage) -> None:
    data = bytes(sent._marshall(False))
    msg = Message()
    assert msg.load(data)
    assert msg.type == sent.message_type.value
    assert (msg.serial, msg.reply_serial) == (sent.serial, sent.reply_serial or 0)
    assert msg.path == text(sent.path)
    assert msg.interface == text(sent.interface)
    assert msg.member == text(sent.member)
    assert msg.error_name == text(sent.error_name)
    assert msg.destination == text(sent.destination)
    assert msg.signature == sent.signature.encode()
    bus = corebus.make_bus()
    a, b = corebus.join(bus), corebus.join(bus)
    bus.request_name(b, b"com.example.A", 0)
    bus.dispatch(a, msg)
    forwarded = b.queue.peek()
    got = Unmarshaller(io.BytesIO(forwarded)).unmarshall()
    assert got is not None
    assert got.sender == ":1.0"
    original = Unmarshaller(io.BytesIO(data)).unmarshall()
    assert original is not None
    assert got.body == original.body
    assert got.destination == sent.destination
    # The body goes through as it came, byte for byte.
    assert forwarded.endswith(data[len(data) - msg.body_len :])
    assert msg.body() == data[len(data) - msg.body_len :]


@functools.cache
def libdbus() -> Any:
    name = ctypes.util.find_library("dbus-1") or "libdbus-1.so.3"
    try:
        lib = ctypes.CDLL(name)
    except OSError:
        pytest.skip("libdbus is not installed")
    lib.dbus_message_demarshal.restype = ctypes.c_void_p
    lib.dbus_message_demarshal.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]
    lib.dbus_message_unref.argtypes = [ctypes.c_void_p]
    return lib


FIELDS = st.lists(
    st.sampled_from(
        [
            (1, "o", "/a"),
            (1, "s", "/a"),
            (1, "o", "/org/freedesktop/DBus/Local"),
            (2, "s", "a.b"),
            (2, "s", "a"),
            (2, "s", "a.9"),
            (2, "s", "org.freedesktop.DBus.Local"),
            (3, "s", "M"),
            (3, "s", "9M"),
            (4, "s", "a.b"),
            (5, "u", 7),
            (5, "u", 0),
            (6, "s", "a.b-c"),
            (6, "s", ":1.9"),
            (6, "s", ":"),
            (6, "s", "a"),
            (7, "s", ":1.2"),
            (7, "s", "."),
            (8, "g", "u"),
            (42, "v", ("s", "x")),
            (42, "a{sv}", {"k": ("u", 1)}),
        ]
    ),
    max_size=6,
)


@settings(max_examples=1500 if COMPILED else 500, deadline=None)
@given(
    st.one_of(
        st.builds(
            build,
            st.integers(0, 6),
            st.integers(0, 2),
            FIELDS.map(lambda fields: [f for f in fields if f[0] != 8]),
            st.sampled_from(["", "s", "as", "a{sv}", "(yv)", "bb", "aub"]),
            st.just(()),
            flags=st.integers(0, 255),
            big_endian=st.booleans(),
            version=st.sampled_from([1, 1, 1, 2]),
            body=st.binary(max_size=24) | st.just(b"\1\0\0\0x\0"),
        ),
        messages().map(lambda m: bytes(m._marshall(False))),
    ),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3),
)
@pytest.mark.weakness("CVE-2022-42010", "CVE-2022-42011")
def test_same_verdict_as_libdbus(data: bytes, damage: list[tuple[int, int]]) -> None:
    lib = libdbus()
    broken = bytearray(data)
    for where, byte in damage:
        broken[where % len(broken)] = byte
    data = bytes(broken)
    msg = Message()
    ours = msg.load(data)
    theirs = lib.dbus_message_demarshal(data, len(data), None)
    if theirs:
        lib.dbus_message_unref(theirs)
    if ours and msg.n_fds:
        return  # without the descriptors libdbus does not take it
    if ours and not theirs and 10 in field_codes(data):
        return  # a field of a later libdbus than the specification, which may check its type
    assert ours == bool(theirs)


def field_codes(data: bytes) -> set[int]:
    size = int.from_bytes(data[12:16], "big" if data[:1] == b"B" else "little")
    return set(data[16 : 16 + size : 8])


@pytest.mark.parametrize("big", [False, True])
def test_unknown_fields_and_sender_are_cut_out(big: bool) -> None:
    bus = corebus.make_bus()
    a, b = corebus.join(bus), corebus.join(bus)
    fields = [
        (7, "s", "com.example.Liar"),
        (1, "o", "/a"),
        (200, "a{sv}", {"x": ("s", "y")}),
        (3, "s", "M"),
        (6, "s", ":1.1"),
        (77, "y", 1),
    ]
    msg = Message()
    assert msg.load(build(1, 5, fields, "su", ["hello", 9], big_endian=big))
    bus.dispatch(a, msg)
    (got,) = corebus.received(b)
    assert got.sender == b":1.0"
    assert got.big_endian == big
    assert (got.path, got.member, got.destination) == (b"/a", b"M", b":1.1")
    assert got.wire()[16:].count(b"hello") == 1
    assert b"Liar" not in got.wire()
    assert got.wire().count(b"\x01y\0\x01") == 0
    assert wire.unmarshal(got.signature, got.body(), big) == ["hello", 9]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_junk_never_raises(data: bytes) -> None:
    Message().load(data)
