"""What the bus says, in both languages.

Invariant: one change of a name is one item, and one NameOwnerChanged or none.
"""

from __future__ import annotations

from struct import pack

import pytest
from classic_messages import core
from hypothesis import given
from hypothesis import strategies as st

from jitney.broker.kdbus.constants import (
    ITEM_AUXGROUPS,
    ITEM_CREDS,
    ITEM_ID_ADD,
    ITEM_ID_REMOVE,
    ITEM_NAME_ADD,
    ITEM_NAME_CHANGE,
    ITEM_NAME_REMOVE,
    ITEM_PIDS,
    ITEM_REPLY_DEAD,
    ITEM_REPLY_TIMEOUT,
    ITEM_SECLABEL,
    NAME_ACTIVATOR,
    NAME_IN_QUEUE,
)
from jitney.compat import wire
from jitney.kdbus.gvariant import Malformed
from jitney.kdbus.translate import (
    Item,
    NameChange,
    Signal,
    credentials,
    item_of,
    metadata,
    name_change,
    no_reply,
    owner_change,
    signals_of,
)

UNKNOWN = 0xFFFFFFFF


def named(kind: int, old: int, new: int, old_flags: int = 0, new_flags: int = 0) -> Item:
    return Item(kind, NameChange(b"a.b", old, new, old_flags, new_flags).data())


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (Item(ITEM_ID_ADD, pack("=QQ", 5, 0)), (b":1.5", b"", b":1.5")),
        (Item(ITEM_ID_REMOVE, pack("=QQ", 5, 0)), (b":1.5", b":1.5", b"")),
        (named(ITEM_NAME_ADD, 0, 5), (b"a.b", b"", b":1.5")),
        (named(ITEM_NAME_REMOVE, 5, 0), (b"a.b", b":1.5", b"")),
        (named(ITEM_NAME_CHANGE, 5, 6), (b"a.b", b":1.5", b":1.6")),
        (named(ITEM_NAME_CHANGE, 5, 6, NAME_ACTIVATOR), (b"a.b", b"", b":1.6")),
        (named(ITEM_NAME_CHANGE, 5, 6, 0, NAME_ACTIVATOR), (b"a.b", b":1.5", b"")),
        (named(ITEM_NAME_CHANGE, 5, 6, 0, NAME_IN_QUEUE), (b"a.b", b":1.5", b"")),
        (named(ITEM_NAME_CHANGE, 5, 6, NAME_ACTIVATOR, NAME_ACTIVATOR), None),
        (named(ITEM_NAME_ADD, 0, 5, 0, NAME_ACTIVATOR), None),
        (named(ITEM_NAME_REMOVE, 5, 0, NAME_ACTIVATOR), None),
        (Item(ITEM_REPLY_DEAD), None),
    ],
)
def test_owners(item: Item, expected: tuple[bytes, bytes, bytes] | None) -> None:
    assert owner_change(item) == expected


def test_items_are_laid_out_as_the_kernel_does() -> None:
    assert item_of(b"a.b", b":1.5", b":1.6") == Item(
        ITEM_NAME_CHANGE, pack("=4Q", 5, 0, 6, 0) + b"a.b\0"
    )
    assert item_of(b":1.5", b"", b":1.5") == Item(ITEM_ID_ADD, pack("=QQ", 5, 0))


ids = st.integers(1, (1 << 64) - 2).map(lambda number: b":1.%d" % number)


@given(st.sampled_from([b"a.b", b"c.d-e"]) | ids, st.just(b"") | ids, st.just(b"") | ids)
def test_owners_there_and_back(name: bytes, old: bytes, new: bytes) -> None:
    if name[:1] == b":":
        old, new = (b"", name) if old else (name, b"")
    if old == new:
        with pytest.raises(Malformed):
            item_of(name, old, new)
        return
    assert owner_change(item_of(name, old, new)) == (name, old, new)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (b"a.b", b"a.b", b":1.5"),
        (b"a.b", b"", b""),
        (b"a.b", b":1.5", b":1.5"),
        (b"nodot", b"", b":1.5"),
        (b":2.5", b"", b":1.5"),
        (b":1.5", b"", b":1.6"),
        (b":1.5", b":1.5", b":1.6"),
    ],
)
def test_what_is_no_change_of_a_name(name: bytes, old: bytes, new: bytes) -> None:
    with pytest.raises(Malformed):
        item_of(name, old, new)


@given(st.binary(max_size=60))
def test_noise_is_malformed(data: bytes) -> None:
    for head in (b"", bytes(32)):
        try:
            name_change(head + data)
        except Malformed:
            pass
    for kind in (ITEM_ID_ADD, ITEM_NAME_ADD, ITEM_CREDS, ITEM_PIDS, ITEM_AUXGROUPS, ITEM_SECLABEL):
        item = Item(kind, data)
        for turn in (owner_change, lambda item: credentials([item])):
            try:
                turn(item)
            except Malformed:
                pass


def test_signals_for_those_concerned() -> None:
    item = named(ITEM_NAME_CHANGE, 5, 6)
    changed = Signal(b"NameOwnerChanged", (b"a.b", b":1.5", b":1.6"))
    assert signals_of(item, 9) == [changed]
    assert signals_of(item, 5) == [Signal(b"NameLost", (b"a.b",), b":1.5"), changed]
    assert signals_of(item, 6) == [changed, Signal(b"NameAcquired", (b"a.b",), b":1.6")]
    assert signals_of(Item(ITEM_ID_ADD, pack("=QQ", 5, 0)), 5)[1:] == [
        Signal(b"NameAcquired", (b":1.5",), b":1.5")
    ]
    assert signals_of(named(ITEM_NAME_ADD, 0, 5, 0, NAME_ACTIVATOR), 5) == []


def test_a_signal_as_bytes() -> None:
    msg = core(Signal(b"NameLost", (b"a.b",), b":1.5").message(3))
    assert (msg.type, msg.serial, msg.flags) == (wire.SIGNAL, 3, wire.NO_REPLY)
    assert (msg.path, msg.interface) == (b"/org/freedesktop/DBus", b"org.freedesktop.DBus")
    assert (msg.member, msg.destination) == (b"NameLost", b":1.5")
    assert msg.sender == b"org.freedesktop.DBus"
    assert wire.unmarshal(b"s", msg.body(), False) == ["a.b"]
    msg = core(Signal(b"NameOwnerChanged", (b"a.b", b"", b":1.6")).message(1))
    assert msg.destination is None
    assert wire.unmarshal(b"sss", msg.body(), False) == ["a.b", "", ":1.6"]


def test_replies_that_will_not_come() -> None:
    for kind, text in (
        (ITEM_REPLY_TIMEOUT, "Message did not receive a reply (timeout by message bus)"),
        (ITEM_REPLY_DEAD, "Message recipient disconnected from message bus without replying"),
    ):
        msg = core(no_reply(Item(kind), 3, 8, b":1.5"))
        assert (msg.type, msg.reply_serial, msg.destination) == (wire.ERROR, 8, b":1.5")
        assert msg.error_name == b"org.freedesktop.DBus.Error.NoReply"
        assert wire.unmarshal(b"s", msg.body(), False) == [text]
    with pytest.raises(Malformed):
        no_reply(Item(ITEM_ID_ADD), 3, 8, b":1.5")


# ---- credentials


def test_credentials_of_a_kdbus_connection() -> None:
    items = [
        Item(ITEM_PIDS, pack("=3Q", 42, 43, 1)),
        Item(ITEM_CREDS, pack("=8Q", 1, 2, 3, 4, 5, 6, 7, 8)),
        Item(ITEM_AUXGROUPS, pack("=3Q", 20, 4, 6)),
        Item(ITEM_SECLABEL, b"label\0"),
        Item(0x1004, b"ignored"),
    ]
    assert credentials(items) == {
        "ProcessID": ("u", 42),
        "UnixUserID": ("u", 2),
        "UnixGroupIDs": ("au", [4, 6, 20]),
        "LinuxSecurityLabel": ("ay", b"label\0"),
    }
    wire.marshal("a{sv}", [credentials(items)])


def test_what_is_hidden_is_not_told() -> None:
    hidden = [UNKNOWN] * 8
    assert credentials([]) == {}
    assert credentials([Item(ITEM_PIDS, pack("=3Q", 0, 0, 0))]) == {}
    assert credentials([Item(ITEM_CREDS, pack("=8Q", *hidden))]) == {}
    assert credentials([Item(ITEM_CREDS, pack("=8Q", 7, *hidden[1:]))]) == {"UnixUserID": ("u", 7)}
    # All ones in 64 bits are not known, either.
    assert credentials([Item(ITEM_CREDS, pack("=8Q", *[(1 << 64) - 1] * 8))]) == {}
    assert credentials([Item(ITEM_SECLABEL, b"\0")]) == {}


ids32 = st.none() | st.integers(0, UNKNOWN - 1)


@given(
    st.none() | st.integers(1, 1 << 22),
    ids32,
    ids32,
    st.none() | st.sets(st.integers(0, 1 << 31), max_size=5),
    st.none() | st.binary(min_size=1, max_size=9).filter(lambda label: 0 not in label),
)
def test_credentials_of_a_classic_connection(
    pid: int | None, uid: int | None, gid: int | None, groups: set[int] | None, label: bytes | None
) -> None:
    known = credentials(metadata(pid, uid, gid, None if groups is None else sorted(groups), label))
    assert known.get("ProcessID") == (None if pid is None else ("u", pid))
    assert known.get("UnixUserID") == (None if uid is None else ("u", uid))
    assert known.get("LinuxSecurityLabel") == (None if label is None else ("ay", label + b"\0"))
    if groups is None or uid is None:
        assert "UnixGroupIDs" not in known
    else:
        assert known["UnixGroupIDs"][1] == sorted(groups if gid is None else groups | {gid})
