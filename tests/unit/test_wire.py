"""Marshalling: what is written reads back, other implementations agree, junk is only ValueError."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from dbus_fast import Message, MessageType, Variant
from dbus_fast._private.marshaller import Marshaller
from dbus_fast._private.unmarshaller import Unmarshaller
from hypothesis import given
from hypothesis import strategies as st

from jitney.compat import wire

INTEGERS = {
    "y": (0, 0xFF), "n": (-0x8000, 0x7FFF), "q": (0, 0xFFFF), "i": (-(1 << 31), (1 << 31) - 1),
    "u": (0, 0xFFFFFFFF), "x": (-(1 << 63), (1 << 63) - 1), "t": (0, (1 << 64) - 1),
}  # fmt: skip
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
PATHS = st.lists(st.text("aZ0_", min_size=1, max_size=3), max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)
BASIC: dict[str, st.SearchStrategy[Any]] = {
    code: st.integers(low, high) for code, (low, high) in INTEGERS.items()
} | {
    "b": st.booleans(),
    "d": st.floats(allow_nan=False),
    "s": TEXTS,
    "o": PATHS,
    "g": st.sampled_from(["", "s", "a{sv}", "(ii)ay", "a(yv)"]),
}


def types(depth: int = 3) -> st.SearchStrategy[str]:
    """Single complete types, at most `depth` containers deep."""
    basic = st.sampled_from(sorted(BASIC))
    if not depth:
        return basic
    inner = types(depth - 1)
    return st.one_of(
        basic,
        st.just("v"),
        inner.map(lambda item: "a" + item),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: "(" + "".join(items) + ")"),
        st.tuples(basic, inner).map(lambda pair: "a{" + "".join(pair) + "}"),
    )


def values(kind: str) -> st.SearchStrategy[Any]:
    """Values of one complete type, as jitney.compat.wire has them."""
    if kind in BASIC:
        return BASIC[kind]
    if kind == "v":
        return types(1).flatmap(lambda inner: st.tuples(st.just(inner), values(inner)))
    if kind == "ay":
        return st.binary(max_size=9)
    if kind[0] == "(":
        return st.tuples(*[values(part) for part in wire.split_signature(kind[1:-1])])
    if kind[1] == "{":
        key, item = wire.split_signature(kind[2:-1])
        return st.dictionaries(values(key), values(item), max_size=3)
    return st.lists(values(kind[1:]), max_size=3)


BODIES = st.lists(types(), max_size=4).flatmap(
    lambda kinds: st.tuples(st.just("".join(kinds)), st.tuples(*map(values, kinds)))
)


def for_dbus_fast(kind: str, value: Any) -> Any:
    """The same value in dbus-fast's way: variants are objects, structs are lists."""
    if kind == "v":
        return Variant(value[0], for_dbus_fast(value[0], value[1]))
    if kind[0] == "(":
        parts = wire.split_signature(kind[1:-1])
        return [for_dbus_fast(part, item) for part, item in zip(parts, value, strict=True)]
    if kind[0] == "a" and kind[1] == "{":
        key, item = wire.split_signature(kind[2:-1])
        return {for_dbus_fast(key, k): for_dbus_fast(item, v) for k, v in value.items()}
    if kind[0] == "a" and kind != "ay":
        return [for_dbus_fast(kind[1:], item) for item in value]
    return value


@given(BODIES, st.booleans())
def test_round_trip(body: tuple[str, tuple[Any, ...]], big_endian: bool) -> None:
    signature, items = body
    data = wire.marshal(signature, items, big_endian)
    assert wire.unmarshal(signature.encode(), data, big_endian) == list(items)


@given(BODIES)
def test_same_bytes_as_dbus_fast(body: tuple[str, tuple[Any, ...]]) -> None:
    signature, items = body
    parts = wire.split_signature(signature)
    theirs = [for_dbus_fast(part, item) for part, item in zip(parts, items, strict=True)]
    assert wire.marshal(signature, items) == bytes(Marshaller(signature, theirs).marshall())


@given(BODIES, st.booleans(), st.data())
def test_damaged_bodies_are_value_errors(
    body: tuple[str, tuple[Any, ...]], big_endian: bool, data: st.DataObject
) -> None:
    signature, items = body
    raw = bytearray(wire.marshal(signature, items, big_endian))
    for _ in range(data.draw(st.integers(1, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for damaged in (bytes(raw), bytes(raw[:cut])):
        try:
            wire.unmarshal(signature.encode(), damaged, big_endian)
        except ValueError:
            pass


@given(st.binary(max_size=40), st.binary(max_size=64), st.booleans())
def test_noise_is_a_value_error(signature: bytes, body: bytes, big_endian: bool) -> None:
    try:
        wire.unmarshal(signature, body, big_endian)
    except ValueError:
        pass


def test_nesting_has_limits() -> None:
    assert wire.complete_type("a" * 32 + "y", 0) == 33
    assert wire.complete_type("(" * 32 + "y" + ")" * 32, 0) == 65
    for signature in ("a" * 33 + "y", "(" * 33 + "y" + ")" * 33, "a{y" * 33 + "y" + "}" * 33):
        with pytest.raises(ValueError, match="too many nested"):
            wire.complete_type(signature, 0)
    value: Any = ("y", 1)
    for _ in range(100):
        value = ("v", value)
    with pytest.raises(ValueError, match="too many nested"):
        wire.unmarshal(b"v", wire.marshal("v", [value]), False)


BAD_SIGNATURES = {
    "signature ends inside": ["a", "(", "(a", "(s", "aa"],
    "unknown type code": ["()", "{ss}", "s)", "z", "\0"],
    "not a basic type": ["a{vs}", "a{ass}", "a{"],
    "two fields": ["a{sss}", "a{ss"],
    "too long": ["y" * 256],
}


@pytest.mark.parametrize(
    ("words", "signature"), [(words, one) for words, all in BAD_SIGNATURES.items() for one in all]
)
def test_bad_signatures(words: str, signature: str) -> None:
    with pytest.raises(ValueError, match=words):
        wire.check_signature(signature)
    with pytest.raises(ValueError, match=words):
        wire.unmarshal(signature.encode(), b"", False)


@pytest.mark.parametrize(
    ("signature", "body", "words"),
    [
        (b"", b"x", "without a signature"),
        (b"s", b"\1\0\0\0a", "where it says"),
        (b"s", b"\1\0\0\0ab", "where it says"),
        (b"s", b"\1\0\0\0a\0\0", "after the last value"),
        (b"s", b"\1\0\0\0\0\0", "after the last value"),
        (b"s", b"\1\0\0\0\xff\0", "utf-8"),
        (b"s", b"\xff\xff\xff\xffa\0", "where it says"),
        (b"ss", b"\1\0\0\0\0\0\0\0\0\0\0\0\0", "where it says"),
        (b"b", b"\2\0\0\0", "neither 0 nor 1"),
        (b"o", b"\1\0\0\0a\0", "does not start with a slash"),
        (b"o", b"\3\0\0\0/a/\0", "bad element"),
        (b"g", b"\1z\0", "unknown type code"),
        (b"g", b"\1\xff\0", "ascii"),
        (b"v", b"\0\0", "ends inside a type"),
        (b"v", b"\2ss\0", "not one complete type"),
        (b"yu", b"\1\1\0\0\1\0\0\0", "padding"),
        (b"yu", b"\1\0", "padding"),
        (b"ai", b"\3\0\0\0\1\0\0\0", "where the array does"),
        (b"ay", b"\4\0\0\0\1", "longer than the body"),
        (b"as", b"\5\0\0\0\1\0\0\0a\0\0", "where the array does"),
        (b"a{yy}", b"\1\0\0\0\0\0\0\0\1\1", "where the array does"),
        (b"u", b"\1\0\0", "ends early"),
        (b"yy", b"\1", "ends early"),
    ],
)
def test_bad_bodies(signature: bytes, body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wire.unmarshal(signature, body, False)


@pytest.mark.parametrize(
    ("words", "signature", "items"),
    [
        ("NUL", "s", ["a\0"]),
        ("NUL", "ss", ["a", "b\0"]),
        ("utf-8", "s", ["\ud800"]),
        ("values to unpack", "s", []),
        ("values to unpack", "s", ["a", "b"]),
        ("does not fit", "s", [1]),
        ("does not fit", "u", [-1]),
        ("does not fit", "y", [256]),
        ("does not fit", "y", ["a"]),
        ("does not fit", "v", [1]),
        ("does not fit", "as", [[1]]),
        ("does not fit", "as", [1]),
        ("does not fit", "a{ss}", [1]),
        ("must be in range", "ay", [[256]]),
        ("too few values", "ii", [1]),
        ("too many values", "i", [1, 2]),
        ("too few values for a struct", "(ii)", [(1,)]),
        ("too many values for a struct", "(i)", [(1, 2)]),
        ("does not start with a slash", "o", ["a"]),
        ("bad element", "o", ["//"]),
        ("unknown type code", "g", ["z"]),
        ("unknown type code", "z", [1]),
        ("not one complete type", "v", [("ss", "a")]),
    ],
)
def test_values_that_do_not_fit(words: str, signature: str, items: list[Any]) -> None:
    with pytest.raises(ValueError, match=words):
        wire.marshal(signature, items)


@pytest.mark.parametrize("big_endian", [False, True])
def test_read_string(big_endian: bool) -> None:
    body = wire.marshal("su", ["hello", 5], big_endian)
    assert wire.read_string(body, big_endian) == b"hello"
    for bad in (b"", b"\0\0\0\0", body[:8], body[:9]):
        with pytest.raises(ValueError, match=r"too short|where it says"):
            wire.read_string(bad, big_endian)


@pytest.mark.parametrize("name", [b"a.b", b"a.bcdefghijk", b":1.5"])
def test_ready_made_bodies(name: bytes) -> None:
    text = name.decode()
    assert wire.string(name) == wire.marshal("s", [text])
    assert wire.three_strings(name, b"", name) == wire.marshal("sss", [text, "", text])
    assert wire.string_array([name, text]) == wire.marshal("(as)", [([text, text],)])
    assert wire.u32(7) == wire.marshal("u", [7])


def test_message_is_read_by_dbus_fast() -> None:
    data = wire.message(
        wire.ERROR, 7, flags=wire.NO_REPLY, error_name=b"a.b.C", destination=b":1.2",
        reply_serial=9, signature="sa{sv}", body=wire.marshal("sa{sv}", ["x", {"k": ("u", 1)}]),
    )  # fmt: skip
    message = read_by_dbus_fast(data)
    assert message.message_type is MessageType.ERROR
    assert (message.serial, message.reply_serial, message.error_name) == (7, 9, "a.b.C")
    assert (message.sender, message.destination) == ("org.freedesktop.DBus", ":1.2")
    assert message.body == ["x", {"k": Variant("u", 1)}]


@pytest.mark.parametrize("sender", [None, b":1.7", b"org.freedesktop.DBus"])
@pytest.mark.parametrize("member", [b"M", b"Member", b"MemberNames"])
def test_signals_of_all_paddings(member: bytes, sender: bytes | None) -> None:
    data = wire.message(
        wire.SIGNAL, 1, path=b"/a", interface=b"a.b", member=member, sender=sender, n_fds=2
    )
    assert len(data) % 8 == 0
    message = read_by_dbus_fast(data)
    assert (message.path, message.interface, message.member) == ("/a", "a.b", member.decode())
    assert message.sender == (sender.decode() if sender else None)
    assert struct.unpack_from("<I", data, 4) == (0,)


def read_by_dbus_fast(data: bytes) -> Message:
    message = Unmarshaller(io.BytesIO(data)).unmarshall()  # type: ignore[arg-type]
    assert message is not None
    return message
