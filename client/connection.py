"""Connection: one participant of a bus, on asyncio.

Invariant: messages come in the order in which the bus queued them, each to one reader of
`messages()`. What is not read stays with the bus: so many messages as the credit allows are here,
and each that is read makes room for another. A command is done when its coroutine returns; what the
bus refuses is a BusError.

Manual pages named below are kdbus's. Times are seconds where one says how long, nanoseconds of
CLOCK_MONOTONIC where one says when.
"""

from __future__ import annotations

import asyncio
import enum
import os
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from jitney.broker.kdbus import constants as c

from . import frames, items
from .errors import error_of
from .frames import Answer, Fed
from .items import Metadata
from .link import Link, close_all, open_socket
from .memory import Pool
from .message import Message
from .outgoing import BROADCAST, Bloom, Outgoing, Payload, Refused, Sender
from .rules import Access, Policy, Rule, pack_policy

POOL_SIZE = 16 * 1024 * 1024
CREDIT = 128
OUTBOX_SIZE = 4 * 1024 * 1024
TIMEOUT = 25.0


class Name(enum.IntFlag):
    """What is asked for with a name, and what became of it (kdbus.name(7))."""

    REPLACE = c.NAME_REPLACE
    ALLOW_REPLACEMENT = c.NAME_ALLOW
    QUEUE = c.NAME_QUEUE
    IN_QUEUE = c.NAME_IN_QUEUE
    ACTIVATOR = c.NAME_ACTIVATOR
    PRIMARY = c.NAME_PRIMARY
    ACQUIRED = c.NAME_ACQUIRED


NOTHING = Name(0)


@dataclass(slots=True)
class Info:
    """A connection, or a bus's creator: its id, the flags of its HELLO, and what is told of it."""

    id: int
    flags: int
    metadata: Metadata


class Connection:
    """See `connect()`. Used in `async with`, or ended by `close()`.

    `id` is given once and never again; `bus_id` are the bus's 16 bytes; `bloom_size` and
    `bloom_hashes` say what filters of signals look like; `lost` counts broadcasts that did not
    reach us for want of room."""

    def __init__(self, credit: int, outbox_size: int) -> None:
        self.id = 0
        self.bus_id = b""
        self.bus_flags = 0
        self.bloom_size = 0
        self.bloom_hashes = 0
        self.lost = 0
        self.refused: Refused = deque(maxlen=16)
        """The last errors of what was sent with `quiet`, as (cookie, error)."""
        self._credit = credit
        self._outbox_size = outbox_size
        self._arrived: deque[tuple[Fed, list[int]]] = deque()
        self._readers: deque[asyncio.Future[None]] = deque()
        self._next_match = 0
        self._link: Link
        self._pool: Pool
        self._sender: Sender

    async def _open(self, path: str | os.PathLike[str], hello: bytes, pool_size: int) -> None:
        link = self._link = Link(await open_socket(path), self._fed, self._over)
        try:
            link.credit_due = self._credit
            answer, fds = await link.ask(frames.OPS["HELLO"], [hello])
            if answer.error:
                close_all(fds)
                raise error_of(answer.error, "HELLO")
            try:
                self._pool = link.pool = Pool(fds[0], pool_size)
            finally:
                close_all(fds)
        except BaseException:
            link.close()
            raise
        body = answer.body
        self.bus_flags, self.id, _, offset, size = struct.unpack_from("<5Q", body, 40)
        self.bus_id = body[80:96]
        for kind, at, length in items.walk(self._pool.slice(offset, size)):
            if kind == c.ITEM_BLOOM_PARAMETER and length == 16:
                found = struct.unpack_from("<2Q", self._pool.view, offset + at)
                self.bloom_size, self.bloom_hashes = found
        self._done_with(offset)
        self._sender = Sender(link, self._outbox_size, self._message, self.refused)

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    # Commands

    async def _do(
        self, name: str, flags: int = 0, fields: bytes = b"", more: bytes = b""
    ) -> Answer:
        data = frames.command(name, flags, fields, more)
        answer, fds = await self._link.ask(frames.OPS[name], [data])
        close_all(fds)
        if answer.error:
            raise error_of(answer.error, name)
        return answer

    async def acquire(self, name: str, flags: Name = NOTHING) -> Name:
        """NAME_ACQUIRE (kdbus.name(7)); what became of it: PRIMARY or IN_QUEUE, and ACQUIRED if it
        was not so before. NameTaken, NotPermitted; BusError EINVAL, E2BIG (256 names)."""
        asked = int(flags) & c.NAME_ASKED
        answer = await self._do("NAME_ACQUIRE", asked, b"", items.text(c.ITEM_NAME, name.encode()))
        return Name(struct.unpack_from("<Q", answer.body, 16)[0])

    async def release(self, name: str) -> None:
        """NAME_RELEASE: NoSuchName, or BusError EADDRINUSE for another's name."""
        await self._do("NAME_RELEASE", 0, b"", items.text(c.ITEM_NAME, name.encode()))

    async def listing(
        self,
        *,
        unique: bool = False,
        names: bool = True,
        activators: bool = False,
        queued: bool = False,
    ) -> list[Info]:
        """LIST (kdbus.name(7)): an Info for each name that was asked for, and with `unique` one for
        each connection that has none of them."""
        flags = c.LIST_UNIQUE * unique | c.LIST_NAMES * names
        flags |= c.LIST_ACTIVATORS * activators | c.LIST_QUEUED * queued
        answer = await self._do("LIST", flags)
        return self._infos(*struct.unpack_from("<2Q", answer.body, 24))

    async def names(self) -> dict[str, int]:
        """Who owns which name: ids by name."""
        found = await self.listing()
        return {owned.name: info.id for info in found for owned in info.metadata.names}

    async def conn_info(self, whom: int | str, attach: int = c.ATTACH_ALL) -> Info:
        """CONN_INFO (kdbus.connection(7)) of a connection, by its id or a name; `attach`: what to
        tell of it, `ATTACH_*`. NoSuchPeer, NoSuchName."""
        more = items.text(c.ITEM_NAME, whom.encode()) if isinstance(whom, str) else b""
        number = 0 if isinstance(whom, str) else whom
        answer = await self._do("CONN_INFO", 0, struct.pack("<2Q", number, attach), more)
        return self._infos(*struct.unpack_from("<2Q", answer.body, 40))[0]

    async def bus_creator_info(self, attach: int = c.ATTACH_ALL) -> Info:
        """BUS_CREATOR_INFO (kdbus.bus(7)): who made the bus, and its name in `bus_name`."""
        answer = await self._do("BUS_CREATOR_INFO", 0, struct.pack("<2Q", 0, attach))
        return self._infos(*struct.unpack_from("<2Q", answer.body, 40))[0]

    def _infos(self, offset: int, size: int) -> list[Info]:
        """An array of infos in the pool, which is given back."""
        data = bytes(self._pool.slice(offset, size))
        self._done_with(offset)
        found = []
        at = 0
        while at < len(data):
            if len(data) - at < 24:
                raise frames.FormatError("an info without a head")
            length, number, flags = struct.unpack_from("<3Q", data, at)
            if not 24 <= length <= len(data) - at:
                raise frames.FormatError("an info of another length than it says")
            told = items.metadata_of(data[at : at + length], 24)
            found.append(Info(number, flags, told))
            at += length + 7 & ~7
        return found

    async def add_match(
        self, *rules: Rule, cookie: int | None = None, replace: bool = False
    ) -> int:
        """MATCH_ADD (kdbus.match(7)): messages that fit all of these rules; its cookie, by which
        `remove_match()` knows it. `replace`: instead of what has this cookie now.

        TooManyDescriptors (EMFILE) beyond 256; BusError EINVAL, EDOM for a mask of another size."""
        if cookie is None:
            self._next_match += 1
            cookie = self._next_match
        flags = c.MATCH_REPLACE if replace else 0
        more = b"".join(rule.pack() for rule in rules)
        await self._do("MATCH_ADD", flags, struct.pack("<Q", cookie), more)
        return cookie

    async def remove_match(self, cookie: int) -> None:
        """MATCH_REMOVE: all that have this cookie. NotWaitedFor (EBADSLT) if there is none."""
        await self._do("MATCH_REMOVE", 0, struct.pack("<Q", cookie))

    async def update(
        self,
        *,
        attach_send: int | None = None,
        attach_recv: int | None = None,
        policy: Policy | None = None,
    ) -> None:
        """UPDATE (kdbus.connection(7)): other metadata, or a policy holder's other policy."""
        more = b""
        if attach_send is not None:
            more += items.pack(c.ITEM_ATTACH_FLAGS_SEND, struct.pack("<Q", attach_send))
        if attach_recv is not None:
            more += items.pack(c.ITEM_ATTACH_FLAGS_RECV, struct.pack("<Q", attach_recv))
        if policy is not None:
            more += pack_policy(policy)
        await self._do("UPDATE", 0, b"", more)

    # Messages out

    async def send(
        self,
        destination: int | str,
        payload: Payload = b"",
        *,
        fds: Sequence[int] = (),
        reply_to: int = 0,
        priority: int = 0,
        payload_type: int = 1,
        auto_start: bool = True,
        quiet: bool = False,
    ) -> int:
        """SEND (kdbus.message(7)): a message to an id or to a name's owner; its cookie.

        `payload`: bytes, or a list of bytes, Memfd (never copied) and int (so many zeros). More
        than 2 MiB goes in a memfd by itself. `fds` are duplicated by the kernel. `reply_to`: the
        cookie of the call that this answers. `payload_type`: what the payload is, not 0.
        `quiet`: does not wait for the bus's answer; an error is then in `refused`.

        NoSuchPeer, NoSuchName, NotPermitted, QueueFull, NotWaitedFor, NoDescriptors."""
        out = Outgoing(destination, payload, fds, priority, payload_type)
        out.timeout = reply_to
        out.flags = 0 if auto_start else c.NO_AUTO_START
        return await self._sender.send(out, quiet)

    async def reply(
        self,
        call: Message,
        payload: Payload = b"",
        *,
        fds: Sequence[int] = (),
        payload_type: int = 1,
        quiet: bool = False,
    ) -> int:
        """Answers a call; NotWaitedFor if nobody waits any more."""
        return await self.send(
            call.src,
            payload,
            fds=fds,
            reply_to=call.cookie,
            payload_type=payload_type,
            quiet=quiet,
        )

    async def signal(
        self,
        payload: Payload = b"",
        *,
        destination: int | str = BROADCAST,
        bloom: Bloom | None = None,
        fds: Sequence[int] = (),
        priority: int = 0,
        payload_type: int = 1,
        quiet: bool = False,
    ) -> int:
        """A signal, to all whose matches fit or to one who has such a match (kdbus.match(7)).

        `bloom`: (generation, bits of the bus's bloom size); by default all bits are set, which
        passes all masks."""
        out = Outgoing(destination, payload, fds, priority, payload_type)
        out.flags = c.SIGNAL
        out.bloom = bloom if bloom is not None else (0, b"\xff" * self.bloom_size)
        return await self._sender.send(out, quiet)

    async def call(
        self,
        destination: int | str,
        payload: Payload = b"",
        *,
        timeout: float = TIMEOUT,
        fds: Sequence[int] = (),
        priority: int = 0,
        payload_type: int = 1,
        auto_start: bool = True,
    ) -> Message:
        """A call and its answer, which the caller frees. The bus matches them and keeps the time.

        Besides what `send()` raises: TimedOut, PeerGone. A call that is cancelled is taken back;
        an answer to it that is under way is thrown away."""
        out = Outgoing(destination, payload, fds, priority, payload_type)
        out.flags = c.EXPECT_REPLY | (0 if auto_start else c.NO_AUTO_START)
        out.timeout = time.monotonic_ns() + int(timeout * 1e9)
        return await self._sender.call(out)

    async def request(
        self,
        destination: int | str,
        payload: Payload = b"",
        *,
        timeout: float = TIMEOUT,
        fds: Sequence[int] = (),
        priority: int = 0,
        payload_type: int = 1,
    ) -> int:
        """A call whose answer comes as a message with `reply_to` set to the cookie that is given
        back here, or as a ReplyTimedOut or ReplyDead notification."""
        out = Outgoing(destination, payload, fds, priority, payload_type)
        out.flags = c.EXPECT_REPLY
        out.timeout = time.monotonic_ns() + int(timeout * 1e9)
        return await self._sender.send(out)

    # Messages in

    async def messages(self) -> AsyncIterator[Message]:
        """Messages as they come, until the connection is over; each is to be freed.

        Several may read: each message goes to one of them."""
        while True:
            message = await self.receive()
            if message is None:
                return
            yield message

    async def receive(self) -> Message | None:
        """The next message; None when the connection is over and all have been read."""
        while not self._arrived:
            if self._link.closed:
                return None
            reader = self._link.loop.create_future()
            self._readers.append(reader)
            try:
                await reader
            finally:
                if reader in self._readers:
                    self._readers.remove(reader)
                elif reader.cancelled() and self._arrived:
                    self._wake()
        fed, fds = self._arrived.popleft()
        self._more_credit()
        return self._message(fed.offset, fed.size, fed.flags, fed.lost, fds)

    def _message(self, offset: int, size: int, flags: int, lost: int, fds: list[int]) -> Message:
        def done() -> None:
            self._done_with(offset)

        try:
            return Message(self._pool.slice(offset, size), fds, done, flags, lost)
        except BaseException:
            close_all(fds)
            done()
            raise

    def _done_with(self, offset: int) -> None:
        link = self._link
        if not link.closed:
            self._pool.done_with(offset)
            link.nudge(urgent=len(self._pool.frees) >= self._credit // 2)

    def _more_credit(self) -> None:
        link = self._link
        link.credit_due += 1
        link.nudge(urgent=link.credit_due >= self._credit // 2)

    def _fed(self, fed: Fed, fds: list[int]) -> None:
        self.lost += fed.lost
        self._arrived.append((fed, fds))
        self._wake()

    def _wake(self) -> None:
        while self._readers:
            reader = self._readers.popleft()
            if not reader.done():
                reader.set_result(None)
                return

    # The end

    async def byebye(self) -> None:
        """BYEBYE: ends it if nothing is queued any more, else BusError EBUSY."""
        await self._do("BYEBYE")
        self.close()

    @property
    def closed(self) -> bool:
        """Whether it is over, from our side or the bus's. What has arrived may still be read."""
        return self._link.closed

    def close(self) -> None:
        """Ends it. Messages that are held stay readable, those that were not read are gone."""
        self._link.close()
        for _, fds in self._arrived:
            close_all(fds)
        self._arrived.clear()
        if hasattr(self, "_sender"):
            self._sender.close()
            self._pool.close()

    def _over(self) -> None:
        readers, self._readers = self._readers, deque()
        for reader in readers:
            if not reader.done():
                reader.set_result(None)


async def connect(
    path: str | os.PathLike[str],
    *,
    pool_size: int = POOL_SIZE,
    credit: int = CREDIT,
    outbox_size: int = OUTBOX_SIZE,
    accept_fds: bool = True,
    attach_send: int = c.ATTACH_ALL,
    attach_recv: int = 0,
    description: str | None = None,
    monitor: bool = False,
    activator: str | None = None,
    policy_holder: str | None = None,
    rights: Sequence[Access] = (),
    credentials: items.Creds | None = None,
    pids: items.Pids | None = None,
    security_label: str | None = None,
) -> Connection:
    """HELLO (kdbus.connection(7)) on a bus's or an endpoint's node.

    `pool_size`: bytes, whole pages; half of it is for what others send, and messages of one user
    that were not received have at most a third of what is free there. `credit`: so many messages
    are handed over before they are read, 1 to 1024. `attach_send`: metadata that we allow to be
    told of us, `attach_recv`: what we want to be told of senders (`ATTACH_*`; nothing costs
    nothing). `accept_fds`: without, who sends us descriptors is refused.

    `activator`: takes the messages for this name while nobody owns it. `policy_holder`: says who
    may see, call and own a name. Both with `rights`. `monitor`: sees all, and is not seen. These,
    and `credentials`, `pids` and `security_label` of whom it stands for, are for the bus's owner.

    OSError if nobody listens, NotPermitted, TooManyDescriptors, NameTaken, BusError EINVAL."""
    if not 1 <= credit <= frames.CREDIT_MAX:
        raise ValueError("credit is 1 to 1024")
    flags = c.HELLO_ACCEPT_FD * accept_fds | c.HELLO_MONITOR * monitor
    name = activator if activator is not None else policy_holder
    if activator is not None:
        flags |= c.HELLO_ACTIVATOR
    if policy_holder is not None:
        flags |= c.HELLO_POLICY_HOLDER
    more = b""
    if name is not None:
        more += pack_policy([(name, rights)])
    if description is not None:
        more += items.text(c.ITEM_DESCRIPTION, description.encode())
    for told in (credentials, pids):
        if told is not None:
            more += items.pack(told.KIND, told.data())
    if security_label is not None:
        more += items.text(c.ITEM_SECLABEL, security_label.encode())
    fields = struct.pack("<5Q", attach_send, attach_recv, 0, 0, pool_size)
    made = Connection(credit, outbox_size)
    await made._open(path, frames.command("HELLO", flags, fields, more), pool_size)
    return made
