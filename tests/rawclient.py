"""A D-Bus client that hides nothing: it sends the bytes it is told to and shows all it gets.

Invariant: no background work and no state besides the socket, its unread bytes and the next
serial. A test decides when to read; what arrives is kept as `Received`, field for field.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jitney.compat import wire

DRIVER = b"org.freedesktop.DBus"
DRIVER_PATH = b"/org/freedesktop/DBus"

_FIELD_NAMES = {
    1: "path", 2: "interface", 3: "member", 4: "error_name", 5: "reply_serial",
    6: "destination", 7: "sender", 8: "signature", 9: "n_fds",
}  # fmt: skip
_FIELD_TYPES = {1: "o", 2: "s", 3: "s", 4: "s", 5: "u", 6: "s", 7: "s", 8: "g", 9: "u"}


@dataclass
class Received:
    """One message as it came; absent header fields are None, reply_serial and n_fds are 0."""

    type: int
    flags: int
    serial: int
    big_endian: bool
    path: str | None = None
    interface: str | None = None
    member: str | None = None
    error_name: str | None = None
    reply_serial: int = 0
    destination: str | None = None
    sender: str | None = None
    signature: str = ""
    n_fds: int = 0
    unknown: dict[int, Any] = field(default_factory=dict)
    body: list[Any] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)

    def close_fds(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


def build(
    type: int,
    serial: int,
    fields: Sequence[tuple[int, str, Any]],
    signature: str = "",
    values: Sequence[Any] = (),
    *,
    flags: int = 0,
    big_endian: bool = False,
    version: int = 1,
    body: bytes | None = None,
) -> bytes:
    """A message with the header fields (code, signature, value) as given, in that order.

    `body`, if given, stands in for the marshalled `values`.
    """
    if body is None:
        body = wire.marshal(signature, values, big_endian)
    listed = list(fields)
    if signature:
        listed.append((8, "g", signature))
    array_of_fields = wire.marshal("a(yv)", [[(c, (s, v)) for c, s, v in listed]], big_endian)
    # The array is aligned for offset 12 of a message as well as for offset 4 of this body.
    length, padded = array_of_fields[:4], array_of_fields[8:]
    order = ">" if big_endian else "<"
    start = struct.pack(
        order + "cBBBII", b"B" if big_endian else b"l", type, flags, version, len(body), serial
    )
    return start + length + padded + bytes(-len(padded) % 8) + body


def parse(data: bytes, fds: list[int]) -> Received:
    """The one whole message that `data` is; takes its descriptors off the front of `fds`."""
    big = data[:1] == b"B"
    order = ">" if big else "<"
    _, type_, flags, _, body_length, serial, fields_length = struct.unpack_from(
        order + "cBBBIII", data
    )
    header = wire.unmarshal(b"yyyyuua(yv)", data[: 16 + fields_length], big)
    message = Received(type_, flags, serial, big)
    for code, (signature, value) in header[6]:
        name = _FIELD_NAMES.get(code)
        if name is None or signature != _FIELD_TYPES[code]:
            message.unknown[code] = (signature, value)
        else:
            setattr(message, name, value)
    body = data[len(data) - body_length :] if body_length else b""
    message.body = wire.unmarshal(message.signature.encode(), body, big)
    message.fds = fds[: message.n_fds]
    del fds[: message.n_fds]
    return message


class RawClient:
    """One connection to a bus, authenticated, without a Hello until `hello()`.

    `closed` is true once either side has closed it and all that came before has been received.
    fds: file descriptors may be passed. uid: connect as this user, which only root can, and with
    `groups`, the primary one first, if they are given.
    """

    def __init__(
        self,
        address: str,
        *,
        fds: bool = True,
        uid: int | None = None,
        groups: Sequence[int] = (),
        timeout: float = 30.0,
    ) -> None:
        self.timeout = timeout
        self.serial = 0
        self.unique_name = ""
        self.closed = False
        self._unread = bytearray()  # which grows in place, if a message is large
        self._fds: list[int] = []
        if uid is None:
            self.sock = _connect(address)
        else:
            # The kernel notes the effective user and the groups at connect().
            before = os.geteuid(), os.getegid(), os.getgroups()
            if groups:
                os.setgroups(groups)
                os.setegid(groups[0])
            os.seteuid(uid)
            try:
                self.sock = _connect(address)
            finally:
                os.seteuid(before[0])
                os.setegid(before[1])
                if groups:
                    os.setgroups(before[2])
        self.sock.settimeout(timeout)
        self._authenticate(fds, os.geteuid() if uid is None else uid)

    def _authenticate(self, fds: bool, uid: int) -> None:
        identity = str(uid).encode().hex().encode()
        self.sock.sendall(b"\0AUTH EXTERNAL " + identity + b"\r\n")
        self._expect(b"OK ")
        if fds:
            self.sock.sendall(b"NEGOTIATE_UNIX_FD\r\n")
            self._expect(b"AGREE_UNIX_FD")
        self.sock.sendall(b"BEGIN\r\n")

    def _expect(self, start: bytes) -> None:
        line = b""
        while not line.endswith(b"\r\n"):
            byte = self.sock.recv(1)
            if not byte:
                raise ConnectionError(f"connection lost while waiting for {start!r}")
            line += byte
        if not line.startswith(start):
            raise ConnectionError(f"expected {start!r}, got {line!r}")

    # ---- sending

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Put bytes on the socket. If the bus has closed it, that shows in receive() only."""
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sent = self.sock.sendmsg([data], extra)
            if sent < len(data):
                self.sock.sendall(data[sent:])

    def message(
        self,
        type: int = wire.CALL,
        *,
        destination: bytes | None = DRIVER,
        path: bytes | None = None,
        interface: bytes | None = None,
        member: bytes | None = None,
        error_name: bytes | None = None,
        reply_serial: int = 0,
        sender: bytes | None = None,
        signature: str = "",
        values: Sequence[Any] = (),
        flags: int = 0,
        fds: Sequence[int] = (),
        unknown: Sequence[tuple[int, str, Any]] = (),
        serial: int = 0,
        big_endian: bool = False,
    ) -> int:
        """Send a message with exactly these header fields; its serial."""
        given = (
            (1, path), (2, interface), (3, member), (4, error_name), (5, reply_serial or None),
            (6, destination), (7, sender), (9, len(fds) or None),
        )  # fmt: skip
        fields = [(code, _FIELD_TYPES[code], value) for code, value in given if value is not None]
        serial = serial or self.next_serial()
        fields += unknown
        data = build(type, serial, fields, signature, values, flags=flags, big_endian=big_endian)
        self.send(data, fds)
        return serial

    def driver(
        self,
        member: bytes,
        signature: str = "",
        *values: Any,
        interface: bytes | None = DRIVER,
        path: bytes = DRIVER_PATH,
        flags: int = 0,
        serial: int = 0,
        big_endian: bool = False,
    ) -> int:
        """Send a call to the bus itself; its serial."""
        return self.message(
            path=path, interface=interface, member=member, signature=signature, values=values,
            flags=flags, serial=serial, big_endian=big_endian,
        )  # fmt: skip

    # ---- receiving

    def receive(self, timeout: float | None = None) -> Received | None:
        """The next message; None when the bus closed the connection; TimeoutError if none comes."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            size = _frame_size(self._unread)
            if size and len(self._unread) >= size:
                data, self._unread = self._unread[:size], self._unread[size:]
                return parse(bytes(data), self._fds)
            self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data, ancillary, _, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(253 * 4))
            except ConnectionResetError:
                data, ancillary = b"", []
            finally:
                self.sock.settimeout(self.timeout)
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    passed = array("i")
                    passed.frombytes(payload[: len(payload) & ~3])
                    self._fds.extend(passed)
            if not data:
                self.closed = True
                return None
            self._unread += data

    def reply_to(self, serial: int, timeout: float | None = None) -> Received:
        """The reply to `serial`; whatever comes before it is dropped."""
        while True:
            message = self.receive(timeout)
            if message is None:
                raise ConnectionError("the bus closed the connection")
            if message.reply_serial == serial and message.type in (wire.RETURN, wire.ERROR):
                return message
            message.close_fds()

    def next_with(self, member: str, timeout: float | None = None) -> Received:
        """The next message with this member; whatever comes before it is dropped."""
        while True:
            message = self.receive(timeout)
            if message is None:
                raise ConnectionError(f"the bus closed the connection before {member}")
            if message.member == member:
                return message
            message.close_fds()

    def hello(self) -> str:
        """Say Hello and remember the unique name; NameAcquired stays unread."""
        self.unique_name = self.reply_to(self.driver(b"Hello")).body[0]
        return self.unique_name

    def close(self) -> None:
        self.sock.close()
        self.closed = True
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connected(address: str, *names: str, **more: Any) -> RawClient:
    """One that has said Hello and has asked for these names."""
    client = RawClient(address, **more)
    client.hello()
    for name in names:
        client.reply_to(client.driver(b"RequestName", "su", name, 0))
    return client


def _frame_size(data: bytes) -> int:
    """Size of the message that `data` starts with; 0 while that cannot be told."""
    if len(data) < 16:
        return 0
    body, _, fields = struct.unpack_from((">" if data[:1] == b"B" else "<") + "III", data, 4)
    return 16 + int(fields) + -int(fields) % 8 + int(body)


def _connect(address: str) -> socket.socket:
    """A socket connected to the first entry of a D-Bus address list (unix:path or abstract)."""
    transport, _, rest = address.partition(";")[0].partition(":")
    keys = dict(pair.split("=", 1) for pair in rest.split(",") if pair)
    if transport != "unix" or not ("path" in keys or "abstract" in keys):
        raise ValueError(f"cannot connect to {address!r}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.connect(keys["path"] if "path" in keys else "\0" + keys["abstract"])
    return sock
