"""Outward: from connections of kdbus to classic ones.

Invariant: SEND answers what became of the message: it is in the receiver's queue, or the errno says
why not. Only what waits for a service to be started is told later, as a lost reply.

Who may: the classic policy, as for any other sender of this user; and through a custom endpoint
only what that endpoint's policy says.
"""

from __future__ import annotations

import errno
from typing import Any

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.message import Message
from jitney.broker.kdbus.notify import no_answer

from . import forms
from .calls import SERIAL_MAX, Crossed


class Outward:
    """What `Worlds` does with messages of kdbus; its attributes are those of `Worlds`."""

    bus: Any
    core: Any
    classic: Any
    calls: Any
    sending: Any
    refused: int
    nobody: Any
    startable: Any
    later: Any
    spy: Any
    moved: list[tuple[Any, Any, Any]]

    def guest(self, core: Any) -> Any:
        raise NotImplementedError

    # To one

    def starter(self, message: Message) -> Any:
        """Who takes a message to a name without an owner that the classic side starts, or ESRCH."""
        name = message.dst_name
        if message.flags & c.NO_AUTO_START or not self.startable(name):
            raise KdbusError(errno.ESRCH)
        return self.nobody.core

    def deliver(self, message: Message, receiver: Any, reply: Any) -> None:
        """A unicast of a connection of ours; `reply`: what it waits for, not linked yet."""
        source = message.source
        guest = self.guest(receiver)
        if source.endpoint.custom and guest is not self.nobody and not source.may_reach(guest):
            raise KdbusError(errno.EPERM)
        destination = message.dst_name
        if destination is None:
            destination = receiver.unique_name
        owed = None
        if reply is None and message.timeout:
            owed = self.bus.replies.find(source, guest, message.timeout)
            if owed is None:
                raise KdbusError(errno.EBADSLT)
            owed.crossed.follow()
        serial = message.cookie & SERIAL_MAX or 1
        if reply is not None:
            serial = self.calls.serial_for(source.core, message.cookie)
        msg = self.translate(message, destination, serial)
        self.bus.eavesdrop(message)
        crossed = None
        if reply is not None:
            callee = receiver if guest is not self.nobody else None
            crossed = Crossed(self.calls, reply, source.core, callee, serial, message.dst_name)
            self.calls.add(crossed)
        if guest is self.nobody and self.later is not None:
            if reply is not None:
                self.link(reply)
            kept = msg.copy()
            self.later(lambda: self.dispatch_later(source, kept, crossed))
            return
        try:
            self.dispatch(source, msg)
        except KdbusError:
            if crossed is not None:
                crossed.over()
            raise
        finally:
            if owed is not None:
                self.bus.replies.unlink(owed)
        if crossed is not None:
            self.link(reply)
            crossed.kept = True

    def translate(self, message: Message, destination: bytes | None, serial: int) -> Any:
        limits = self.core.limits
        if len(message.fds) > limits.max_message_unix_fds:
            raise KdbusError(errno.EMFILE)
        return forms.to_classic(message, destination, serial, limits.max_message_size)

    def link(self, reply: Any) -> None:
        self.bus.replies.link(reply)
        self.bus.domain.watch(reply.deadline)

    def dispatch(self, source: Any, msg: Any) -> None:
        """Routes it as the core routes all; raises what the sender is refused with."""
        before = self.sending, self.refused
        self.sending, self.refused = (source.core, msg.serial), 0
        try:
            self.core.dispatch(source.core, msg)
            refused = self.refused
        finally:
            self.sending, self.refused = before
        if refused:
            raise KdbusError(refused)

    def dispatch_later(self, source: Any, msg: Any, crossed: Crossed | None) -> None:
        if not source.active or (crossed is not None and not crossed.reply.linked):
            return
        if crossed is not None:
            # It may have come without having been started.
            crossed.callee = self.core.lookup(crossed.name)
            crossed.kept = True
        try:
            self.dispatch(source, msg)
        except KdbusError as error:
            if crossed is not None:
                self.fail(crossed, error.errno)

    def fail(self, crossed: Crossed, number: int) -> None:
        """The answer to a call of ours will not come."""
        reply = crossed.reply
        if not reply.linked:
            return
        self.bus.replies.unlink(reply)
        if reply.done is not None:
            reply.done(number, None)
            return
        kind = c.ITEM_REPLY_TIMEOUT if number == errno.ETIMEDOUT else c.ITEM_REPLY_DEAD
        self.bus.tell(no_answer(kind, reply.caller.id, reply.cookie))
        self.bus.flush()

    # To everybody, and to those who look on

    def broadcast(self, message: Message) -> None:
        """A signal of ours, when all of kdbus's receivers have it. What has no classic form is
        nothing that a classic client could have asked for."""
        if not self.core.match_index.count and not self.watched():
            return
        try:
            msg = self.translate(message, None, message.cookie & SERIAL_MAX or 1)
        except KdbusError:
            return
        self.core.dispatch(message.source.core, msg)

    def watched(self) -> bool:
        """Whether classic monitors look on."""
        return len(self.core.monitors) > (self.spy is not None)

    def overhear(self, message: Message, receiver: Any) -> None:
        """A message from one of ours to another, for classic monitors, if it is sd-bus's."""
        if not self.watched():
            return
        destination = message.dst_name
        if destination is None:
            destination = receiver.core.unique_name
        try:
            msg = self.translate(message, destination, message.cookie & SERIAL_MAX or 1)
        except KdbusError:
            return
        self.core.capture(msg, message.source.core, receiver.core)

    # Who may

    def admits(self, creds: Any) -> bool:
        """The classic policy's word on HELLO."""
        return bool(self.classic.may_connect(creds.euid))

    def may_own(self, conn: Any, name: bytes) -> bool:
        """The classic policy's word on NAME_ACQUIRE."""
        return name != b"org.freedesktop.DBus" and bool(conn.core.policy.may_own(name))

    # Names

    def move_messages(self, giver: Any, new: Any, name: Any) -> None:
        """A classic connection is about to own a name whose activator has messages for it."""
        for number, entry in list(giver.queue.entries.items()):
            if entry.name is not name or entry.kept is None:
                continue
            giver.queue.remove(number)
            self.moved.append((entry, giver, new))

    def name_owned(self, owner: Any, text: bytes) -> None:
        """A name has an owner who knows it: what waited for that goes there."""
        for crossed in self.calls.waiting_for(text):
            crossed.callee = owner
        moved = [one for one in self.moved if one[0].name.text == text]
        if moved:
            self.moved = [one for one in self.moved if one not in moved]
            for entry, giver, new in moved:
                try:
                    self.pass_on(entry, giver, new)
                finally:
                    giver.forget(entry)

    def pass_on(self, entry: Any, giver: Any, new: Any) -> None:
        message, reply = entry.kept, entry.reply
        source = message.source
        own = self.bus.is_own(source)
        linked = reply is not None and reply.linked
        if reply is not None and not linked:
            return  # nobody waits any more
        message.fds = entry.fds[: entry.n_fds]
        serial = message.cookie & SERIAL_MAX or 1
        if not own and linked:
            # The core's entry is made anew, for the new owner.
            reply.crossed.detach()
            self.bus.replies.unlink(reply)
        elif linked:
            serial = self.calls.serial_for(source.core, message.cookie)
        try:
            msg = self.translate(message, message.dst_name, serial)
        except KdbusError:
            if own and linked:
                self.bus.answer_dead(reply)
            return
        if own and linked:
            self.bus.replies.move(reply, self.guest(new))
            self.calls.add(Crossed(self.calls, reply, source.core, new, serial, None))
        self.core.deliver_kept(source.core, msg, new)
