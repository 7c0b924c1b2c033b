"""Undeliverable: a message that the kernel will not pass, in the midst of a connection that is well.

Invariant: whoever waits for it, or for the answer to it, is told; the rest of the queue goes on in
its order. dbus-daemon drops such a message and says nothing.
"""

from __future__ import annotations

from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.message import Message

_TEXT = "Message could not be delivered: its file descriptors are nested too deep"


def undeliverable(bus: Bus, conn: Connection) -> None:
    """Drops what is first in the connection's queue."""
    conn.dropped += 1
    msg = Message()
    if not msg.load(conn.queue.skip()):
        return
    if msg.reply_serial:
        # The caller had waited for this, and the bus has noted that it came.
        bus.front.no_reply(conn, msg.reply_serial, _TEXT)
        return
    sender = bus.lookup(msg.sender) if msg.sender else None
    if sender is not None and bus.replies.give_up(sender, conn, msg.serial):
        bus.front.no_reply(sender, msg.serial, _TEXT)
