"""org.freedesktop.DBus.Monitoring: becoming a connection that sees everything and says nothing.

Invariant: all filters are good before anything about the connection changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import matchrule, wire
from ..errors import INVALID_ARGS, DBusError
from ..front import loginfo
from .table import Interface, Method

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

    from .driver import Driver


def become_monitor(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    if driver.bus.guard is not None:
        driver.bus.guard.check_eavesdrop(conn)
    filters, flags = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)
    if flags:
        raise DBusError(INVALID_ARGS, "BecomeMonitor does not support any flags yet")
    # No filter at all means that everything passes.
    rules = [matchrule.parse(text.encode()) for text in filters or [""]]
    # Afterwards there is nobody left to reply to: monitors get copies, not mail.
    if not msg.flags & wire.NO_REPLY:
        driver.reply(conn, msg.serial, "", b"")
    name = conn.unique_name.decode()
    driver.bus.become_monitor(conn, rules)
    driver.front.waits_no_more(conn)
    text = f"Connection {name} ({loginfo(conn)}) became a monitor."
    driver.front.log("info", text, "monitor", conn=conn)
    return None


INTERFACE = Interface(
    "org.freedesktop.DBus.Monitoring",
    [Method("BecomeMonitor", "asu", "", become_monitor, privileged=True, ack=True)],
    feature=True,
)
