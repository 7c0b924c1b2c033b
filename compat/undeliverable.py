"""Undeliverable: what is queued and cannot be sent any more.

Invariant: whoever waits for it, or for the answer to it, is told; what else is queued goes on in
its order. dbus-daemon drops such a message and says nothing.
"""

from __future__ import annotations

from typing import Any

from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.message import Message
from jitney.broker.queue import Payload

_TEXT = "Message could not be delivered: its file descriptors are nested too deep"


def undeliverable(bus: Bus, conn: Connection) -> None:
    """Drops what is first in the connection's queue: its descriptors are nested too deep for the
    kernel to pass on. Its receiver is not to blame (CVE-2014-3532)."""
    bus.front.log("warning", "Dropped a message: too many references, cannot pass its fds")
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


def forsake(hub: Any, payload: Payload) -> None:
    """There is no memory to keep the payload in until its receivers have read it: they go, rather
    than be sent what is no longer there."""
    for peer in list(hub.peers):
        if peer is not None and peer.conn is not None and peer.conn.queue.holds(payload):
            hub.front.log("warning", f"Closing a connection: no memory for {peer.label}")
            hub.drop(peer)
