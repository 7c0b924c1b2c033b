"""Any byte sequence at any split ends at most the connection it came on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import buses
import pytest
import rawclient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rawclient import DRIVER, DRIVER_PATH, RawClient, build

DATA = Path("/usr/lib/dbus-1.0/installed-tests/dbus/data")
AUTH = b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\nBEGIN\r\n"


@pytest.fixture(scope="module")
def bus() -> Iterator[buses.Daemon]:
    with buses.running(buses.jitney_command()) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def witness(bus: buses.Daemon) -> Iterator[RawClient]:
    """Somebody who must never notice."""
    with RawClient(bus.address) as client:
        client.hello()
        yield client


def alive(client: RawClient) -> None:
    reply = client.reply_to(client.driver(b"GetId"))
    assert reply.signature == "s"


def to_driver(serial: int, member: bytes, big: bool, signature: str = "", *values: object) -> bytes:
    fields = [(1, "o", DRIVER_PATH), (2, "s", DRIVER), (3, "s", member), (6, "s", DRIVER)]
    return build(1, serial, fields, signature, values, big_endian=big)


def conversation(big: bool) -> bytes:
    """Auth, Hello, a rule, a signal that comes back, a call with arguments, the last call."""
    rule = "type='signal',interface='cut.Test'"
    signal = build(
        4, 3, [(1, "o", b"/cut"), (2, "s", b"cut.Test"), (3, "s", b"S")], "sa{sv}uay",
        ["text", {"k": ("s", "v")}, 7, b"bytes"], big_endian=big,
    )  # fmt: skip
    return b"".join(
        [
            AUTH,
            to_driver(1, b"Hello", big),
            to_driver(2, b"AddMatch", big, "s", rule),
            signal,
            to_driver(4, b"NameHasOwner", big, "s", "org.freedesktop.DBus"),
            to_driver(5, b"GetId", big),
        ]
    )


def answers(bus: buses.Daemon, pieces: list[bytes]) -> list[tuple[object, ...]]:
    """What a peer gets that sends these pieces one by one, but for what differs by connection."""
    sock = rawclient._connect(bus.address)
    sock.settimeout(30)
    for piece in pieces:
        sock.sendall(piece)
    line = b""
    while not line.endswith(b"\r\n"):
        line += sock.recv(1)
    assert line.startswith(b"OK ")
    client = RawClient.__new__(RawClient)
    client.timeout, client.serial, client.closed = 10.0, 0, False
    client.sock, client._unread, client._fds = sock, b"", []
    got = []
    with client:
        name = ""
        while True:
            message = client.receive()
            assert message is not None
            if message.reply_serial == 1:
                name = message.body[0]
            body = [value if value != name else "<me>" for value in message.body]
            got.append(
                (message.type, message.member, message.reply_serial, message.signature, body)
            )
            if message.reply_serial == 5:
                return got


@pytest.mark.parametrize("big", [False, True], ids=["little", "big"])
def test_cut_at_every_byte(bus: buses.Daemon, witness: RawClient, big: bool) -> None:
    whole = conversation(big)
    expected = answers(bus, [whole])
    assert [entry[2] for entry in expected] == [1, 0, 2, 0, 4, 5]
    for i in range(1, len(whole)):
        assert answers(bus, [whole[:i], whole[i:]]) == expected
    alive(witness)


def test_one_byte_at_a_time(bus: buses.Daemon) -> None:
    whole = conversation(False)
    assert answers(bus, [whole[i : i + 1] for i in range(len(whole))]) == answers(bus, [whole])


def test_large_message_in_odd_pieces(bus: buses.Daemon) -> None:
    with RawClient(bus.address) as a, RawClient(bus.address) as b:
        a.hello()
        b.hello()
        body = bytes(range(256)) * 12000  # 3 MB
        fields = [(1, "o", b"/"), (3, "s", b"Big"), (6, "s", b.unique_name.encode())]
        small = [(1, "o", b"/"), (3, "s", b"Small"), (6, "s", b.unique_name.encode())]
        follow = build(1, 9, small, flags=1)
        data = build(1, 8, fields, "ay", [body]) + follow + follow[:17]
        start = 0
        # Pieces of many sizes; the last one ends within the header of a third message.
        for i, size in enumerate([1, 15, 17, 65536, 262144, 7, 300000, 1 << 20, 1 << 22]):
            a.send(data[start : start + size])
            start += size
            assert i < 9
        messages = []
        while len(messages) < 2:
            got = b.receive()
            assert got is not None
            if got.member in ("Big", "Small"):
                messages.append(got)
        assert messages[0].body == [body]
        assert messages[1].member == "Small"
        a.send(follow[17:])
        third = b.receive()
        assert third is not None
        assert third.member == "Small"


def test_many_messages_in_one_write(bus: buses.Daemon) -> None:
    with RawClient(bus.address) as client:
        client.hello()
        serials = range(10, 2010)
        client.send(b"".join(to_driver(serial, b"GetId", False) for serial in serials))
        got = []
        while len(got) < len(serials):
            message = client.receive()
            assert message is not None
            if message.reply_serial:
                got.append(message.reply_serial)
        assert got == list(serials)


SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def send_and_see(bus: buses.Daemon, data: bytes) -> None:
    sock = rawclient._connect(bus.address)
    sock.settimeout(30)
    try:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        sock.close()


@SETTINGS
@given(junk=st.binary(max_size=400), prefix=st.sampled_from([b"", b"\0", AUTH[:10], AUTH]))
@pytest.mark.weakness("dbus#421")
def test_junk(bus: buses.Daemon, witness: RawClient, prefix: bytes, junk: bytes) -> None:
    send_and_see(bus, prefix + junk)
    alive(witness)


@SETTINGS
@given(
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4)
)
@pytest.mark.weakness("dbus#421")
def test_damaged_conversation(bus: buses.Daemon, witness: RawClient, damage) -> None:
    data = bytearray(conversation(False))
    for where, byte in damage:
        data[where % len(data)] = byte
    send_and_see(bus, bytes(data))
    alive(witness)


@pytest.mark.parametrize(
    "what",
    [
        b"l\x01\0\x02" + bytes(12),  # protocol version 2
        b"x\x01\0\x01" + bytes(12),  # no byte order
        b"l\x01\0\x01" + b"\xff\xff\xff\x7f" + b"\1\0\0\0" + bytes(4),  # 2 GB announced
        b"l\x01\0\x01" + bytes(4) + b"\1\0\0\0" + b"\xff\xff\xff\xff",
        b"l\0\0\x01" + bytes(4) + b"\1\0\0\0" + bytes(4),  # type 0
        b"l\x04\0\x01" + bytes(4) + b"\1\0\0\0" + bytes(4),  # a signal without a path
        build(4, 1, [(1, "o", b"/org/freedesktop/DBus/Local"), (2, "s", b"a.b"), (3, "s", b"S")]),
        build(4, 1, [(1, "o", b"/"), (2, "s", b"org.freedesktop.DBus.Local"), (3, "s", b"S")]),
        build(4, 0, [(1, "o", b"/"), (2, "s", b"a.b"), (3, "s", b"S")]),  # serial 0
    ],
)
def test_invalid_message_costs_the_connection(
    bus: buses.Daemon, witness: RawClient, what: bytes
) -> None:
    with RawClient(bus.address) as client:
        client.hello()
        client.send(what)
        while client.receive() is not None:
            pass
        assert client.closed
    alive(witness)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs Debian's package dbus-tests")
@pytest.mark.parametrize("folder", ["valid-messages", "invalid-messages"])
@pytest.mark.weakness("CVE-2022-42010", "CVE-2022-42011")
def test_messages_of_dbus(bus: buses.Daemon, witness: RawClient, folder: str) -> None:
    files = sorted((DATA / folder).glob("*.message-raw"))
    assert files
    for file in files:
        if "fd-index" in file.name:
            continue  # claims a descriptor that a file cannot carry
        with RawClient(bus.address) as client:
            client.hello()
            client.send(file.read_bytes())
            serial = client.driver(b"GetId", serial=0x1234)
            if folder == "valid-messages":
                assert client.reply_to(serial).signature == "s"
            else:
                while client.receive() is not None:
                    pass
    alive(witness)


def test_message_before_hello_ends_the_connection(bus: buses.Daemon, witness: RawClient) -> None:
    with RawClient(bus.address) as client:
        client.message(destination=witness.unique_name.encode(), path=b"/", member=b"Early")
        assert client.receive() is None
    alive(witness)
