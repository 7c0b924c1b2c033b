"""Addresses: the grammar and the error texts, held against libdbus where that is installed."""

from __future__ import annotations

import ctypes
import ctypes.util
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jitney.compat.address import Address, escape, parse, unescape
from jitney.compat.errors import BAD_ADDRESS, DBusError

NO_VALUE = "'=' character not found or has no value following it"
NO_COLON = "Address does not contain a colon"
NO_HEX = "In D-Bus address, percent character was not followed by two hex digits"
BAD_HEX = "In D-Bus address, percent character was followed by characters other than hex digits"


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("unix:path=/run/bus", [Address("unix", {"path": "/run/bus"})]),
        ("a:", [Address("a")]),
        ("a:;", [Address("a")]),
        ("a:;b:", [Address("a"), Address("b")]),
        ("a:k=v,", [Address("a", {"k": "v"})]),
        ("a:k=v,k=w,l=x", [Address("a", {"k": "v", "l": "x"})]),
        ("tcp:host=%3a%3A1,port=0", [Address("tcp", {"host": "::1", "port": "0"})]),
        ("unix:abstract=a%20b%2cc%3bd%3de%25", [Address("unix", {"abstract": "a b,c;d=e%"})]),
        ("unix:path=%ff", [Address("unix", {"path": os.fsdecode(b"\xff")})]),
        ("unix:path=a%00b", [Address("unix", {"path": "a"})]),
        ("x:k=a\\b*c", [Address("x", {"k": "a\\b*c"})]),
        ("a=b:k=v", [Address("a=b", {"k": "v"})]),
    ],
)
def test_parse(text: str, entries: list[Address]) -> None:
    assert parse(text) == entries
    assert parse(text)[0].get("no such parameter") is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "Empty address ''"),
        (";", NO_COLON),
        ("unix", NO_COLON),
        ("a;", NO_COLON),
        ("a:k=v;;", NO_COLON),
        (";a:", NO_COLON),
        ("a:k", NO_VALUE),
        ("a:k=", NO_VALUE),
        ("a:=v", NO_VALUE),
        ("a:,k=v", NO_VALUE),
        ("a:k=v,,k=w", NO_VALUE),
        ("a:k=%", NO_HEX),
        ("a:k=%2", NO_HEX),
        ("a:k=%2,path=x", NO_HEX),
        ("a:k=%41%4;b:", NO_HEX),
        ("a:k=%GG", BAD_HEX),
        ("a:k=%-1", BAD_HEX),
        ("a:k=a b", "In D-Bus address, character ' ' should have been escaped"),
        ("a:k=a=b", "In D-Bus address, character '=' should have been escaped"),
        ("a:k=~", "In D-Bus address, character '~' should have been escaped"),
    ],
)
def test_errors(text: str, error: str) -> None:
    with pytest.raises(DBusError) as caught:
        parse(text)
    assert (caught.value.name, caught.value.text) == (BAD_ADDRESS, error)


def test_escape() -> None:
    assert escape("/tmp/a b") == "/tmp/a%20b"
    assert escape("::1") == "%3a%3a1"
    assert escape("é") == "%c3%a9"
    assert escape("-_/\\*.azAZ09") == "-_/\\*.azAZ09"


@given(st.binary(min_size=1).filter(lambda raw: 0 not in raw))
def test_round_trip(raw: bytes) -> None:
    value = os.fsdecode(raw)
    assert unescape(escape(value)) == value
    assert parse(f"m:k={escape(value)},l=x") == [Address("m", {"k": value, "l": "x"})]


class _Error(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("message", ctypes.c_char_p),
        ("bits", ctypes.c_uint),
        ("padding", ctypes.c_void_p),
    ]


LIBDBUS = ctypes.util.find_library("dbus-1")


def reference(text: str) -> list[tuple[str, str | None]] | str:
    """What libdbus makes of an address: (method, value of "k") of each entry, or the error."""
    library = ctypes.CDLL(LIBDBUS)
    library.dbus_address_entry_get_method.restype = ctypes.c_char_p
    library.dbus_address_entry_get_value.restype = ctypes.c_char_p
    error = _Error()
    library.dbus_error_init(ctypes.byref(error))
    entries = ctypes.POINTER(ctypes.c_void_p)()
    count = ctypes.c_int()
    if not library.dbus_parse_address(
        os.fsencode(text), ctypes.byref(entries), ctypes.byref(count), ctypes.byref(error)
    ):
        message = os.fsdecode(error.message or b"").rstrip("\n")
        library.dbus_error_free(ctypes.byref(error))
        return message
    found = []
    for at in range(count.value):
        entry = ctypes.c_void_p(entries[at])
        value = library.dbus_address_entry_get_value(entry, b"k")
        method = library.dbus_address_entry_get_method(entry)
        found.append((os.fsdecode(method), None if value is None else os.fsdecode(value)))
    library.dbus_address_entries_free(entries)
    return found


TEXTS = st.text(alphabet="a%:;=,k/~ 2Gé-", max_size=12)


@pytest.mark.skipif(LIBDBUS is None, reason="no libdbus to compare with")
@given(TEXTS)
@example("a:k=v,;b:k=%2f;")
@example("a:k=%")
def test_as_libdbus(text: str) -> None:
    ours: list[tuple[str, str | None]] | str
    try:
        ours = [(entry.method, entry.get("k")) for entry in parse(text)]
    except DBusError as error:
        ours = error.text
    assert ours == reference(text)
