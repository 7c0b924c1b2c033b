"""jitney.kdbus.gvariant against the specification's examples, GLib, and bytes that are wrong.

Invariant: GLib and we write the same bytes, and we read what GLib calls normal and nothing else.
"""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest
from dbus_values import bodies, signatures
from glib_variants import GLibVariants
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.compat import wire
from jitney.kdbus import gvariant
from jitney.kdbus.gvariant import Malformed, from_classic, pack, to_classic, unpack

# "GVariant Specification", section 2.4, "Serialisation Examples"; those of types that D-Bus has.
EXAMPLES = [
    ("s", ["hello world"], "68656c6c6f20776f726c6400"),
    ("ab", [[True, False, False, True, True]], "0100000101"),
    ("(si)", [("foo", -1)], "666f6f00ffffffff04"),
    (
        "a(si)",
        [[("hi", -2), ("bye", -1)]],
        "68690000feffffff0300000062796500ffffffff040915",
    ),
    (
        "as",
        [["i", "can", "has", "strings?"]],
        "690063616e0068617300737472696e67733f0002060a13",
    ),
    ("ay", [b"\4\5\6\7"], "04050607"),
    ("ai", [[4, 258]], "0400000002010000"),
    ("(yy)", [(0x70, 0x80)], "7080"),
    ("(iy)", [(96, 0x70)], "6000000070000000"),
    ("a(iy)", [[(96, 0x70), (648, 0xF7)]], "600000007000000088020000f7000000"),
    ("a{si}", [{"a key": 514}], "61206b65790000000202000006" + "0d"),
]


@pytest.mark.parametrize(("signature", "values", "expected"), EXAMPLES)
def test_examples_of_the_specification(signature: str, values: list[Any], expected: str) -> None:
    data = bytes.fromhex(expected)
    assert pack(signature.encode(), values, False) == data
    assert unpack(signature.encode(), data, False) == values


def test_an_empty_body_is_one_zero_byte() -> None:
    assert from_classic(b"", b"") == b"\0"
    assert to_classic(b"", b"\0") == b""
    for data in (b"", b"\1", b"\0\0"):
        with pytest.raises(Malformed):
            to_classic(b"", data)


def test_offsets_grow_with_the_container(glib: GLibVariants) -> None:
    # Around each size at which another width of offset begins, with all it counts within it.
    for total in (255, 65535):
        for size in range(total - 12, total + 4):
            for values in ([["x" * size]], [["", "x" * size, ""]], [["y", "x" * (size - 2)]]):
                assert pack(b"as", values, False) == glib.pack("as", values)[0]
            data = pack(b"ss", ["x" * size, "y"], False)
            assert data == glib.pack("ss", ["x" * size, "y"])[0]
            assert unpack(b"ss", data, False) == ["x" * size, "y"]


@given(bodies)
@settings(deadline=None, max_examples=300)
def test_glib_writes_the_same(glib: GLibVariants, body: tuple[str, list[Any]]) -> None:
    signature, values = body
    text = signature.encode()
    little, big = glib.pack(signature, values) if signature else (b"\0", b"\0")
    assert pack(text, values, False) == little
    assert pack(text, values, True) == big
    classic = wire.marshal(signature, values, False)
    swapped = wire.marshal(signature, values, True)
    # Every order to every order, there and back.
    for data, order in ((classic, False), (swapped, True)):
        assert from_classic(text, data, order, False) == little
        assert from_classic(text, data, order, True) == big
    for data, order in ((little, False), (big, True)):
        assert to_classic(text, data, order, False) == classic
        assert to_classic(text, data, order, True) == swapped


def _mutate(data: bytes, at: int, byte: int, kind: int) -> bytes:
    at %= len(data) + 1
    if kind == 0:
        return data[:at] + bytes((byte,)) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + bytes((byte,)) + data[at:]
    return data[:at] + data[at + 1 :]


mutations = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.integers(0, 255), st.integers(0, 3)), max_size=3
)


@given(bodies, mutations)
@settings(deadline=None, max_examples=400)
def test_what_is_read_is_what_glib_calls_normal(
    glib: GLibVariants, body: tuple[str, list[Any]], changes: list[tuple[int, int, int]]
) -> None:
    signature, values = body
    text = signature.encode()
    data = pack(text, values, False)
    for change in changes:
        data = _mutate(data, *change)
    try:
        classic = to_classic(text, data, False, False)
    except Malformed:
        # Signatures are the one thing in which GVariant allows what D-Bus does not.
        if b"g" not in text and b"v" not in text:
            assert not glib.normal(f"({signature})", data)
        return
    assert glib.normal(f"({signature})", data)
    assert from_classic(text, classic, False, False) == data
    wire.unmarshal(text, classic, False)


@given(bodies, mutations)
@settings(deadline=None, max_examples=400)
def test_what_is_written_is_what_d_bus_allows(
    body: tuple[str, list[Any]], changes: list[tuple[int, int, int]]
) -> None:
    signature, values = body
    text = signature.encode()
    data = wire.marshal(signature, values, False)
    for change in changes:
        data = _mutate(data, *change)
    try:
        wire.unmarshal(text, data, False)
    except ValueError:
        with pytest.raises(Malformed):
            from_classic(text, data, False, False)
    else:
        there = from_classic(text, data, False, False)
        assert to_classic(text, there, False, False) == data


@given(signatures | st.text(max_size=8).map(str), st.binary(max_size=200))
@settings(deadline=None, max_examples=400)
def test_noise_raises_nothing_else(signature: str, data: bytes) -> None:
    text = signature.encode()
    for turn in (to_classic, from_classic):
        for big in (False, True):
            try:
                turn(text, data, big)
            except Malformed:
                pass


@pytest.mark.parametrize("signature", [b"ms", b"()", b"{sv}", b"r", b"*", b"a()", b"(i", b"\xff"])
def test_types_that_d_bus_lacks_are_refused(signature: bytes) -> None:
    with pytest.raises(Malformed):
        to_classic(signature, b"\0" * 8)
    with pytest.raises(Malformed):
        to_classic(b"v", b"\0" * 8 + b"\0" + signature)


# ---- limits


def _nested(levels: int) -> bytes:
    # Variants in variants: each has its signature at its end.
    return b"\7" + b"\0y" + b"\0v" * (levels - 1)


def test_goes_as_deep_as_d_bus_and_no_deeper() -> None:
    assert to_classic(b"v", _nested(64))
    with pytest.raises(Malformed):
        to_classic(b"v", _nested(65))
    with pytest.raises(Malformed):
        to_classic(b"v", _nested(10000))
    classic = b"\1v\0" * 63 + b"\1y\0\7"
    assert from_classic(b"v", classic) == _nested(64)
    with pytest.raises(Malformed):
        from_classic(b"v", b"\1v\0" + classic)
    with pytest.raises(Malformed):
        from_classic(b"v", b"\1v\0" * 100000)


def test_never_makes_more_than_the_limit() -> None:
    # One byte here is eight there.
    body = bytes(1 << 16)
    assert len(to_classic(b"a(y)", body, limit=1 << 20)) < 1 << 20
    with pytest.raises(Malformed):
        to_classic(b"a(y)", body, limit=1 << 19)
    with pytest.raises(Malformed):
        to_classic(b"a(y)", bytes(1 << 25))
    with pytest.raises(Malformed):
        to_classic(b"ab", bytes(1 << 25))
    many = pack(b"as", [[""] * 5000])
    with pytest.raises(Malformed):
        to_classic(b"as", many, limit=5000 * 8 - 64)
    small = wire.marshal("av", [[("y", 1)] * 5000])
    assert from_classic(b"av", small)
    with pytest.raises(Malformed):
        from_classic(b"av", small, limit=5000 * 8)


def _seconds(signature: bytes, data: bytes) -> float:
    start = time.process_time()
    try:
        to_classic(signature, data)
    except Malformed:
        pass
    return time.process_time() - start


def _worst(size: int) -> list[tuple[bytes, bytes]]:
    deep = b"a" * 31 + b"s"
    count = size // 4
    ends = struct.pack(f"<{count}I", *[0] * (count - 1), 0)
    back = struct.pack(f"<{count}I", *range(count, 0, -1))
    return [
        (b"aas", ends),
        (deep, ends),
        (b"as", back),
        (b"as", bytes(size)),
        (b"av", bytes(size)),
        (b"v", bytes(size) + b"\0v"),
        (b"v", b"\0v" * (size // 2)),
        (b"a" + b"(" * 30 + b"y" + b")" * 30, bytes(size // 8)),
        (b"s" * 200, bytes(size)),
    ]


@pytest.mark.parametrize("case", range(9))
def test_time_grows_with_the_bytes_and_no_faster(case: int) -> None:
    # Four times the bytes: quadratic work would take sixteen times as long.
    best = []
    for size in (1 << 17, 1 << 19):
        signature, data = _worst(size)[case]
        best.append(min(_seconds(signature, data) for _ in range(3)))
    assert best[1] < 10 * best[0] + 0.05


def test_long_arrays_of_fixed_size_are_turned_at_once() -> None:
    body = wire.marshal("a(ybxd)", [[(1, True, -2, 0.5)] * 4000], True)
    data = from_classic(b"a(ybxd)", body, True, False)
    assert to_classic(b"a(ybxd)", data, False, True) == body
    swapped = struct.pack("<I4x1000q", 8000, *range(1000))
    assert to_classic(b"ax", struct.pack(">1000q", *range(1000)), True, False) == swapped


def test_a_type_knows_where_its_fields_are() -> None:
    kind = gvariant.single_type(b"(yb(qt)u)")
    assert (kind.size, kind.align, kind.old_size, kind.pitch) == (32, 8, 28, 32)
    assert kind.columns == [
        (0, 0, 1, False),
        (1, 4, 1, True),
        (8, 8, 2, False),
        (16, 16, 8, False),
        (24, 24, 4, False),
    ]
