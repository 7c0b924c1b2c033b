"""Inward: from classic connections to those of kdbus.

Invariant: a message is in the receiver's pool when the core goes on, or its sender has been told
why not, as if a classic receiver had no room for it. Nothing raised here reaches the core.

Who may: the classic policy has decided before the core calls here, for broadcasts it is asked here.
For a message to one receiver kdbus's own policy decides as well (TALK, as for a connection that was
opened by the same user); a broadcast passes it, unless the listener came in by a custom endpoint.
"""

from __future__ import annotations

import errno
import traceback
from typing import Any

from jitney.broker.errors import FAILED, Refused
from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.metadata import Caller
from jitney.broker.kdbus.notify import no_answer
from jitney.broker.kdbus.reply import Reply
from jitney.broker.message import ERROR, METHOD_CALL, METHOD_RETURN, NO_REPLY_EXPECTED, Message

from . import forms
from .calls import DEAD, Crossed, errno_of, refusal


class Inward:
    """What `Worlds` does with messages from the core; its attributes are those of `Worlds`."""

    bus: Any
    core: Any
    classic: Any
    calls: Any
    sending: Any
    refused: int

    def guest(self, core: Any) -> Any:
        raise NotImplementedError

    def fail(self, crossed: Crossed, number: int) -> None:
        raise NotImplementedError

    # To one

    def take(self, dest: Any, msg: Message, sender: Any) -> None:
        """The core's queue for a connection of kdbus."""
        try:
            if sender is None:
                self.hear_driver(dest, msg)
            else:
                self.enter(dest.transport, msg, sender)
        except KdbusError as error:
            self.refuse(sender, msg, refusal(error.errno))
        except Exception:
            self.classic.log("warning", "Between two worlds: " + traceback.format_exc())
            if sender is not None:
                self.refuse(sender, msg, Refused(FAILED, "The message could not be translated"))

    def refuse(self, sender: Any, msg: Message, reason: Refused) -> None:
        self.classic.refused(sender, msg, reason)

    def hear_driver(self, dest: Any, msg: Message) -> None:
        """Of the driver's word only errors concern kdbus: calls that came to nothing."""
        told = Message()
        if not told.load(msg.wire()) or told.type != ERROR:
            return
        text = (told.string_arg(0) or b"").decode()
        number = errno_of((told.error_name or b"").decode(), text)
        if self.sending == (dest, told.reply_serial):
            self.refused = number
            return
        crossed = self.calls.find(dest, told.reply_serial)
        if crossed is not None:
            self.fail(crossed, number)

    def enter(self, conn: Any, msg: Message, sender: Any) -> None:
        if sender.taker is not None:
            self.come_back(conn, msg, sender)
        elif msg.type in (METHOD_RETURN, ERROR):
            self.enter_reply(conn, msg, sender)
        elif msg.type == METHOD_CALL and not msg.flags & NO_REPLY_EXPECTED:
            self.enter_call(conn, msg, sender)
        else:
            self.enter_plain(conn, msg, sender)

    def entry_of(self, msg: Message) -> Any:
        """The registry's entry of the name that the message was sent to."""
        text = msg.destination
        if text is None or text[:1] == b":":
            return None
        return self.core.names.get(text)

    def check(self, conn: Any, guest: Any, name: Any) -> None:
        # Activators take what is for their name, policy holders nothing.
        if not conn.ordinary and (name is None or name.activator is not conn):
            raise KdbusError(errno.ENXIO)
        if not guest.may_talk(conn):
            raise KdbusError(errno.EPERM)

    def enter_plain(self, conn: Any, msg: Message, sender: Any) -> None:
        guest = self.guest(sender)
        name = self.entry_of(msg)
        self.check(conn, guest, name)
        message = forms.to_kdbus(self.bus, msg, guest, conn)
        try:
            if not message.flags & c.SIGNAL:
                self.bus.deliver(message, conn, None, name)
            elif conn.matches.want(message):
                # Like any signal to one connection: who did not ask for it does not get it.
                self.bus.deliver(message, conn, None, name)
        finally:
            message.drop()

    def enter_call(self, conn: Any, msg: Message, sender: Any) -> None:
        guest = self.guest(sender)
        name = self.entry_of(msg)
        serial = msg.serial
        reply: Any = None
        message = None
        try:
            self.check(conn, guest, name)
            message = forms.to_kdbus(self.bus, msg, guest, conn)

            def done(_: int, __: Any) -> None:
                self.classic.no_reply(sender, serial, DEAD)

            reply = Reply(guest, conn, serial, forms.NEVER, name, done)
            self.bus.deliver(message, conn, reply, name)
            Crossed(self.calls, reply, sender, conn.core, serial, None)
        except BaseException:
            self.core.replies.give_up(sender, conn.core, serial)
            raise
        finally:
            if message is not None:
                message.drop()

    def enter_reply(self, conn: Any, msg: Message, sender: Any) -> None:
        crossed = self.calls.find(conn.core, msg.reply_serial)
        if crossed is None or not crossed.is_from(sender):
            return  # kdbus has no answers that nobody waits for
        reply = crossed.reply
        try:
            message = forms.to_kdbus(
                self.bus, msg, self.guest(sender), conn, reply_cookie=reply.cookie
            )
        except KdbusError:
            self.fail(crossed, errno.EREMOTEIO)
            raise
        self.bus.replies.unlink(reply)
        try:
            self.bus.hand_over(reply, message, conn, None)
        except KdbusError:
            if reply.done is None:
                # Nobody will answer once more; what the bus itself says has a share of its own.
                self.bus.tell(no_answer(c.ITEM_REPLY_DEAD, conn.id, reply.cookie))
                self.bus.flush()
            raise
        finally:
            message.drop()

    def come_back(self, conn: Any, msg: Message, sender: Any) -> None:
        """What waited for a service that turned out to be kdbus's, from one of its own."""
        source = sender.transport
        crossed = self.calls.find(sender, msg.serial)
        name = self.entry_of(msg)
        if not source.may_talk(None, conn):
            raise KdbusError(errno.EPERM)
        cookie = crossed.reply.cookie if crossed is not None else None
        message = forms.to_kdbus(self.bus, msg, _Source(source), conn, cookie)
        message.source = source
        try:
            reply = None
            if crossed is not None:
                reply = crossed.reply
                crossed.callee = conn.core
                crossed.detach()
                reply.name = name
                self.bus.replies.move(reply, conn)
            self.bus.deliver(message, conn, reply, name)
        except KdbusError:
            if reply is not None:
                self.bus.answer_dead(reply)
            raise
        finally:
            message.drop()

    # To everybody

    def outside(self, msg: Message, sender: Any) -> None:
        """A classic broadcast, when all classic receivers have it."""
        try:
            if msg.fds is None and self.may_interest(sender):
                self.spread(msg, sender)
        except KdbusError:
            for conn in self.bus.listeners.values():
                conn.lose()
        except Exception:
            self.classic.log("warning", "Between two worlds: " + traceback.format_exc())

    def may_interest(self, sender: Any) -> bool:
        """Whether some match could fit, by all but bits of filters: worth a translation."""
        for conn in self.bus.listeners.values():
            for _, rules in conn.matches.sets:
                for rule in rules:
                    kind = rule.kind
                    if kind == c.ITEM_ID:
                        fits = rule.new in (c.MATCH_ANY, sender.id)
                    elif kind == c.ITEM_NAME:
                        fits = rule.name in sender.owned
                    elif kind == c.ITEM_DST_ID:
                        fits = rule.new == c.MATCH_ANY
                    else:
                        fits = kind == c.ITEM_BLOOM_MASK
                    if not fits:
                        break
                else:
                    return True
        return False

    def spread(self, msg: Message, sender: Any) -> None:
        guest = self.guest(sender)
        message = forms.to_kdbus(self.bus, msg, guest, None)
        for conn in list(self.bus.listeners.values()):
            if conn.matches.want(message) and self.hears(conn, guest, msg):
                self.bus.offer(message, conn)

    def hears(self, conn: Any, guest: Any, msg: Message) -> bool:
        sender, listener = guest.core, conn.core
        guard = self.core.guard
        if guard is not None and guard.send(sender, listener, msg, False) is not None:
            return False
        if not sender.send_open and not sender.policy.may_send(self.core, msg, listener, False):
            return False
        if not listener.receive_open and not listener.policy.may_receive(
            self.core, msg, sender, None, listener, False
        ):
            return False
        return not conn.endpoint.custom or conn.may_reach(guest)


class _Source:
    """A connection of kdbus as the one that a message came from, a while ago."""

    def __init__(self, conn: Any) -> None:
        self.id = conn.id
        self.caller = Caller(conn.creds, conn.facts, conn.namespaces)
