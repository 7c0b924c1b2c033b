"""A service to be tested: it keeps an hour, says it, and tells everybody when it changes.

It is an ordinary dbus-fast program; nothing in it knows that there are tests.
"""

from __future__ import annotations

import asyncio

from dbus_fast import BusType
from dbus_fast.aio import MessageBus
from dbus_fast.service import ServiceInterface, dbus_method, dbus_signal

NAME = "com.example.Clock"
PATH = "/com/example/Clock"


class Clock(ServiceInterface):
    def __init__(self) -> None:
        super().__init__(NAME)
        self.hour = 12

    @dbus_method()
    def Hour(self) -> u:  # type: ignore[name-defined]  # noqa: F821, N802
        return self.hour

    @dbus_method()
    def Set(self, hour: u):  # type: ignore[name-defined, no-untyped-def]  # noqa: F821, N802
        self.hour = hour
        self.Changed()

    @dbus_signal()
    def Changed(self) -> u:  # type: ignore[name-defined]  # noqa: F821, N802
        return self.hour


async def serve(address: str | None = None) -> MessageBus:
    """Puts the service on a bus (None: the session's); its connection."""
    if address is None:
        bus = await MessageBus(bus_type=BusType.SESSION).connect()
    else:
        bus = await MessageBus(bus_address=address).connect()
    bus.export(PATH, Clock())
    await bus.request_name(NAME)
    return bus


async def main() -> None:
    bus = await serve()
    await bus.wait_for_disconnect()


if __name__ == "__main__":
    asyncio.run(main())
