"""Routing: the ways that a message takes from one connection to others.

Invariant: whoever a message was queued for has it in its pool when `send()` returns; a unicast
that could not be queued is the sender's error, a broadcast that could not is counted as lost by
the receiver. Monitors get their copy first and never keep a message from its receiver.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from . import constants as c
from . import metadata
from .connection import Connection
from .errors import KdbusError
from .message import Message
from .metadata import Caller
from .notify import no_answer
from .pool import Slice
from .queue import Entry
from .reply import Reply

if not cython.compiled:
    from .queue import new_entry
    from .reply import new_reply
    from .reply import tell as tell_caller

Done = Callable[[int, Any], None]

_BROADCAST = c.DST_BROADCAST
_EXPECT_REPLY, _SIGNAL = c.EXPECT_REPLY, c.SIGNAL
_ACCEPT_FD = c.HELLO_ACCEPT_FD
_DST_NAME, _NO_AUTO_START = c.DST_NAME, c.NO_AUTO_START
_PROCESS = metadata.PROCESS
# Of those who ask for nothing, and of messages without descriptors: shared, never changed.
_NOTHING: list[Any] = []


class Routing:
    """What `bus.Bus` does with messages; its attributes are the bus's."""

    domain: Any
    core: Any
    names: Any
    replies: Any
    connections: dict[int, Any]
    monitors: dict[int, Any]
    listeners: dict[int, Any]
    foreign: Any
    last_message: int

    def send(self, source: Any, message: Message, caller: Caller, done: Done | None) -> Any:
        """SEND of a message that was checked; `done(errno, received)` makes it a synchronous one.

        Returns the awaited Reply of a synchronous call, which `cancel()` takes."""
        self.accept(message)
        message.source = source
        message.src_id = source.id
        message.caller = caller
        try:
            if message.dst_id == _BROADCAST:
                self.broadcast(message)
            elif message.flags & _EXPECT_REPLY:
                return self.call(source, message, caller, done)
            elif message.timeout == 0:
                self.unicast(source, message, caller)
            else:
                self.answer(source, message)
        finally:
            self.flush()
        return None

    def flush(self) -> None:
        raise NotImplementedError

    def tell(self, notice: Message) -> None:
        raise NotImplementedError

    def accept(self, message: Message) -> None:
        self.last_message += 1
        message.number = self.last_message

    # Where to

    def find(self, message: Message) -> tuple[Any, Any]:
        """(receiver, the registry's entry if it was sent to a name).

        The receiver is a connection, or one of the core's that belongs to another front."""
        return self.seek(message), message.entry

    def seek(self, message: Message) -> Any:
        """The receiver; `message.entry` is the registry's entry."""
        message.entry = None
        if message.dst_name is not None:
            return self.seek_name(message)
        conn = self.connections.get(message.dst_id)
        if conn is None:
            core = self.core.connections.get(message.dst_id)
            if core is None or self.foreign is None:
                raise KdbusError(errno.ENXIO)
            return core
        if not conn.ordinary:
            raise KdbusError(errno.ENXIO)
        return conn

    def seek_name(self, message: Message) -> Any:
        name = self.core.names.get(message.dst_name)
        owner: Any
        if name is None or name.owner is None:
            owner = name.activator if name is not None else None
            if not self.is_own(owner):
                if self.foreign is not None and message.dst_id == _DST_NAME:
                    # Somebody there may start it.
                    return self.foreign.starter(message)
                raise KdbusError(errno.ESRCH)
        else:
            owner = self.conn_of(name.owner)
            if owner is None:
                owner = name.owner
                if self.foreign is None:
                    raise KdbusError(errno.ESRCH)
        if message.dst_id != _DST_NAME and message.dst_id != owner.id:
            raise KdbusError(errno.EREMCHG)
        assert name is not None
        if message.flags & _NO_AUTO_START and name.owner is None:
            raise KdbusError(errno.EADDRNOTAVAIL)
        message.entry = name
        return owner

    def is_own(self, who: Any) -> bool:
        raise NotImplementedError

    def conn_of(self, core: Any) -> Any:
        raise NotImplementedError

    # The ways

    def unicast(self, source: Any, message: Message, caller: Caller) -> None:
        receiver = self.seek(message)
        name = message.entry
        if type(receiver) is not Connection:
            self.foreign.deliver(message, receiver, None)
            return
        if message.flags & _SIGNAL:
            # Like a broadcast to one: who did not ask for it, or may not hear it, does not.
            self.overhear(message, receiver)
            if receiver.matches.want(message) and receiver.may_talk(None, source):
                try:
                    self.deliver(message, receiver, None, name)
                except KdbusError:
                    pass
            return
        if not may_talk(source, caller, receiver):
            raise KdbusError(errno.EPERM)
        self.overhear(message, receiver)
        self.deliver(message, receiver, None, name)

    def call(self, source: Any, message: Message, caller: Caller, done: Done | None) -> Any:
        if done is not None:
            now = self.domain.monotonic()
            if now >= message.timeout:
                raise KdbusError(errno.ETIMEDOUT)
        receiver = self.seek(message)
        name = message.entry
        own = type(receiver) is Connection
        if own and not may_talk(source, caller, receiver):
            raise KdbusError(errno.EPERM)
        callee = receiver if own else self.foreign.guest(receiver)
        reply = new_reply(source, callee, message.cookie, message.timeout, name, done)
        try:
            if own:
                self.overhear(message, receiver)
                self.deliver(message, receiver, reply, name)
            else:
                self.foreign.deliver(message, receiver, reply)
        except KdbusError:
            if not reply.linked:
                reply.settle()
            raise
        return reply

    def answer(self, source: Any, message: Message) -> None:
        receiver = self.seek(message)
        if type(receiver) is not Connection:
            self.foreign.deliver(message, receiver, None)
            return
        reply = self.replies.find(source, receiver, message.timeout)
        if reply is None:
            raise KdbusError(errno.EBADSLT)
        self.replies.unlink(reply)
        self.overhear(message, receiver)
        self.hand_over(reply, message, receiver, message.entry)

    def hand_over(self, reply: Reply, message: Message, receiver: Any, name: Any) -> None:
        """Gives the answer to the one that waited for it, who may be in the midst of SEND."""
        if reply.done is None:
            self.deliver(message, receiver, None, name)
            return
        try:
            entry = self.write(message, receiver)
        except KdbusError as error:
            # The caller would take its own refusal of descriptors for the callee's.
            told = errno.EREMOTEIO if error.errno == errno.ECOMM else error.errno
            reply.done(told, None)
            raise
        received = receiver.take(entry, False)
        tell_caller(reply.done, 0, received)
        receiver.forget(entry)

    def broadcast(self, message: Message) -> None:
        source = message.source
        self.eavesdrop(message)
        for conn in list(self.listeners.values()):
            if conn.matches.want(message) and conn.may_talk(None, source):
                self.offer(message, conn)
        if self.foreign is not None:
            self.foreign.broadcast(message)

    def notify(self, notice: Message) -> None:
        """Sends a notification to those who want it, or to the one that it is for."""
        self.accept(notice)
        if notice.dst_id != c.DST_BROADCAST:
            conn = self.connections.get(notice.dst_id)
            if conn is not None:
                self.eavesdrop(notice)
                try:
                    self.deliver(notice, conn, None, None)
                except KdbusError:
                    pass
            return
        self.eavesdrop(notice)
        for conn in list(self.listeners.values()):
            if conn.matches.want_notice(notice) and (
                notice.name is None or conn.may_see_name(None, notice.name)
            ):
                self.offer(notice, conn)

    def eavesdrop(self, message: Message) -> None:
        if self.monitors:
            for conn in self.monitors.values():
                self.offer(message, conn)

    def overhear(self, message: Message, receiver: Any) -> None:
        """eavesdrop() on a message from one of ours to another."""
        if self.monitors:
            self.eavesdrop(message)
        if self.foreign is not None:
            self.foreign.overhear(message, receiver)

    def offer(self, message: Message, conn: Any) -> None:
        try:
            self.deliver(message, conn, None, None)
        except KdbusError:
            conn.lose()

    # Into the pool

    def deliver(self, message: Message, conn: Any, reply: Reply | None, name: Any) -> None:
        entry = self.write(message, conn)
        if reply is not None:
            if not reply.linked:
                self.replies.link(reply)
            reply.queued = True
            entry.reply = reply
            self.domain.watch(reply.deadline)
        if name is not None:
            entry.name = name
            if name.activator is not None:
                message.keep(not conn.installs)
                entry.kept = message
        conn.queue.add(entry)
        conn.wake()

    def write(self, message: Message, conn: Any) -> Entry:
        """Puts the message into the pool, at the sending user's expense."""
        if not conn.active:
            raise KdbusError(errno.ECONNRESET)
        if message.fds and not conn.flags & _ACCEPT_FD and not conn.monitor:
            raise KdbusError(errno.ECOMM)
        if type(message.source) is Connection:
            source = message.source
            user = source.user
        elif message.source is not None:
            user = message.source.user
        else:
            user = self.core.accounts.bus
        if message.plain:
            area = conn.pool.writable()
            if area is not None:
                meta = self.meta(message, conn)
                size = message.measure(meta)
                part = message.placed
                if part is not None:
                    assert part.size == size
                    message.placed = None
                else:
                    part = self.room(conn, user, size)
                message.write(area, part.offset, meta)
                return new_entry(part, message.priority, user, (), _NOTHING)
        size, parts, patches = message.image(self.meta(message, conn), not conn.installs)
        fds = message.fds
        conn.charge(user, size, len(fds))
        try:
            part = conn.pool.alloc(size, True)
        except KdbusError:
            conn.discharge(user, size, len(fds))
            raise
        conn.pool.memory.write(part.offset, parts)
        if message.memfds and conn.installs:
            fds = [*fds, *[p[1] for p in message.parts if p[0] == 3]]
        entry = new_entry(part, message.priority, user, fds, patches)
        entry.n_fds = len(message.fds)
        for handle in fds:
            handle.hold()
        return entry

    def room(self, conn: Any, user: Any, size: int) -> Slice:
        """A slice of a pool for a message without descriptors, charged to a user."""
        conn.charge(user, size, 0)
        try:
            part: Slice = conn.pool.alloc(size, True)
        except KdbusError:
            conn.discharge(user, size, 0)
            raise
        return part

    def meta(self, message: Message, conn: Any) -> list[bytes]:
        """Items of metadata, as this receiver asked for them."""
        source = message.source
        asked = conn.recv_flags
        if not asked and source is not None:
            return _NOTHING
        if message.meta is None:
            message.meta = {}
        if source is None:
            asked = c.ATTACH_TIMESTAMP
            mask = asked
            facts = None
        else:
            facts = None
            if source.fake is None and asked & metadata.PROCESS:
                facts = message.caller.facts()
            mask = metadata.wanted(source.send_flags, asked, facts, conn.namespaces)
        key = (mask, conn.namespaces)
        found = message.meta.get(key)
        if found is None:
            found = []
            if facts is not None:
                found += metadata.process_items(facts, mask, conn.namespaces)
            if source is not None:
                if mask & c.ATTACH_NAMES:
                    found += metadata.names_items(source.owned_flags())
                if mask & c.ATTACH_DESCRIPTION and source.description is not None:
                    found.append(metadata.description_item(source.description))
            if mask & c.ATTACH_TIMESTAMP:
                if message.stamp is None:
                    message.stamp = metadata.timestamp_item(
                        message.number, self.domain.monotonic(), self.domain.realtime()
                    )
                found.append(message.stamp)
            message.meta[key] = found
        return found

    # Hand-over

    def move_messages(self, giver: Any, taker: Any, name: Any, new: Any) -> None:
        """What was sent to this name goes from one connection to the other, calls as well."""
        if giver is None:
            return
        if taker is None:
            if self.foreign is not None:
                self.foreign.move_messages(giver, new, name)
            return
        for reply in list(giver.owed):
            if reply.name is name and reply.caller is not taker:
                self.replies.move(reply, taker)
        for number, entry in list(giver.queue.entries.items()):
            if entry.name is not name:
                continue
            giver.queue.remove(number)
            try:
                self.move(entry, giver, taker)
            except KdbusError:
                taker.lose()
                giver.forget(entry)
        taker.wake()

    def move(self, entry: Entry, giver: Any, taker: Any) -> None:
        if entry.n_fds and not taker.flags & c.HELLO_ACCEPT_FD:
            raise KdbusError(errno.ECOMM)
        if entry.kept is None and not giver.pool.memory.trusted:
            raise KdbusError(errno.EFAULT)
        size = entry.size
        patches = entry.patches
        if entry.kept is not None:
            message = entry.kept
            meta = self.meta(message, taker)
            size, parts, patches = message.image(meta, not taker.installs)
        else:
            parts = [giver.pool.memory.read(entry.slice.offset, size)]
        taker.charge(entry.user, size, entry.n_fds)
        try:
            part = taker.pool.alloc(size, True)
        except KdbusError:
            taker.discharge(entry.user, size, entry.n_fds)
            raise
        taker.pool.memory.write(part.offset, parts)
        giver.discharge(entry.user, entry.size, entry.n_fds)
        giver.pool.release(entry.slice)
        entry.slice, entry.size, entry.patches = part, size, patches
        taker.queue.add(entry)

    # Calls that end without an answer

    def cancel(self, reply: Reply, number: int) -> None:
        """Ends a synchronous call that still waits."""
        if reply.linked:
            self.replies.unlink(reply)
            if reply.done is not None:
                reply.done(number, None)

    def answer_dead(self, reply: Reply) -> None:
        """Nobody will answer this one."""
        if reply.linked:
            self.replies.unlink(reply)
            if reply.done is not None:
                reply.done(errno.EPIPE, None)
            else:
                self.tell(no_answer(c.ITEM_REPLY_DEAD, reply.caller.id, reply.cookie))


def may_talk(source: Connection, caller: Caller, receiver: Connection) -> bool:
    """Connection.may_talk(), without a look at the caller where nothing depends on it."""
    if source.owner and not source.confined:
        return True
    return source.may_talk(caller.creds, receiver)
