"""Request: one command of a client, from its memory to its memory.

Invariant: `fetch()` reads all that is needed of the client's memory before the core is asked, and
`written()` says all that goes back afterwards; in between nobody looks at that memory, which the
client may change or take away at any time. Nothing is read twice.

A front implements `Memory`; with FUSE it is another process's, with a socket what came along.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.message import Message, check

from . import uapi
from .uapi import FLAGS, RETURN_FLAGS, U64, Form

GUESS = 512
"""So much of a message is read in the first go; most are not larger."""


class Memory:
    """A client's memory and descriptors, as a front gets at them. EFAULT for what is not there."""

    def read(self, address: int, size: int) -> bytes:
        raise NotImplementedError

    def read_some(self, address: int, size: int) -> bytes:
        """As much as there is, at least 8 bytes and at most `size`."""
        return self.read(address, size)

    def read_many(self, parts: Sequence[tuple[int, int]]) -> Sequence[Any]:
        """The bytes of several (address, size), which are good until the command is done."""
        return [self.read(address, size) for address, size in parts]

    def write(self, address: int, data: bytes) -> None:
        raise NotImplementedError

    def take_fd(self, number: int) -> Any:
        """A handle of the client's descriptor, with `hold()` and `drop()`; EBADF, EOPNOTSUPP."""
        raise KdbusError(errno.EBADF)

    def take_cancel(self, number: int) -> Any:
        """A handle of a descriptor that can be waited for; EBADF, EINVAL."""
        return self.take_fd(number)

    def take_memfd(self, number: int, start: int, size: int) -> Any:
        """A sealed memfd with these bytes, and `read()`; EBADF, EMEDIUMTYPE, ETXTBSY, EFAULT."""
        raise KdbusError(errno.EBADF)


class Parsed:
    """A command or a message: its bytes, and its items as (payload, size) by type. `flags` are
    those that it came with."""

    def __init__(self, form: Form, address: int, data: bytearray) -> None:
        self.form = form
        self.address = address
        self.data = data
        self.flags = int(U64.unpack_from(data, FLAGS)[0])
        self.negotiates = bool(self.flags & c.NEGOTIATE)
        self.order: list[tuple[int, int, int]] = []
        self.found: dict[int, list[tuple[int, int]]] = {}
        # What goes back: ranges of `data`.
        self.ranges: list[tuple[int, int]] = []

    def get(self, kind: int) -> bytes | None:
        """The payload of the only item of this type."""
        found = self.found.get(kind)
        if not found:
            return None
        at, size = found[0]
        return bytes(self.data[at : at + size])

    def text(self, kind: int) -> bytes | None:
        data = self.get(kind)
        return data[:-1] if data is not None else None

    def u64(self, at: int) -> int:
        return int(U64.unpack_from(self.data, at)[0])

    def put(self, at: int, *numbers: int) -> None:
        """Changes fields, which then go back to the client."""
        for index, number in enumerate(numbers):
            U64.pack_into(self.data, at + 8 * index, number)
        self.ranges.append((at, 8 * len(numbers)))

    def parse(self) -> None:
        """Takes the items apart and answers what is asked about the form itself."""
        form, data = self.form, self.data
        flags = self.flags
        if flags & ~form.flags:
            raise KdbusError(errno.EINVAL)
        for kind, at, size in uapi.walk(data, form.size):
            many = form.items.get(kind)
            if many is None:
                raise KdbusError(errno.EINVAL)
            uapi.check_item(kind, bytes(data[at : at + size]))
            have = self.found.setdefault(kind, [])
            if have and not many:
                raise KdbusError(errno.EINVAL)
            have.append((at, size))
            self.order.append((kind, at, size))
        asked = self.found.get(c.ITEM_NEGOTIATE)
        if asked:
            at, size = asked[0]
            for place in range(at, at + size, 8):
                if self.u64(place) not in form.items:
                    self.put(place, 0)
        if flags & c.NEGOTIATE:
            return
        for kind in form.needs:
            if kind not in self.found:
                raise KdbusError(errno.EINVAL)

    def finish_flags(self) -> None:
        """The flags that the form takes go back in place of those that asked."""
        if self.negotiates:
            self.put(FLAGS, self.form.flags & ~c.NEGOTIATE)


def fetch(memory: Memory, form: Form, address: int, head: bytes = b"", least: int = 0) -> bytearray:
    """The bytes of a command or message; `head` is what is known already of it."""
    if address % 8:
        raise KdbusError(errno.EFAULT)
    if not head:
        head = memory.read_some(address, max(form.size, least))
    if len(head) < 8:
        raise KdbusError(errno.EFAULT)
    size = U64.unpack_from(head)[0]
    if size < form.size:
        raise KdbusError(errno.EINVAL)
    if size > c.CMD_MAX_SIZE:
        raise KdbusError(errno.EMSGSIZE)
    if len(head) >= size:
        return bytearray(head[:size])
    data = bytearray(head)
    data += memory.read(address + len(head), size - len(head))
    return data


class Request:
    """A command being worked on. `error` is its errno, 0 for success, None while it waits."""

    def __init__(self, form: Form, address: int) -> None:
        self.form = form
        self.address = address
        self.error: int | None = 0
        self.command: Parsed | None = None
        self.envelope: Parsed | None = None
        self.message: Message | None = None
        self.handles: list[Any] = []
        self.cancel_fd: Any = None
        self.received: Any = None
        self.pending: Any = None
        self.call: Any = None

    def fetch(self, memory: Memory, head: bytes, source_id: int, bloom_size: int) -> None:
        """Reads and checks all; what is wrong with it becomes `error`."""
        try:
            data = fetch(memory, self.form, self.address, head)
            command = self.command = Parsed(self.form, self.address, data)
            if command.u64(RETURN_FLAGS):
                command.put(RETURN_FLAGS, 0)
            command.parse()
            if self.form.name == "SEND":
                self.fetch_message(memory, command, source_id, bloom_size)
        except KdbusError as error:
            self.error = error.errno

    @property
    def negotiates(self) -> bool:
        return self.command is not None and self.command.negotiates

    def fetch_message(
        self, memory: Memory, command: Parsed, source_id: int, bloom_size: int
    ) -> None:
        address = command.u64(24)
        if command.negotiates and not address:
            return
        form = uapi.MESSAGE_FORM
        data = fetch(
            memory, form, address, memory.read_some(address, GUESS) if address % 8 == 0 else b""
        )
        envelope = self.envelope = Parsed(form, address, data)
        envelope.parse()
        if envelope.negotiates and not command.negotiates:
            raise KdbusError(errno.EINVAL)
        if command.negotiates:
            return
        cancel = command.get(c.ITEM_CANCEL_FD)
        if cancel is not None:
            self.cancel_fd = memory.take_cancel(int.from_bytes(cancel, "little", signed=True))
            self.handles.append(self.cancel_fd)
        self.message = self.make_message(memory, envelope, source_id, bloom_size)

    def make_message(
        self, memory: Memory, envelope: Parsed, source_id: int, bloom_size: int
    ) -> Message:
        _, flags, priority, dst, src, payload_type, cookie, timeout = uapi.MESSAGE.unpack_from(
            envelope.data
        )
        if src not in (0, source_id):
            raise KdbusError(errno.EINVAL)
        message = Message(dst, flags, cookie, timeout)
        message.priority = priority
        message.payload_type = payload_type
        reads, places = self.arrange(message, envelope, bloom_size)
        sync = bool(self.command is not None and self.command.flags & c.SEND_SYNC_REPLY)
        check(message, sync, bloom_size)
        self.take_handles(memory, message)
        if reads:
            for place, data in zip(places, memory.read_many(reads), strict=True):
                message.parts[place] = (1, data)
        return message

    def arrange(
        self, message: Message, envelope: Parsed, bloom_size: int
    ) -> tuple[list[tuple[int, int]], list[int]]:
        """Puts the items into the message; (what to read of the client, for which part)."""
        reads = []
        places = []
        payload = 0
        for kind, at, size in envelope.order:
            data = bytes(envelope.data[at : at + size])
            if kind == c.ITEM_PAYLOAD_VEC:
                length, address = uapi.VEC.unpack(data)
                payload += length
                if payload > c.PAYLOAD_VEC_MAX:
                    raise KdbusError(errno.EMSGSIZE)
                if address:
                    reads.append((address, length))
                    places.append(len(message.parts))
                    message.add_data(b"")
                else:
                    message.add_zeros(length)
            elif kind == c.ITEM_PAYLOAD_MEMFD:
                start, length, fd, _ = uapi.MEMFD.unpack(data)
                if start + length >= 1 << 64:
                    raise KdbusError(errno.EMSGSIZE)
                message.add_memfd(fd, start, length)
            elif kind == c.ITEM_FDS:
                numbers = [
                    int.from_bytes(data[i : i + 4], "little", signed=True)
                    for i in range(0, size, 4)
                ]
                if len(numbers) > c.FDS_PER_USER:
                    raise KdbusError(errno.EMFILE)
                message.add_fds(numbers)
            elif kind == c.ITEM_BLOOM_FILTER:
                if (size - 8) % 8:
                    raise KdbusError(errno.EFAULT)
                if size - 8 != bloom_size:
                    raise KdbusError(errno.EDOM)
                message.add_bloom(U64.unpack_from(data)[0], data[8:])
            elif kind == c.ITEM_DST_NAME:
                message.add_name(data[:-1])
        return reads, places

    def take_handles(self, memory: Memory, message: Message) -> None:
        """Numbers of descriptors become handles, which the request holds."""
        for index, part in enumerate(message.parts):
            if part[0] == 3:
                handle = memory.take_memfd(part[1], part[2], part[3])
                self.handles.append(handle)
                message.parts[index] = (3, handle, part[2], part[3])
        if message.fds:
            taken = []
            for number in message.fds:
                handle = memory.take_fd(number)
                self.handles.append(handle)
                taken.append(handle)
            message.fds = taken

    def written(self) -> list[tuple[int, bytes]]:
        """(address, bytes) that go to the client now."""
        out = []
        for parsed in (self.command, self.envelope):
            if parsed is not None:
                # Neighbours go together.
                for at, size in sorted(set(parsed.ranges)):
                    out.append((parsed.address + at, bytes(parsed.data[at : at + size])))
        return out

    def drop(self) -> None:
        """Lets go of the descriptors; the last user closes them."""
        for handle in self.handles:
            handle.drop()
        self.handles = []
