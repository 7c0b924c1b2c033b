"""Helpers for kdbus's tests: commands as bytes, and clients without a file system.

Invariant: a client here goes through the same table of commands as one over FUSE; only its memory
is a bytearray of ours, and its descriptors are made up. What tests do with a World and its clients
can be done on other fronts as well, see kdbusnative.py and kdbusfuse.py.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any

from unnamed import sealed

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.connection import Transport
from jitney.broker.kdbus.domain import Domain
from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.metadata import Caller, Creds
from jitney.kdbus import uapi
from jitney.kdbus.commands import Handle, admit, run
from jitney.kdbus.request import Memory, Request

POOL = 1 << 20
BASE = 0x10000


class Errno(Exception):
    """What a bus answered a command."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


def item(kind: int, data: bytes = b"") -> bytes:
    return struct.pack("<QQ", 16 + len(data), kind) + data + bytes(-len(data) & 7)


def text(kind: int, value: bytes) -> bytes:
    return item(kind, value + b"\0")


def u64(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def access(whom: int, right: int, number: int = 0) -> bytes:
    return item(c.ITEM_POLICY_ACCESS, u64(whom, right, number))


def command(name: str, flags: int = 0, fields: bytes = b"", items: bytes = b"") -> bytes:
    """A command: its head, `fields` behind return_flags (padded with zeros), and items."""
    size = uapi.BY_NAME[name].size
    body = u64(0, flags, 0) + fields
    body += bytes(size - len(body)) + items
    return u64(len(body)) + body[8:]


def message(
    dst: int,
    items: bytes = b"",
    flags: int = 0,
    cookie: int = 1,
    timeout: int = 0,
    priority: int = 0,
    src: int = 0,
    payload_type: int = 7,
) -> bytes:
    size = 64 + len(items)
    head = struct.pack("<QQqQQQQQ", size, flags, priority, dst, src, payload_type, cookie, timeout)
    return head + items


def bloom(generation: int = 0, bits: bytes = bytes(64)) -> bytes:
    return item(c.ITEM_BLOOM_FILTER, u64(generation) + bits)


class FakeFd:
    """A descriptor of a client that exists here alone; other kits make a real one of it."""

    def __init__(self, data: bytes | None = None) -> None:
        self.data = data
        self.held = 1
        self.real = -1

    @property
    def holders(self) -> int:
        if self.real < 0:
            return self.held
        mine = os.fstat(self.real)
        found = 0
        for name in os.listdir("/proc/self/fd"):
            try:
                other = os.stat(f"/proc/self/fd/{name}")
            except OSError:
                continue
            found += (other.st_dev, other.st_ino) == (mine.st_dev, mine.st_ino)
        return found

    def hold(self) -> FakeFd:
        self.held += 1
        return self

    def drop(self) -> None:
        self.held -= 1
        assert self.held >= 0

    def read(self, start: int, size: int) -> bytes:
        assert self.data is not None
        return self.data[start : start + size]

    def number(self) -> int:
        """A real descriptor: a sealed memfd with the data, or the end of a pipe."""
        if self.real < 0:
            if self.data is None:
                self.real, other = os.pipe()
                os.close(other)
            else:
                self.real = sealed(self.data)
        return self.real

    def __del__(self) -> None:
        if self.real >= 0:
            os.close(self.real)


class FakeMemory(Memory):
    """Memory from BASE on; `fds` by number."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.fds: dict[int, FakeFd] = {}

    def put(self, data: bytes) -> int:
        self.data += bytes(-len(self.data) & 7)
        address = BASE + len(self.data)
        self.data += data
        return address

    def read(self, address: int, size: int) -> bytes:
        at = address - BASE
        if at < 0 or at + size > len(self.data):
            raise KdbusError(errno.EFAULT)
        return bytes(self.data[at : at + size])

    def read_some(self, address: int, size: int) -> bytes:
        left = BASE + len(self.data) - address
        if left <= 0 or address < BASE:
            raise KdbusError(errno.EFAULT)
        return self.read(address, min(size, left))

    def write(self, address: int, data: bytes) -> None:
        at = address - BASE
        if at < 0 or at + len(data) > len(self.data):
            raise KdbusError(errno.EFAULT)
        self.data[at : at + len(data)] = data

    def take_fd(self, number: int) -> FakeFd:
        if number not in self.fds:
            raise KdbusError(errno.EBADF)
        return self.fds[number].hold()

    def take_memfd(self, number: int, start: int, size: int) -> FakeFd:
        handle = self.take_fd(number)
        if handle.data is None:
            handle.drop()
            raise KdbusError(errno.EMEDIUMTYPE)
        return handle


class News(Transport):
    """Counts wake-ups."""

    def __init__(self, installs: bool) -> None:
        self.installs = installs
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


class Item:
    def __init__(self, kind: int, data: bytes) -> None:
        self.kind = kind
        self.data = data


def items_of(data: bytes, start: int) -> list[Item]:
    return [Item(kind, data[at : at + size]) for kind, at, size in uapi.walk(data, start)]


class Got:
    """A message as it is in the pool."""

    def __init__(self, data: bytes) -> None:
        (
            self.size, self.flags, self.priority, self.dst, self.src, self.payload_type,
            self.cookie, self.timeout,
        ) = struct.unpack_from("<QQqQQQQQ", data)  # fmt: skip
        self.data = data
        self.items = items_of(data[: self.size], 64)

    def kinds(self) -> list[int]:
        return [entry.kind for entry in self.items]

    def get(self, kind: int) -> bytes | None:
        return next((entry.data for entry in self.items if entry.kind == kind), None)

    @property
    def payload(self) -> bytes:
        out = b""
        for entry in self.items:
            if entry.kind == c.ITEM_PAYLOAD_OFF:
                size, offset = struct.unpack("<QQ", entry.data)
                out += bytes(size) if offset == c.NONE64 else self.data[offset : offset + size]
        return out


class Client:
    """An open node. `endpoint` None: the control node."""

    def __init__(
        self,
        domain: Domain,
        endpoint: Any,
        uid: int = 0,
        groups: tuple[int, ...] = (),
        privileged: bool = False,
        installs: bool = False,
    ) -> None:
        self.creds = Creds(uid, uid, uid, groups, privileged)
        self.caller = Caller(self.creds)
        self.handle = Handle(domain, endpoint, self.creds)
        self.news = self.handle.transport = News(installs)
        self.memory = FakeMemory()
        self.answers: list[int] = []
        self.id = 0

    def ioctl(self, name: str, data: bytes, address: int | None = None) -> tuple[int, bytes]:
        """(errno, the command as it is afterwards); errno -1 where the answer comes later."""
        form = uapi.BY_NAME[name]
        where = self.memory.put(data) if address is None else address
        try:
            source, size = admit(self.handle, name)
        except KdbusError as error:
            return error.errno, data
        request = Request(form, where)
        request.fetch(self.memory, b"", source, size)
        run(self.handle, self.caller, request, self.finish)
        if request.error is None:
            self.waiting = request
            return -1, data
        for at, changed in request.written():
            self.memory.write(at, changed)
        request.drop()
        if address is not None:
            return request.error, b""
        return request.error, self.memory.read(where, len(data))

    def finish(self, request: Request) -> None:
        for at, changed in request.written():
            self.memory.write(at, changed)
        request.drop()
        assert request.error is not None
        self.answers.append(request.error)

    def do(self, name: str, flags: int = 0, fields: bytes = b"", items: bytes = b"") -> bytes:
        """A command that must succeed."""
        number, data = self.ioctl(name, command(name, flags, fields, items))
        assert number == 0, errno.errorcode.get(number, number)
        return data

    def error(self, name: str, flags: int = 0, fields: bytes = b"", items: bytes = b"") -> int:
        return self.ioctl(name, command(name, flags, fields, items))[0]

    def close(self) -> None:
        self.handle.close()

    # What most tests need

    def hello(self, flags: int = c.HELLO_ACCEPT_FD, items: bytes = b"", pool: int = POOL) -> Client:
        fields = u64(c.ATTACH_ALL, c.ATTACH_ALL, 0, 0, pool)
        data = self.do("HELLO", flags, fields, items)
        self.id = struct.unpack_from("<Q", data, 48)[0]
        if not flags & c.HELLO_POLICY_HOLDER:  # which cannot free anything
            self.do("FREE", 0, data[64:72])
        return self

    def slice(self, offset: int, size: int) -> bytes:
        conn = self.handle.conn
        assert conn is not None
        data: bytes = conn.pool.memory.read(offset, size)
        return data

    def send(self, data: bytes, flags: int = 0, items: bytes = b"") -> int:
        address = self.memory.put(data)
        return self.ioctl("SEND", command("SEND", flags, u64(address), items))[0]

    def recv(self, flags: int = 0, priority: int = 0) -> Got:
        got = self.try_recv(flags, priority)
        assert isinstance(got, Got), errno.errorcode.get(got, got)
        return got

    def try_recv(self, flags: int = 0, priority: int = 0) -> Got | int:
        data = command("RECV", flags, struct.pack("<q", priority))
        number, data = self.ioctl("RECV", data)
        self.return_flags, _, self.lost, offset, size, self.msg_flags = struct.unpack_from(
            "<QqQQQQ", data, 16
        )
        if number:
            return number
        got = Got(self.slice(offset, size)) if size else Got(message(0))
        if size:
            self.do("FREE", 0, u64(offset))
        return got

    def acquire(self, name: bytes, flags: int = 0) -> int:
        """What became of it; minus errno for what did not."""
        data = command("NAME_ACQUIRE", flags, items=text(c.ITEM_NAME, name))
        number, data = self.ioctl("NAME_ACQUIRE", data)
        return -number if number else int(struct.unpack_from("<Q", data, 16)[0])

    def listen(self, items: bytes = b"", cookie: int = 1, flags: int = 0) -> None:
        self.do("MATCH_ADD", flags, u64(cookie), items)


class World:
    """A domain with a bus of uid 0 in it."""

    def __init__(self) -> None:
        self.domain = Domain()
        self.made: list[Client] = []
        self.begin()

    def begin(self) -> None:
        self.control = self.control_node()
        self.control.do(
            "BUS_MAKE",
            c.ACCESS_WORLD,
            items=text(c.ITEM_MAKE_NAME, b"0-test") + item(c.ITEM_BLOOM_PARAMETER, u64(64, 1)),
        )
        self.bus = self.domain.buses[b"0-test"]

    def close(self) -> None:
        """The end of all clients."""
        for client in self.made:
            client.close()

    def at(self, endpoint: Any, **more: Any) -> Any:
        """Who has opened this endpoint (None: the control node)."""
        client = Client(self.domain, endpoint, **more)
        self.made.append(client)
        return client

    def control_node(self, **more: Any) -> Any:
        return self.at(None, **more)

    def open(self, **more: Any) -> Any:
        return self.at(self.bus.default, **more)

    def conn(self, flags: int = c.HELLO_ACCEPT_FD, items: bytes = b"", **more: Any) -> Any:
        return self.open(**more).hello(flags, items)

    def activator(self, name: bytes, *rights: bytes) -> Any:
        return self.conn(c.HELLO_ACTIVATOR | 1, text(c.ITEM_NAME, name) + b"".join(rights))

    def holder(self, name: bytes, *rights: bytes) -> Any:
        return self.conn(c.HELLO_POLICY_HOLDER | 1, text(c.ITEM_NAME, name) + b"".join(rights))

    def endpoint(self, name: bytes = b"0-door") -> tuple[Any, Any]:
        """(who owns it, the endpoint)."""
        owner = self.open()
        owner.do("ENDPOINT_MAKE", c.ACCESS_WORLD, items=text(c.ITEM_MAKE_NAME, name))
        return owner, self.bus.endpoints[name]
