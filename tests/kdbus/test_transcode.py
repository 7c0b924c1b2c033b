"""Whole messages between the two worlds: GLib writes the same, all comes back, junk is refused.

Invariant: sd-bus's form is one GVariant of a known type, so GLib is a witness for every byte of it.
"""

from __future__ import annotations

from typing import Any

import pytest
from classic_messages import core, raw
from dbus_values import messages
from glib_variants import GLibVariants
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.broker.message import Message
from jitney.compat import wire
from jitney.kdbus import gvariant
from jitney.kdbus.gvariant import Malformed
from jitney.kdbus.transcode import (
    DST_ID_BROADCAST,
    MSG_EXPECT_REPLY,
    MSG_NO_AUTO_START,
    MSG_SIGNAL,
    Dbus2Message,
    Envelope,
    agrees,
    delivered,
    envelope_of,
    from_classic,
    id_of,
    lay,
    parse,
    to_classic,
)

WHOLE = "yyyyuta{tv}v"
CODES = {
    "path": (1, "o"), "interface": (2, "s"), "member": (3, "s"), "error_name": (4, "s"),
    "reply_serial": (5, "t"), "destination": (6, "s"), "n_fds": (9, "u"),
}  # fmt: skip


def whole(msg: Dbus2Message) -> bytes:
    return b"".join(lay(msg))


def fields_in_order(said: dict[str, Any]) -> dict[int, tuple[str, Any]]:
    # The order in which sd-bus appends them; what is not there is left out.
    first = ["path", "interface", "member"]
    if said["type"] == 1:
        first = ["path", "member", "interface"]
    order = [*first, "reply_serial", "destination", "error_name", "n_fds"]
    return {CODES[key][0]: (CODES[key][1], said[key]) for key in order if said[key]}


@given(messages(), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=300)
def test_there_and_back(glib: GLibVariants, said: dict[str, Any], big: bool, big_out: bool) -> None:
    there = from_classic(core(raw(said, big)), big=big_out)
    data = whole(there)
    start = [ord("B" if big_out else "l"), said["type"], said["flags"], 2, 0, said["serial"]]
    body = ("(" + said["signature"] + ")", tuple(said["values"]))
    assert data == glib.pack(WHOLE, [*start, fields_in_order(said), body])[big_out]
    assert parse(data, said["n_fds"]) == there
    back = core(to_classic(there))
    here = core(raw(said))
    for part in ("type", "flags", "serial", "reply_serial", "n_fds", "signature"):
        assert getattr(back, part) == getattr(here, part)
    for part in ("path", "interface", "member", "error_name", "destination"):
        assert getattr(back, part) == getattr(here, part)
    assert back.body() == here.body()


def test_a_message_as_sd_bus_writes_it() -> None:
    # Byte for byte as bus_message_append_field_string() and bus_message_close_header() lay it out.
    msg = Dbus2Message(
        type=1,
        cookie=7,
        path=b"/a",
        member=b"M",
        interface=b"a.b",
        destination=b":1.5",
        signature=b"s",
        body=b"hi\0",
        big=False,
    )
    fields = (
        b"\1" + bytes(7) + b"/a\0\0o" + bytes(3)
        + b"\3" + bytes(7) + b"M\0\0s" + bytes(4)
        + b"\2" + bytes(7) + b"a.b\0\0s" + bytes(2)
        + b"\6" + bytes(7) + b":1.5\0\0s"
        + bytes((13, 28, 46, 63))
    )  # fmt: skip
    head = b"l\1\0\2\0\0\0\0\7" + bytes(7) + fields
    assert lay(msg) == (head + bytes(-len(head) % 8), b"hi\0", b"\0(s)" + bytes((len(head),)))


def test_no_arguments_are_an_empty_struct() -> None:
    msg = Dbus2Message(type=2, flags=1, cookie=1, reply_cookie=1 << 40, big=False)
    laid = lay(msg)
    assert laid.body == b"\0"
    assert laid.footer[:-1] == b"\0()"
    assert parse(b"".join(laid)) == msg


def test_cookies_have_64_bits_and_serials_32() -> None:
    msg = parse(whole(Dbus2Message(type=2, flags=1, cookie=1 << 33, reply_cookie=1 << 34)))
    assert (msg.cookie, msg.reply_cookie) == (1 << 33, 1 << 34)
    for serial, reply in ((None, 1), (1, None), (0, 1), (1, 1 << 32)):
        with pytest.raises(Malformed):
            to_classic(msg, serial, reply)
    back = core(to_classic(msg, 3, 4))
    assert (back.serial, back.reply_serial) == (3, 4)
    there = from_classic(back, cookie=1 << 33, reply_cookie=1 << 34)
    assert whole(there) == whole(msg)


def test_what_is_no_call_expects_no_reply() -> None:
    for kind in (2, 3, 4):
        data = wire.message(
            kind,
            1,
            path=b"/" if kind == 4 else None,
            interface=b"a.b" if kind == 4 else None,
            member=b"M" if kind == 4 else None,
            error_name=b"a.b" if kind == 3 else None,
            reply_serial=0 if kind == 4 else 5,
            sender=None,
        )
        assert from_classic(core(data)).flags == 1
    call = wire.message(1, 1, path=b"/", member=b"M", reply_serial=9, sender=None)
    there = from_classic(core(call))
    # A REPLY_SERIAL in a call is allowed here and refused there.
    assert (there.flags, there.reply_cookie) == (0, 0)
    assert parse(whole(there)) == there


SIGNAL = Dbus2Message(
    type=4, flags=1, cookie=1, path=b"/a", interface=b"a.b", member=b"M", big=False
)


def with_field(code: int, kind: str, value: Any, twice: bool = False) -> bytes:
    """A signal with one more field, as GLib would write it."""
    fields: Any = [(1, ("o", "/a")), (2, ("s", "a.b")), (3, ("s", "M"))]
    fields = [field for field in fields if field[0] != code or twice] + [(code, (kind, value))]
    entries = gvariant.pack(b"a{tv}", [fields], False)
    end = 16 + len(entries)
    data = b"l\4\1\2\0\0\0\0\1" + bytes(7) + entries + bytes(-end % 8) + b"\0" + b"\0()"
    return data + bytes((end,))


def test_fields_are_judged_as_sd_bus_does() -> None:
    assert parse(with_field(2, "s", "a.b")).interface == b"a.b"
    assert parse(with_field(7, "s", "a.b")).sender == b"a.b"
    # Fields that nobody knows yet are passed over.
    assert parse(with_field(10, "(ss)", ("a", "b"))).path == b"/a"
    assert parse(with_field(1 << 40, "v", ("y", 1))).path == b"/a"
    for code, kind, value in (
        (0, "s", "x"),
        (8, "g", "s"),
        (5, "t", 1),
        (5, "u", 1),
        (9, "u", 1),
        (9, "t", 0),
        (1, "s", "/a"),
        (1, "o", "/org/freedesktop/DBus/Local"),
        (2, "s", "org.freedesktop.DBus.Local"),
        (7, "s", "org.freedesktop.DBus.Local"),
        (2, "s", "nodot"),
        (3, "s", "a.b"),
        (6, "s", "nodot"),
        (6, "s", ""),
    ):
        with pytest.raises(Malformed):
            parse(with_field(code, kind, value))
    with pytest.raises(Malformed):
        parse(with_field(2, "s", "a.b", twice=True))
    with pytest.raises(Malformed):
        parse(whole(SIGNAL), n_fds=1)


def test_a_header_is_no_place_for_a_body() -> None:
    known = [(1, ("o", "/a")), (2, ("s", "a.b")), (3, ("s", "M"))]
    for more, good in ((253, True), (254, False)):
        entries = gvariant.pack(b"a{tv}", [known + [(10, ("y", 1))] * more], False)
        data = b"l\4\1\2\0\0\0\0\1" + bytes(7) + entries + bytes(-len(entries) % 8)
        data += b"\0\0()" + (16 + len(entries)).to_bytes(2, "little")
        if good:
            assert parse(data).member == b"M"
        else:
            with pytest.raises(Malformed):
                parse(data)


def test_other_versions_and_orders() -> None:
    data = bytearray(whole(SIGNAL))
    for at, byte in ((0, ord("x")), (1, 0), (3, 1), (3, 3), (8, 0)):
        other = data[:]
        other[at] = byte
        with pytest.raises(Malformed):
            parse(bytes(other))
    # systemd v221 and v222 wrote the body's type without parentheses.
    old = whole(SIGNAL).replace(b"\0()", b"\0")
    with pytest.raises(Malformed):
        parse(old)
    with pytest.raises(Malformed):
        parse(raw(_CALL))


_CALL: dict[str, Any] = {
    "type": 1, "serial": 1, "flags": 0, "path": "/", "interface": "a.b", "member": "M",
    "destination": "a.b", "error_name": None, "reply_serial": 0, "signature": "", "n_fds": 0,
    "values": [],
}  # fmt: skip

changes = st.lists(
    st.tuples(st.integers(0, 1 << 16), st.integers(0, 255), st.integers(0, 3)),
    min_size=1,
    max_size=4,
)


@given(messages(), changes)
@settings(deadline=None, max_examples=300)
def test_what_is_read_becomes_a_message_the_core_takes(
    said: dict[str, Any], changes: list[tuple[int, int, int]]
) -> None:
    data = bytearray(whole(from_classic(core(raw(said)))))
    for place, byte, kind in changes:
        at = place % (len(data) + 1)
        data[at : at + (kind != 2)] = b"" if kind == 1 else bytes((byte,))
    try:
        msg = parse(bytes(data), said["n_fds"])
        back = to_classic(msg, 1, 1 if msg.reply_cookie else 0)
    except Malformed:
        return
    assert Message().load(back)
    # Nothing of it is lost on the way back, but what the reserved word and unknown fields say.
    again = from_classic(core(back), msg.cookie, msg.reply_cookie, msg.big)
    again.sender, again.flags = msg.sender, msg.flags
    assert again == msg


@given(st.binary(max_size=300))
@settings(max_examples=600)
def test_noise_raises_nothing_else(data: bytes) -> None:
    for start in (b"", b"l\1\0\2\0\0\0\0\1\0\0\0\0\0\0\0"):
        try:
            parse(start + data)
        except Malformed:
            pass


def test_too_long_is_refused() -> None:
    msg = Dbus2Message(type=2, flags=1, cookie=1, reply_cookie=1, signature=b"ay")
    msg.body = bytes((1 << 27) - 40)
    with pytest.raises(Malformed):
        lay(msg)
    msg.body = bytes((1 << 26) + 1)
    assert lay(msg)
    with pytest.raises(Malformed):
        to_classic(msg)


# ---- what is around the payload


def test_envelopes() -> None:
    call = Dbus2Message(type=1, cookie=5, path=b"/", member=b"M", destination=b"a.b")
    assert envelope_of(call) == Envelope(MSG_EXPECT_REPLY, 5, 0, 0, b"a.b")
    call.flags, call.destination = 3, b":1.7"
    assert envelope_of(call) == Envelope(MSG_NO_AUTO_START, 5, 0, 7, None)
    assert envelope_of(SIGNAL) == Envelope(MSG_SIGNAL, 1, 0, DST_ID_BROADCAST, None)
    reply = Dbus2Message(type=2, flags=1, cookie=6, reply_cookie=5, destination=b":1.7")
    assert envelope_of(reply) == Envelope(0, 6, 5, 7, None)


@given(messages(), st.integers(0, 7), st.integers(0, 1), st.integers(0, 1))
@settings(deadline=None)
def test_payload_and_envelope_agree(
    said: dict[str, Any], other_flags: int, cookie: int, reply: int
) -> None:
    msg = from_classic(core(raw(said)))
    told = envelope_of(msg)
    assert agrees(msg, told.flags, told.cookie, told.cookie_reply)
    same = (other_flags ^ told.flags) & (MSG_EXPECT_REPLY | MSG_NO_AUTO_START) == 0
    assert agrees(msg, other_flags, told.cookie, told.cookie_reply) == same
    assert agrees(msg, told.flags, told.cookie + cookie, told.cookie_reply) == (not cookie)
    if not told.flags & MSG_EXPECT_REPLY:
        assert agrees(msg, told.flags, told.cookie, told.cookie_reply + reply) == (not reply)


def test_ids_and_unique_names() -> None:
    assert id_of(b":1.1") == 1
    assert id_of(b":1.18446744073709551614") == (1 << 64) - 2
    for name in (b":1.0", b":1.01", b":1.", b":1.x", b":2.1", b"a.b", b":1.1.1", b":1.-1"):
        assert id_of(name) is None
    # All ones are "everybody".
    assert id_of(b":1.18446744073709551615") is None
    assert id_of(b":1.99999999999999999999999") is None


def test_the_bus_says_who_sent_it_and_to_whom() -> None:
    claims = parse(with_field(7, "s", ":1.99"))
    told = delivered(claims, 3, DST_ID_BROADCAST, None, 9)
    assert (told.sender, told.destination) == (b":1.3", None)
    told = delivered(claims, 0, 9, None, 9)
    assert (told.sender, told.destination) == (b"org.freedesktop.DBus", b":1.9")
    assert delivered(claims, 3, 0, b"a.b", 9).destination == b"a.b"
    assert delivered(claims, 3, 0, None, 9).destination == b":1.9"
