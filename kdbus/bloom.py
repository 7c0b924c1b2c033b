"""sd-bus's bloom filters: what a signal says about itself, and what a match asks for.

Invariant: a mask that was made here passes every filter that was made here, or by sd-bus, for a
message that its rule wants (tests hold it against the core's matcher). It may pass others.

The bus does not look into payloads; a sender of a signal adds a filter, in which certain strings
are set as bits, and a match carries a mask of bits that must be there. So both sides have to agree
on the strings and on how they are hashed. Facts from systemd v226, `bus-kernel.c`, `bus-control.c`
and `bus-bloom.c`:

- Strings are "key:value", with keys `message-type`, `interface`, `member`, `path`,
  `path-slash-prefix`, and for argument N `argN`, `argN-dot-prefix`, `argN-slash-prefix`, and since
  v226 `argN-has` for each element of an array of strings. A prefix key comes with the whole value
  and with every beginning of it that ends before or behind a separator (but never with none of it).
- Each string sets `n_hash` bits. A bit's number is as many bytes as it takes, first byte highest,
  of SipHash-2-4 under one fixed key after the other. The filter is an array of 64 bit words in the
  machine's order. Buses have 64 bytes and 8 functions: two bytes a bit, so two keys.

sd-bus stops at the first argument that is a plain string, after having added it: its loop leaves
where it meant to go on (v221 to v228). A mask with a later argument would miss what its senders
send, so our masks have argument 0 only; the others are for whoever looks into the message. Our
filters have all of them, so that sd-bus's masks find what they look for.

In this, too, v226's own code was the judge, for random signals.

A message with more text than is worth hashing gets a filter with all bits set: it passes all masks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from struct import unpack

from jitney.broker.match import Rule

from . import gvariant
from .transcode import Dbus2Message

SIZE = 64
N_HASH = 8

_TYPES = {1: b"method_call", 2: b"method_return", 3: b"error", 4: b"signal"}
_MAX_ARGS = 64
_STRINGS = ("s", "o", "g")
_MASK = (1 << 64) - 1
# More strings than this leave next to no bit of a usual filter unset.
_MAX_STRINGS = 160
_MAX_BYTES = 8192
_CACHED = 256

_KEYS = tuple(
    bytes.fromhex(key)
    for key in (
        "b9660bf0467047c18875c49c54b9bd15",
        "aaa154a2e0714b39bfe1dd2e9fc54a3b",
        "63fdaebecd824812a16e4126cbfaa0c8",
        "23be452932d2462d82035228fe3717f5",
        "563bbfee5a4f4339afaa9408dff0fc10",
        "3180c873c7ea46d3aa25750f9e4c0929",
        "7df7184b7ba444d5853c06e06553966d",
        "f277e96f93b54e719a0c34883925bf35",
    )
)


def siphash(key: bytes, data: bytes) -> bytes:
    """SipHash-2-4 (Aumasson and Bernstein, 2012): eight bytes."""
    k0, k1 = unpack("<QQ", key)
    v0 = k0 ^ 0x736F6D6570736575
    v1 = k1 ^ 0x646F72616E646F6D
    v2 = k0 ^ 0x6C7967656E657261
    v3 = k1 ^ 0x7465646279746573
    size = len(data)
    last = bytes(7 - size % 8) + bytes((size & 0xFF,))
    words = unpack(f"<{size // 8 + 1}Q", data + last)
    for word in (*words, None):
        # Two rounds a word; four more at the end, after the 0xFF.
        if word is None:
            v2 ^= 0xFF
        else:
            v3 ^= word
        for _ in range(4 if word is None else 2):
            v0 = v0 + v1 & _MASK
            v2 = v2 + v3 & _MASK
            v1 = (v1 << 13 & _MASK | v1 >> 51) ^ v0
            v3 = (v3 << 16 & _MASK | v3 >> 48) ^ v2
            v0 = v0 << 32 & _MASK | v0 >> 32
            v2 = v2 + v1 & _MASK
            v0 = v0 + v3 & _MASK
            v1 = (v1 << 17 & _MASK | v1 >> 47) ^ v2
            v3 = (v3 << 21 & _MASK | v3 >> 43) ^ v0
            v2 = v2 << 32 & _MASK | v2 >> 32
        if word is not None:
            v0 ^= word
    return (v0 ^ v1 ^ v2 ^ v3).to_bytes(8, "little")


def parameters_ok(size: int, n_hash: int) -> bool:
    """Whether sd-bus can work with these: its keys make no more than 64 bytes of hash."""
    return size > 0 and size % 8 == 0 and n_hash > 0 and n_hash * _width(size) <= len(_KEYS) * 8


def _width(size: int) -> int:
    return ((size * 8).bit_length() - 1 + 7) // 8


def _bits(data: bytes, size: int, n_hash: int) -> int:
    """The bits that a string sets, as one number."""
    width = _width(size)
    hashed = b"".join(siphash(key, data) for key in _KEYS[: (n_hash * width + 7) // 8])
    bits = 0
    for at in range(0, n_hash * width, width):
        bits |= 1 << (int.from_bytes(hashed[at : at + width], "big") & (size * 8 - 1))
    return bits


_bits_again = lru_cache(maxsize=4096)(_bits)


def _filter(strings: Iterable[bytes], size: int, n_hash: int) -> bytes:
    if not parameters_ok(size, n_hash):
        raise ValueError("bloom parameters that sd-bus cannot work with")
    bits = length = 0
    for count, data in enumerate(strings):
        length += len(data)
        if count == _MAX_STRINGS or length > _MAX_BYTES:
            return b"\xff" * size
        bits |= (_bits_again if len(data) <= _CACHED else _bits)(data, size, n_hash)
    return _in_words(bits, size)


def _in_words(bits: int, size: int) -> bytes:
    data = bits.to_bytes(size, "little")
    if sys.byteorder == "little":
        return data
    return b"".join(data[at : at + 8][::-1] for at in range(0, size, 8))


def _prefixes(key: bytes, value: bytes, separator: bytes) -> Iterator[bytes]:
    """The whole value, and its beginnings from the longest to the shortest."""
    yield key + b":" + value
    while separator in value:
        end = value.rindex(separator)
        yield key + b":" + value[: end + 1]
        if not end:
            break
        value = value[:end]
        yield key + b":" + value


def _argument(number: int, value: bytes) -> Iterator[bytes]:
    key = b"arg%d" % number
    yield key + b":" + value
    yield from _prefixes(key + b"-dot-prefix", value, b".")
    yield from _prefixes(key + b"-slash-prefix", value, b"/")


def strings_of(msg: Dbus2Message) -> Iterator[bytes]:
    """What a message's filter has in it. Malformed if the body's framing is wrong."""
    kind = _TYPES.get(msg.type)
    if kind is not None:
        yield b"message-type:" + kind
    if msg.interface is not None:
        yield b"interface:" + msg.interface
    if msg.member is not None:
        yield b"member:" + msg.member
    if msg.path is not None:
        yield b"path:" + msg.path
        yield from _prefixes(b"path-slash-prefix", msg.path, b"/")
    body = gvariant.body_type(msg.signature)
    if body.size or not body.children:
        return
    places = gvariant.members(body, msg.body, 0, len(msg.body))
    for number, (child, start, end) in zip(range(_MAX_ARGS), places, strict=False):
        if child.code in _STRINGS:
            yield from _argument(number, msg.body[start : end - 1])
        elif child.code == "a" and child.children[0].code in _STRINGS:
            key = b"arg%d-has:" % number
            pos = start
            for offset in gvariant.items_of(msg.body, start, end):
                yield key + msg.body[pos : start + offset - 1]
                pos = start + offset


def filter_of(msg: Dbus2Message, size: int = SIZE, n_hash: int = N_HASH) -> bytes:
    """The filter that goes with a signal."""
    return _filter(strings_of(msg), size, n_hash)


def asked_by(rule: Rule) -> list[bytes]:
    """What must be in a filter if the rule wants the message. Nothing: it may want any."""
    strings = []
    if rule.type:
        strings.append(b"message-type:" + _TYPES[rule.type])
    if rule.interface is not None:
        strings.append(b"interface:" + rule.interface)
    if rule.member is not None:
        strings.append(b"member:" + rule.member)
    if rule.path is not None:
        strings.append(b"path:" + rule.path)
    elif rule.path_namespace is not None:
        strings.append(b"path-slash-prefix:" + rule.path_namespace)
    for arg in rule.args:
        if arg.index == 0 and arg.kind == ord("s"):
            strings.append(b"arg0:" + arg.text)
        elif arg.index == 0 and arg.kind == ord("n"):
            strings.append(b"arg0-dot-prefix:" + arg.text)
    return strings


def mask_of(rule: Rule, size: int = SIZE, n_hash: int = N_HASH) -> bytes | None:
    """The mask of a match for the rule; None if there is nothing to ask for."""
    strings = asked_by(rule)
    if not strings:
        return None
    if not parameters_ok(size, n_hash):
        raise ValueError("bloom parameters that sd-bus cannot work with")
    bits = 0
    for data in strings:
        bits |= _bits_again(data, size, n_hash)
    return _in_words(bits, size)


def passes(mask: bytes, bits: bytes, generation: int = 0) -> bool:
    """Whether a filter of that generation has all that the mask asks for.

    A mask may be several of a filter's size one after the other, the last for all generations from
    its own on."""
    size = len(bits)
    masks: Sequence[bytes] = [mask[at : at + size] for at in range(0, len(mask), size)]
    wanted = int.from_bytes(masks[min(generation, len(masks) - 1)], "big")
    return wanted & ~int.from_bytes(bits, "big") == 0
