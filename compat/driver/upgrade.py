"""org.jitney.Upgrade1: another process, with newer code, goes on with the bus as it is.

Invariant: the call is answered by whichever process is the bus afterwards: with what was taken
over, as JSON, or with an error. Root and the bus's own user alone may ask.

The interface is our own; dbus-daemon has none like it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .table import Interface, Method, arg

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

    from .driver import Driver


def upgrade(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    driver.context.upgrade(conn, msg.serial, arg(msg).decode())
    return None


INTERFACE = Interface(
    "org.jitney.Upgrade1",
    [Method("Upgrade", "s", "s", upgrade, privileged=True)],
    feature=True,
)
