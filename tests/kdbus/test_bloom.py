"""Bloom filters: the hash's own vectors, sd-bus's strings, and no mask that misses its message.

Invariant: whatever is not sure to be in a filter is in no mask.
"""

from __future__ import annotations

from typing import Any

import pytest
from classic_messages import core, raw
from dbus_values import messages
from hypothesis import given, settings

from jitney.broker.match import Rule
from jitney.kdbus import bloom, gvariant
from jitney.kdbus.transcode import Dbus2Message, from_classic

# The reference implementation's first ones: key 00 01 .. 0f, as many bytes 00 01 .. as the index.
SIPHASH = [
    "310e0edd47db6f72", "fd67dc93c539f874", "5a4fa9d909806c0d", "2d7efbd796666785",
    "b7877127e09427cf", "8da699cd64557618", "cee3fe586e46c9cb", "37d1018bf50002ab",
    "6224939a79f5f593",
]  # fmt: skip


def test_siphash_is_the_reference_one() -> None:
    key = bytes(range(16))
    for size, expected in enumerate(SIPHASH):
        assert bloom.siphash(key, bytes(range(size))).hex() == expected
    # The worked example of the paper, its appendix A.
    assert bloom.siphash(key, bytes(range(15))).hex() == "e545be4961ca29a1"


def signal(path: str = "/", signature: str = "", *values: Any) -> Dbus2Message:
    return Dbus2Message(
        type=4,
        path=path.encode(),
        interface=b"a.b",
        member=b"M",
        signature=signature.encode(),
        body=gvariant.pack(signature.encode(), values),
    )


def test_strings_of_a_message() -> None:
    assert list(bloom.strings_of(signal("/foo/bar"))) == [
        b"message-type:signal",
        b"interface:a.b",
        b"member:M",
        b"path:/foo/bar",
        b"path-slash-prefix:/foo/bar",
        b"path-slash-prefix:/foo/",
        b"path-slash-prefix:/foo",
        b"path-slash-prefix:/",
    ]
    assert list(bloom.strings_of(signal("/")))[3:] == [
        b"path:/",
        b"path-slash-prefix:/",
        b"path-slash-prefix:/",
    ]


def test_strings_of_arguments() -> None:
    said = signal("/", "sugas", "x.y", 1, "ai", ["q", ""])
    assert list(bloom.strings_of(said))[6:] == [
        b"arg0:x.y",
        b"arg0-dot-prefix:x.y",
        b"arg0-dot-prefix:x.",
        b"arg0-dot-prefix:x",
        b"arg0-slash-prefix:x.y",
        b"arg2:ai",
        b"arg2-dot-prefix:ai",
        b"arg2-slash-prefix:ai",
        b"arg3-has:q",
        b"arg3-has:",
    ]
    assert list(bloom.strings_of(signal("/", "uu", 1, 2)))[6:] == []
    assert b"arg63:x" in list(bloom.strings_of(signal("/", "s" * 70, *["x"] * 70)))
    assert b"arg64:x" not in list(bloom.strings_of(signal("/", "s" * 70, *["x"] * 70)))


def test_bits_are_two_bytes_of_the_hash_each() -> None:
    text = b"interface:a.b"
    hashed = bloom.siphash(bytes.fromhex("b9660bf0467047c18875c49c54b9bd15"), text)
    hashed += bloom.siphash(bytes.fromhex("aaa154a2e0714b39bfe1dd2e9fc54a3b"), text)
    expected = {int.from_bytes(hashed[at : at + 2], "big") % 512 for at in range(0, 16, 2)}
    mask = bloom.mask_of(Rule(interface=b"a.b"))
    assert mask is not None
    words = memoryview(mask).cast("Q")
    assert {bit for bit in range(512) if words[bit >> 6] >> (bit & 63) & 1} == expected


@pytest.mark.parametrize(
    ("size", "n_hash", "good"),
    [(64, 8, True), (8, 1, True), (8, 64, True), (8, 65, False), (64, 32, True), (64, 33, False),
     (0, 8, False), (64, 0, False), (12, 8, False), (1 << 16, 21, True), (1 << 16, 22, False)],
)  # fmt: skip
def test_parameters(size: int, n_hash: int, good: bool) -> None:
    assert bloom.parameters_ok(size, n_hash) == good
    if good:
        bits = bloom.filter_of(signal(), size, n_hash)
        mask = bloom.mask_of(Rule(member=b"M"), size, n_hash)
        assert len(bits) == size
        assert mask is not None
        assert bloom.passes(mask, bits)
    else:
        with pytest.raises(ValueError, match="bloom parameters"):
            bloom.filter_of(signal(), size, n_hash)


def test_masks_ask_for_no_argument_that_sd_bus_may_leave_out() -> None:
    later = Rule(interface=b"a.b", args={1: ("s", b"x"), 2: ("p", b"/x/")})
    assert bloom.mask_of(later) == bloom.mask_of(Rule(interface=b"a.b"))
    assert bloom.mask_of(Rule(args={0: ("p", b"/x/")})) is None
    assert bloom.mask_of(Rule()) is None
    for kind in "sn":
        assert bloom.mask_of(Rule(args={0: (kind, b"x")})) is not None


def test_a_mask_may_have_generations() -> None:
    first, second = b"\1" + bytes(63), b"\2" + bytes(63)
    assert bloom.passes(first + second, first, 0)
    assert not bloom.passes(first + second, second, 0)
    for generation in (1, 2, 1 << 60):
        assert bloom.passes(first + second, second, generation)
        assert not bloom.passes(first + second, first, generation)


@given(messages(types=(4,)))
@settings(deadline=None, max_examples=200)
def test_each_part_of_a_message_is_found_in_its_filter(said: dict[str, Any]) -> None:
    msg = from_classic(core(raw(said)))
    bits = bloom.filter_of(msg)
    path = msg.path or b"/"
    rules = [
        Rule(type=4, interface=msg.interface, member=msg.member, path=path),
        *(Rule(path_namespace=path[:at] or b"/") for at in range(len(path)) if path[at] == 47),
        Rule(path_namespace=path),
    ]
    if said["signature"][:1] == "s":
        text = said["values"][0].encode()
        rules.append(Rule(args={0: ("s", text)}))
        parts = text.split(b".")
        for n in range(1, len(parts) + 1):
            if begin := b".".join(parts[:n]):
                rules.append(Rule(args={0: ("n", begin)}))
    for rule in rules:
        mask = bloom.mask_of(rule)
        assert mask is not None
        assert bloom.passes(mask, bits)


def test_what_is_not_there_is_mostly_not_found() -> None:
    bits = bloom.filter_of(signal("/a/b", "s", "hello"))
    found = 0
    for number in range(200):
        mask = bloom.mask_of(Rule(member=b"Other%d" % number))
        assert mask is not None
        found += bloom.passes(mask, bits)
    assert found < 20


def test_more_text_than_is_worth_hashing_passes_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed = []
    siphash = bloom.siphash

    def counting(key: bytes, data: bytes) -> bytes:
        hashed.append(len(data))
        return siphash(key, data)

    monkeypatch.setattr(bloom, "siphash", counting)
    for said in (
        signal("/", "as", [str(number) for number in range(100000)]),
        signal("/", "s", "x" * 1000000),
        signal("/", "s", "." * 8000),
        signal("/" + "/".join("a" * 500)),
    ):
        hashed.clear()
        assert bloom.filter_of(said) == b"\xff" * 64
        assert sum(hashed) < 20000
    # What is no text costs nothing.
    assert bloom.filter_of(signal("/", "say", "x", bytes(1000000))) != b"\xff" * 64
