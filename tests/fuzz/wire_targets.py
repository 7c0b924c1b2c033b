"""Targets that read bytes off a socket or out of a file: SASL, messages, cookies, recordings.

Invariant: see `registry`. A message is judged by the compiled parser, its plain twin and libdbus
alike; what is read and written again is the same.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from functools import cache
from types import SimpleNamespace
from typing import Any

from jitney.broker.mem import COMPILED
from jitney.broker.message import Message, clean
from jitney.compat import auth, cookies, wire
from jitney.compat.auth import Auth, KeyringError, Offer
from jitney.compat.trace import pcap, records
from jitney.compat.trace.plan import plan
from jitney.compat.trace.rewrite import rewritten

from . import plain_twin
from .registry import dice, pieces, target
from .text_targets import libdbus

# ---- SASL

GUID = "0123456789abcdef0123456789abcdef"
_SASL_WORDS = (
    b"AUTH EXTERNAL ", b"AUTH ANONYMOUS ", b"AUTH DBUS_COOKIE_SHA1 ", b"DATA ", b"BEGIN\r\n",
    b"CANCEL\r\n", b"ERROR ", b"NEGOTIATE_UNIX_FD\r\n", b"31303030", b"\r\n", b"\0", b"30",
)  # fmt: skip


class _Ring:
    def owns(self, user: bytes) -> bool:
        return user in (b"0", b"root")

    def best_key(self) -> int:
        return 7

    def secret(self, key: int) -> bytes:
        return b"c0ffee" if key == 7 else b""


class _BrokenRing(_Ring):
    def best_key(self) -> int:
        raise KeyringError("none")


def _outcome(talk: Auth) -> tuple[Any, ...]:
    return (
        talk.done, talk.failed, talk.reason, talk.identity, talk.mechanism, talk.unix_fds,
        talk.leftover,
    )  # fmt: skip


@target("sasl", 2048, _SASL_WORDS)
def sasl(data: bytes) -> None:
    if not data:
        return
    kind = data[0]
    data = data[1:]
    uid = None if kind & 1 else 1000
    fds = bool(kind & 2)
    anonymous = bool(kind & 4)
    rings: list[Any] = [None, _Ring, _BrokenRing, _Ring]
    offered = [(), ("EXTERNAL",), ("ANONYMOUS", "DBUS_COOKIE_SHA1"), ("EXTERNAL", "ANONYMOUS")]
    offer = Offer(GUID, offered[kind >> 5 & 3], anonymous, rings[kind >> 3 & 3])
    # The challenge must be the same for both ways of asking.
    auth.os = SimpleNamespace(urandom=bytes, geteuid=lambda: 0)  # type: ignore[assignment]
    try:
        whole = Auth(offer, uid, fds)
        out = whole.feed(data)
        again = Auth(offer, uid, fds)
        assert again.feed(data) == out, "the second of two equal conversations went another way"
        assert _outcome(again) == _outcome(whole)
        cut = Auth(offer, uid, fds)
        answers = b"".join([cut.feed(piece) for piece in pieces(data, dice(data))])
    finally:
        auth.os = os
    assert not (whole.done and whole.failed)
    if whole.done:
        names = {b"EXTERNAL": uid, b"ANONYMOUS": None, b"DBUS_COOKIE_SHA1": 0}
        mechanism = whole.mechanism.encode()
        assert whole.identity == names[mechanism]
        assert mechanism in offer.mechanisms
        assert fds or not whole.unix_fds
        if mechanism == b"EXTERNAL":
            assert uid is not None
        if mechanism == b"ANONYMOUS":
            assert anonymous
        assert data.endswith(whole.leftover)
    if "excessive" in whole.reason or "excessive" in cut.reason:
        return  # how much is said to one read depends on how much is read
    assert answers == out
    assert _outcome(cut) == _outcome(whole)


# ---- messages

_MESSAGE_WORDS = (
    b"l\1\0\1", b"B\1\0\1", b"l\4\1\1", b"\1\1o\0", b"\2\1s\0", b"\3\1s\0", b"\6\1s\0",
    b"\x08\1g\0", b"\x09\1u\0", b"\5\1u\0", b"\7\1s\0", b"a{sv}", b"(ii)", b"aay", b"av", b"v",
    b"org.freedesktop.DBus", b"/org/freedesktop/DBus", b":1.1", b"Hello", b"a(yv)", b"ab",
)  # fmt: skip
_SHOWN = (
    "type", "flags", "serial", "reply_serial", "n_fds", "path", "interface", "member", "error_name",
    "destination", "sender", "signature", "n_args", "unclean", "big_endian",
)  # fmt: skip


# Some are for compiled code alone.
_ATTRIBUTES = [name for name in _SHOWN if hasattr(Message(), name)]


def _fields(msg: Any) -> tuple[Any, ...]:
    found = [getattr(msg, name) for name in _ATTRIBUTES]
    return *found, msg.body(), tuple(msg.string_arg(i) for i in range(64))


def _whole(data: bytes) -> bool:
    """Whether it is as long as it says: libdbus does not mind what follows."""
    order: Any = "big" if data[:1] == b"B" else "little"
    body, fields = (int.from_bytes(data[at : at + 4], order) for at in (4, 12))
    return len(data) >= 16 and len(data) == (16 + fields + 7 & ~7) + body


def _codes(data: bytes) -> set[int]:
    size = int.from_bytes(data[12:16], "big" if data[:1] == b"B" else "little")
    return set(data[16 : 16 + size : 8])


def mended(data: bytes) -> bytes:
    """As one message, with the body as long as it is."""
    if len(data) < 16:
        return data
    order: Any = "big" if data[:1] == b"B" else "little"
    fields = min(int.from_bytes(data[12:16], order), len(data) - 16)
    size = max(0, len(data) - (16 + fields + 7 & ~7))
    start = data[:1] if data[:1] in b"lB" else b"l"
    numbers = size.to_bytes(4, order) + (data[8:12] if any(data[8:12]) else b"\1\0\0\1")
    return start + data[1:3] + b"\1" + numbers + fields.to_bytes(4, order) + data[16:]


def mended_stream(data: bytes) -> bytes:
    """A byte of how, a conversation, and messages, the last of which takes the rest."""
    start = data.find(b"BEGIN\r\n") + 7 if b"BEGIN\r\n" in data else 1
    while len(data) - start >= 16:
        order: Any = "big" if data[start : start + 1] == b"B" else "little"
        body, fields = (int.from_bytes(data[start + i : start + i + 4], order) for i in (4, 12))
        size = (16 + fields + 7 & ~7) + body
        if size > len(data) - start:
            break
        start += size
    return data[:start] + mended(data[start:])


@target("message", 2048, _MESSAGE_WORDS, mend=mended)
def message(data: bytes) -> None:
    msg = Message()
    valid = msg.load(data)
    if COMPILED:
        twin = plain_twin.module("message").Message()
        assert twin.load(data) == valid, "compiled and plain disagree"
        if valid:
            assert _fields(twin) == _fields(msg)
    library = libdbus()
    # Without its descriptors libdbus does not take a message.
    if library is not None and _whole(data) and not (valid and msg.n_fds):
        theirs = library.dbus_message_demarshal(data, len(data), None)
        if theirs:
            library.dbus_message_unref(theirs)
        # Field 10 is of a later specification, whose type libdbus may check.
        if not (valid and not theirs and 10 in _codes(data)):
            assert valid == bool(theirs), f"libdbus says {bool(theirs)}"
    if valid:
        _read_again(msg, data)


def _read_again(msg: Message, data: bytes) -> None:
    copied = msg.copy()
    assert _fields(copied) == _fields(msg)
    assert copied.wire() == data
    values = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)
    again = wire.marshal(msg.signature.decode(), values, msg.big_endian)
    # A key may be there twice in an array of entries, but not in a dict.
    if b"{" not in data:
        assert again == msg.body()
    start = bytearray(clean(msg))
    start[12:16] = (len(start) - 16).to_bytes(4, "big" if msg.big_endian else "little")
    cleaned = Message()
    assert cleaned.load(bytes(start) + bytes(-len(start) % 8) + msg.body())
    assert cleaned.sender is None
    assert cleaned.string_arg(0) == msg.string_arg(0)
    assert (cleaned.path, cleaned.destination) == (msg.path, msg.destination)
    there = Message()
    assert there.load(rewritten(msg, {":1.1": ":1.234567"}))
    sent = Message()
    assert sent.load(pcap.with_sender(data, ":1.77"))
    assert sent.sender == b":1.77"


@target("values", 1024, (b"a{sv}", b"(ybnqiuxtdsogv)", b"aas", b"\0"))
def values(data: bytes) -> None:
    """A signature, a byte 0, a body: what the edges make of it, and what the core says to it."""
    signature, _, body = data.partition(b"\0")
    body = body[1:]
    big = data[-1:] > b"\x7f"
    try:
        found = wire.unmarshal(signature, body, big)
    except ValueError:
        found = None
    head = wire.message(wire.CALL, 1, path=b"/", member=b"M", sender=None)
    if big or len(signature) > 255:
        if found is not None:
            wire.marshal(signature.decode(), found, big)
        return
    fields = head[16:]
    if signature:
        fields += b"\x08\1g\0" + bytes((len(signature),)) + signature + b"\0"
    else:
        fields = fields[: int.from_bytes(head[12:16], "little")]
    whole = head[:4] + len(body).to_bytes(4, "little") + head[8:12]
    whole += len(fields).to_bytes(4, "little") + fields + bytes(-len(fields) % 8) + body
    msg = Message()
    assert msg.load(whole) == (found is not None), (signature, body)
    if found is not None:
        wire.marshal(signature.decode(), found)


# ---- cookies


@cache
def _home() -> str:
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    home = tempfile.TemporaryDirectory(prefix="jitney-fuzz-", dir=shared)
    _kept.append(home)
    os.mkdir(os.path.join(home.name, ".dbus-keyrings"), 0o700)
    return home.name


_kept: list[Any] = []


@target("cookies", 1024, (b"1 1700000000 c0ffee\n", b" ", b"\n", b"2147483647", b"-1"), short=1000)
def keyring(data: bytes) -> None:
    home = _home()
    folder = os.path.join(home, ".dbus-keyrings")
    with open(os.path.join(folder, "fuzz"), "wb") as file:
        file.write(data)
    ring = cookies.Keyring(home, "fuzz")
    cookies.time = SimpleNamespace(time=lambda: 1700000100.0, sleep=time.sleep)  # type: ignore[assignment]
    try:
        key = ring.best_key()
        secret = ring.secret(key)
        assert 0 <= key <= 0x7FFFFFFF
        assert secret
        assert secret == secret.lower()
        # Whatever was in the file, what is written is read again.
        other = cookies.Keyring(home, "fuzz")
        assert other.best_key() == key
        assert other.secret(key) == secret
    finally:
        cookies.time = time
    assert sorted(os.listdir(folder)) == ["fuzz"]


# ---- recordings


@target(
    "recording",
    4096,
    (b"\xd4\xc3\xb2\xa1", b"\x0a\x0d\x0d\x0a", b"\xe7\0\0\0", *_MESSAGE_WORDS[:4]),
)
def recording(data: bytes) -> None:
    try:
        made = plan(pcap.read(io.BytesIO(data)))
    except ValueError:
        return
    assert made.seconds is not None
    for step in made.steps:
        if step.message is not None:
            msg = Message()
            assert msg.load(rewritten(step.message, {":1.1": ":1.234567"}))


@target("records", 2048)
def trace_records(data: bytes) -> None:
    try:
        _, found = records.read(data, 0)
    except ValueError:
        return
    for record in found:
        assert isinstance(record.what, str)
