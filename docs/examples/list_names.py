"""Who rides the session bus? An ordinary D-Bus program, which knows nothing of jitney.

Run it with `make run CMD=".venv/bin/python docs/examples/list_names.py"`; it needs dbus-fast.
"""

from __future__ import annotations

import asyncio

from dbus_fast import Message
from dbus_fast.aio import MessageBus


async def main() -> None:
    bus = await MessageBus().connect()
    reply = await bus.call(
        Message(
            destination="org.freedesktop.DBus",
            path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus",
            member="ListNames",
        )
    )
    print(*(reply.body[0] if reply else ()), sep="\n")
    bus.disconnect()


asyncio.run(main())
