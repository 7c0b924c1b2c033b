"""dbus-fast: asyncio, with its service interfaces and introspected proxies.

Invariant: all that runs on the loop in a round is the library and the few lines here.
"""
# No `from __future__ import annotations`: the library reads D-Bus types out of annotations.
# mypy: disable-error-code="name-defined"
# ruff: noqa: F821

import asyncio
from collections.abc import Callable
from importlib.metadata import version as _version

from dbus_fast.aio import MessageBus
from dbus_fast.service import ServiceInterface, method, signal

from .program import INTERFACE, OUTSTANDING, PATH, Round


def version() -> str:
    return _version("dbus-fast")


class Echo(ServiceInterface):
    """What the service exports."""

    @method(name="Echo")
    def echo(self, text: "s") -> "s":
        return text

    @method(name="Emit")
    def emit(self, first: "u", count: "u") -> None:
        for number in range(first, first + count):
            self.tick(number)

    @signal(name="Tick")
    def tick(self, number: int) -> "u":
        return number


def serve(address: str, ready: Callable[[str], None]) -> None:
    async def run() -> None:
        bus = await MessageBus(bus_address=address).connect()
        bus.export(PATH, Echo(INTERFACE))
        ready(str(bus.unique_name))
        await bus.wait_for_disconnect()

    asyncio.run(run())


class Client:
    def __init__(self, address: str, destination: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._connect(address, destination))

    async def _connect(self, address: str, destination: str) -> None:
        self.bus = await MessageBus(bus_address=address).connect()
        node = await self.bus.introspect(destination, PATH)
        self.echo = self.bus.get_proxy_object(destination, PATH, node).get_interface(INTERFACE)

    def calls(self, round: Round) -> None:
        self.loop.run_until_complete(self._caller(round))

    def calls16(self, round: Round) -> None:
        async def run() -> None:
            await asyncio.gather(*(self._caller(round) for _ in range(OUTSTANDING)))

        self.loop.run_until_complete(run())

    def signals(self, round: Round) -> None:
        self.loop.run_until_complete(self._listener(round))

    async def _caller(self, round: Round) -> None:
        while round.more():
            text = round.next_text()
            begun = round.now()
            round.answered(begun, text, await self.echo.call_echo(text))

    async def _listener(self, round: Round) -> None:
        complete = asyncio.Event()

        def heard(number: int) -> None:
            round.signalled(number)
            if round.complete():
                complete.set()

        self.echo.on_tick(heard)
        while size := round.batch():
            complete.clear()
            await self.echo.call_emit(round.done, size)
            await complete.wait()
        self.echo.off_tick(heard)
