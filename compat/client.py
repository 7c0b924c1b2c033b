"""Client: one blocking connection to a bus, for commands that ask it something and end.

Invariant: a call returns the values of its reply or raises; nothing waits longer than `timeout`,
and nothing outlives `close()`. The bus itself never uses this.
"""

from __future__ import annotations

import os
import socket
import time
from types import TracebackType
from typing import Any, Literal

from jitney.broker.message import Message

from . import wire
from .address import Address, parse
from .errors import DBusError

DRIVER = b"org.freedesktop.DBus"
DRIVER_PATH = b"/org/freedesktop/DBus"
SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"

# As long as a message may be.
_MAX_SIZE = 1 << 27


class NoBus(Exception):
    """There is no talking to the bus; the text says why."""


def standard_address(bus: str) -> str:
    """Where the "system" or the "session" bus is. Raises NoBus."""
    if bus == "system":
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
    if address:
        return address
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.exists(f"{runtime}/bus"):
        return f"unix:path={runtime}/bus"
    raise NoBus("there is no session bus: DBUS_SESSION_BUS_ADDRESS is not set")


class Client:
    """A connection that has said Hello. Raises NoBus, and DBusError where the bus refuses it."""

    def __init__(self, address: str, timeout: float = 25.0) -> None:
        self.timeout = timeout
        self.serial = 0
        self.unread = b""
        self.sock = _connected(address, timeout)
        try:
            self._authenticate()
            self.unique_name: str = self.call("Hello")[0]
        except OSError as error:
            self.close()
            raise NoBus(f"{address}: {error.strerror or error}") from None
        except (NoBus, DBusError):
            self.close()
            raise

    def call(
        self,
        member: str,
        signature: str = "",
        *values: Any,
        interface: bytes = DRIVER,
    ) -> list[Any]:
        """Calls a method of the bus itself. Raises DBusError for an error reply, NoBus for none."""
        self.serial += 1
        self.deadline = time.monotonic() + self.timeout
        data = wire.message(
            wire.CALL,
            self.serial,
            path=DRIVER_PATH,
            interface=interface,
            member=member.encode(),
            destination=DRIVER,
            sender=None,
            signature=signature,
            body=wire.marshal(signature, values),
        )
        try:
            self.sock.sendall(data)
            while True:
                msg = self._receive()
                if msg.reply_serial == self.serial and msg.type in (wire.RETURN, wire.ERROR):
                    break
        except OSError as error:
            raise NoBus(f"the bus does not answer: {error.strerror or error}") from None
        found = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)
        if msg.type == wire.ERROR:
            text = found[0] if found and isinstance(found[0], str) else ""
            raise DBusError((msg.error_name or b"").decode(), text)
        return found

    def next_message(self) -> Message:
        """Whatever comes next, where no reply is waited for. Raises NoBus, also for no message."""
        self.deadline = time.monotonic() + self.timeout
        try:
            return self._receive()
        except OSError as error:
            raise NoBus(f"the bus does not answer: {error.strerror or error}") from None

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _authenticate(self) -> None:
        # EXTERNAL: the kernel says who we are, the text only whom we would like to be.
        self.deadline = time.monotonic() + self.timeout
        identity = str(os.geteuid()).encode().hex().encode()
        self.sock.sendall(b"\0AUTH EXTERNAL " + identity + b"\r\n")
        while b"\r\n" not in self.unread:
            self._more()
        line, _, self.unread = self.unread.partition(b"\r\n")
        if not line.startswith(b"OK "):
            raise NoBus("the bus does not let this user in")
        self.sock.sendall(b"BEGIN\r\n")

    def _receive(self) -> Message:
        while len(self.unread) < 16:
            self._more()
        order: Literal["big", "little"] = "big" if self.unread[:1] == b"B" else "little"
        body = int.from_bytes(self.unread[4:8], order)
        fields = int.from_bytes(self.unread[12:16], order)
        size = 16 + (fields + 7 & ~7) + body
        if size > _MAX_SIZE:
            raise NoBus("the bus sends what is no message")
        while len(self.unread) < size:
            self._more()
        data, self.unread = self.unread[:size], self.unread[size:]
        msg = Message()
        if not msg.load(data):
            raise NoBus("the bus sends what is no message")
        return msg

    def _more(self) -> None:
        self.sock.settimeout(max(0.001, self.deadline - time.monotonic()))
        try:
            data = self.sock.recv(65536)
        except TimeoutError:
            raise NoBus("the bus does not answer in time") from None
        if not data:
            raise NoBus("the bus closed the connection")
        self.unread += data


def _connected(address: str, timeout: float) -> socket.socket:
    """A socket to the first entry of an address that leads somewhere."""
    try:
        entries = parse(address)
    except DBusError as error:
        raise NoBus(f'"{address}" is no address: {error.text}') from None
    reasons = []
    for entry in entries:
        try:
            return _socket(entry, timeout)
        except OSError as error:
            reasons.append(error.strerror or str(error))
    raise NoBus(f"{address}: {'; '.join(reasons)}")


def _socket(entry: Address, timeout: float) -> socket.socket:
    path, abstract = entry.get("path"), entry.get("abstract")
    if entry.method in ("tcp", "nonce-tcp"):
        raise OSError(f"{entry.method} shows nobody's user: not supported here")
    if entry.method != "unix" or (path is None and abstract is None):
        raise OSError(f'"{entry.method}" with these parameters is not supported here')
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(path if path is not None else f"\0{abstract}")
    except BaseException:
        sock.close()
        raise
    return sock
