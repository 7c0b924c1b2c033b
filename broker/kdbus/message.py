"""Message: what was sent, before it is written into the pool of each who gets it.

Invariant: a message is checked when it is made and is the same for all receivers; only metadata,
payload offsets and what becomes of memfds differ by receiver. The payload is never looked at.

In a pool a message is a head, its items, items of metadata, and then the payload; an item tells
where a part of the payload is, counted from the head. Descriptors are opaque here: whatever the
front that brought them gave, with `close()`, and for a memfd `read(start, size)`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from . import constants as c
from .area import Area
from .errors import KdbusError
from .metadata import item
from .pool import Slice
from .validity import is_name

HEAD = struct.Struct("<QQqQQQQQ")

# Parts of a message.
RAW, DATA, ZEROS, MEMFD, FDS = range(5)


@cython.freelist(16)
@cython.cclass
class Message:
    """A message on its way. `timeout` is kdbus's union: a deadline of a call, else the cookie of
    the call that this one answers. `parts` are (kind, ...) in the order of the items."""

    __slots__ = (
        "bloom", "caller", "cookie", "dst_id", "dst_name", "entry", "fds", "flags", "kind", "lent",
        "lent_at", "lent_size", "memfds", "meta", "name", "new_id", "number", "old_id", "parts",
        "payload_type", "placed", "plain", "priority", "source", "src_id", "stamp", "timeout",
    )  # fmt: skip

    def __init__(self, dst_id: int, flags: int, cookie: int = 0, timeout: int = 0) -> None:
        self.begin(dst_id, flags, cookie, timeout)

    def begin(self, dst_id: int, flags: int, cookie: int, timeout: int) -> None:
        self.flags = flags
        self.priority = 0
        self.dst_id = dst_id
        self.src_id = 0  # the kernel's
        self.payload_type = 0
        self.cookie = cookie
        self.timeout = timeout
        self.dst_name: bytes | None = None
        self.bloom: tuple[int, int] | None = None
        self.parts: list[tuple[Any, ...]] = []
        # A last part: payload in somebody's buffer, for as long as that is not read into again.
        self.lent: bytearray | None = None
        self.lent_at = 0
        self.lent_size = 0
        self.fds: Sequence[Any] = ()
        self.memfds = 0
        # Nothing in it but items as they are and payload to copy.
        self.plain = True
        # A slice of the only receiver's pool, charged to the sender, where its payload is already.
        self.placed: Slice | None = None
        self.source: Any = None
        # The registry's entry, of one that was sent to a name and found its receiver.
        self.entry: Any = None
        # Who sent it, as far as a receiver may be told; filled in as the bus takes it.
        self.caller: Any = None
        self.number = 0
        self.stamp: bytes | None = None
        self.meta: dict[Any, list[bytes]] | None = None
        # Only in notifications.
        self.kind = 0
        self.name: bytes | None = None
        self.old_id = self.new_id = 0

    # Making one

    def lend(self, data: bytearray, at: int, size: int) -> None:
        """Payload as `add_data()` adds it, of which no view has to be made."""
        self.unfold()
        self.lent = data
        self.lent_at = at
        self.lent_size = size

    def unfold(self) -> None:
        """All parts are in `parts`."""
        if self.lent is not None:
            view = memoryview(self.lent)[self.lent_at : self.lent_at + self.lent_size]
            self.lent = None
            self.parts.append((DATA, view))

    def add_raw(self, kind: int, data: bytes) -> None:
        """An item that goes on as it is."""
        self.unfold()
        self.parts.append((RAW, item(kind, data)))

    def add_data(self, data: Any) -> None:
        self.unfold()
        self.parts.append((DATA, data))

    def add_zeros(self, size: int) -> None:
        """That many zeros, which nobody has to copy."""
        self.plain = False
        self.parts.append((ZEROS, size))

    def add_memfd(self, handle: Any, start: int, size: int) -> None:
        self.plain = False
        self.parts.append((MEMFD, handle, start, size))
        self.memfds += 1

    def add_fds(self, handles: Sequence[Any]) -> None:
        self.plain = False
        self.parts.append((FDS, len(handles)))
        self.fds = handles

    def add_bloom(self, generation: int, bits: bytes) -> None:
        self.bloom = (generation, int.from_bytes(bits, "little"))
        self.add_raw(c.ITEM_BLOOM_FILTER, struct.pack("<Q", generation) + bits)

    def add_name(self, name: bytes) -> None:
        self.dst_name = name
        self.add_raw(c.ITEM_DST_NAME, name + b"\0")

    def keep(self, inline: bool) -> None:
        """Copies what is only lent, so that the message outlasts the command that brought it.

        `inline`: nobody holds its memfds any longer, either."""
        self.unfold()
        kept: list[tuple[Any, ...]] = []
        for part in self.parts:
            if part[0] == DATA:
                kept.append((DATA, bytes(part[1])))
            elif part[0] == MEMFD and inline:
                kept.append((DATA, part[1].read(part[2], part[3])))
            else:
                kept.append(part)
        self.parts = kept

    # In a pool

    def measure(self, meta: list[bytes]) -> int:
        """The size of what `write()` writes; of a `plain` message."""
        size = 64
        for part in self.parts:
            if part[0] == 0:
                data = part[1]
                size += len(data)
            else:
                size += 32 + len(part[1])
        if self.lent is not None:
            size += 32 + self.lent_size
        for data in meta:
            size += len(data)
        return (size + 7) & ~7

    def write(self, area: Area, at: int, meta: list[bytes]) -> None:
        """Writes a `plain` message into a pool; see `image()`, which does it for all others."""
        size = 64
        for part in self.parts:
            if part[0] == 0:
                data = part[1]
                size += len(data)
            else:
                size += 32
        if self.lent is not None:
            size += 32
        for data in meta:
            size += len(data)
        at_item = at + 64
        end = at + size
        for part in self.parts:
            if part[0] == 0:
                data = part[1]
                at_item += area.put(at_item, data)
                continue
            payload = end
            n = area.put(payload, part[1])
            end += n
            area.put64(at_item, 32)
            area.put64(at_item + 8, 3)
            area.put64(at_item + 16, n)
            area.put64(at_item + 24, payload - at)
            at_item += 32
        if self.lent is not None:
            area.put64(at_item, 32)
            area.put64(at_item + 8, 3)
            area.put64(at_item + 16, self.lent_size)
            area.put64(at_item + 24, end - at)
            at_item += 32
            end += area.copy(end, self.lent, self.lent_at, self.lent_size)
        for data in meta:
            at_item += area.put(at_item, data)
        area.put64(at, size)
        area.put64(at + 8, self.flags)
        area.put64(at + 16, self.priority)
        area.put64(at + 24, self.dst_id)
        area.put64(at + 32, self.src_id)
        area.put64(at + 40, self.payload_type)
        area.put64(at + 48, self.cookie)
        area.put64(at + 56, self.timeout)
        area.zero(end, -(end - at) & 7)

    def image(self, meta: list[bytes], inline: bool) -> tuple[int, list[Any], list[int]]:
        """(size, bytes to write, where descriptor numbers go) for one receiver.

        `inline`: the receiver cannot be given memfds, and gets what is in them instead. Without,
        each memfd's number goes to one of the places, after those of the FDS item."""
        self.unfold()
        items: list[bytes] = []
        offs: list[int] = []
        payload: list[Any] = []
        patches: list[int] = []
        memfd_patches: list[int] = []
        size = HEAD.size
        n_payload = 0
        for part in self.parts:
            kind = part[0]
            if kind == RAW:
                data = part[1]
            elif kind == FDS:
                patches.extend(range(size + 16, size + 16 + 4 * part[1], 4))
                data = item(c.ITEM_FDS, b"\xff" * (4 * part[1]))
            elif kind == ZEROS:
                data = struct.pack("<4Q", 32, c.ITEM_PAYLOAD_OFF, part[1], c.NONE64)
                # Keeps what follows as aligned as it was.
                if part[1] % 8:
                    payload.append(bytes(part[1] % 8))
                    n_payload += part[1] % 8
            elif kind == MEMFD and not inline:
                data = struct.pack("<4QiI", 40, c.ITEM_PAYLOAD_MEMFD, part[2], part[3], -1, 0)
                memfd_patches.append(size + 32)
                if part[3] % 8:
                    payload.append(bytes(part[3] % 8))
                    n_payload += part[3] % 8
            else:
                chunk = part[1] if kind == DATA else part[1].read(part[2], part[3])
                offs.append(len(items))
                data = struct.pack("<4Q", 32, c.ITEM_PAYLOAD_OFF, len(chunk), n_payload)
                payload.append(chunk)
                n_payload += len(chunk)
            items.append(data)
            size += len(data)
        size += sum(map(len, meta))
        for at in offs:
            length, offset = struct.unpack_from("<QQ", items[at], 16)
            items[at] = struct.pack("<4Q", 32, c.ITEM_PAYLOAD_OFF, length, offset + size)
        head = HEAD.pack(
            size,
            self.flags,
            self.priority,
            self.dst_id,
            self.src_id,
            self.payload_type,
            self.cookie,
            self.timeout,
        )
        total = size + n_payload
        out = [head, *items, *meta, *payload]
        if total % 8:
            out.append(bytes(-total % 8))
        return c.align8(total), out, patches + memfd_patches


def check(message: Message, sync: bool, bloom_size: int) -> None:
    """What kdbus asks of a client's message beyond the form of its items."""
    flags = message.flags
    broadcast = message.dst_id == c.DST_BROADCAST
    if message.payload_type == c.PAYLOAD_KERNEL:
        raise KdbusError(errno.EINVAL)
    if broadcast:
        if not flags & c.SIGNAL:
            raise KdbusError(errno.EBADMSG)
        if message.timeout:
            raise KdbusError(errno.ENOTUNIQ)
    if flags & c.EXPECT_REPLY:
        if message.timeout == 0:
            raise KdbusError(errno.EINVAL)
        if flags & c.SIGNAL:
            raise KdbusError(errno.ENOTUNIQ)
    elif sync or (message.timeout and flags & c.SIGNAL):
        raise KdbusError(errno.EINVAL)
    if message.memfds > c.MEMFDS_MAX:
        raise KdbusError(errno.E2BIG)
    if message.dst_name is not None:
        if not is_name(message.dst_name, False):
            raise KdbusError(errno.EINVAL)
        if broadcast:
            raise KdbusError(errno.EBADMSG)
    # A signal has a filter, and nothing else has one.
    if bool(flags & c.SIGNAL) != (message.bloom is not None):
        raise KdbusError(errno.EBADMSG)
    if message.dst_id == c.DST_NAME and message.dst_name is None:
        raise KdbusError(errno.EDESTADDRREQ)
    if broadcast and message.fds:
        raise KdbusError(errno.ENOTUNIQ)
