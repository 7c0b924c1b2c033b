"""dbus-python: libdbus, with decorated objects and interfaces of proxies, on GLib's main loop.

Invariant: proxies are made without introspection, as for a known interface; types come from the
values and the decorators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dbus
import dbus.bus
import dbus.service
from dbus.mainloop.glib import DBusGMainLoop
from gi.repository import GLib

from .program import INTERFACE, OUTSTANDING, PATH, Round


def version() -> str:
    return str(dbus.__version__)


class Echo(dbus.service.Object):
    """What the service exports."""

    @dbus.service.method(INTERFACE, in_signature="s", out_signature="s")
    def Echo(self, text: str) -> str:  # noqa: N802
        return text

    @dbus.service.method(INTERFACE, in_signature="uu")
    def Emit(self, first: int, count: int) -> None:  # noqa: N802
        for number in range(first, first + count):
            self.Tick(number)

    @dbus.service.signal(INTERFACE, signature="u")
    def Tick(self, number: int) -> None:  # noqa: N802
        pass


def serve(address: str, ready: Callable[[str], None]) -> None:
    bus = dbus.bus.BusConnection(address, mainloop=DBusGMainLoop())
    exported = Echo(bus, PATH)
    ready(bus.get_unique_name())
    GLib.MainLoop().run()
    del exported


class Client:
    def __init__(self, address: str, destination: str) -> None:
        self.bus = dbus.bus.BusConnection(address, mainloop=DBusGMainLoop())
        proxy = self.bus.get_object(destination, PATH, introspect=False)
        self.echo = dbus.Interface(proxy, INTERFACE)
        self.loop = GLib.MainLoop()
        self.failed: BaseException | None = None

    def _run(self) -> None:
        """The main loop, until somebody ends it; raises what a callback ended it for."""
        self.loop.run()
        if self.failed is not None:
            raise self.failed

    def calls(self, round: Round) -> None:
        while round.more():
            text = round.next_text()
            begun = round.now()
            round.answered(begun, text, self.echo.Echo(text))

    def calls16(self, round: Round) -> None:
        def fail(error: BaseException) -> None:
            self.failed = error
            self.loop.quit()

        def next_one() -> None:
            if not round.more():
                return
            text = round.next_text()
            begun = round.now()

            def finished(reply: Any) -> None:
                try:
                    round.answered(begun, text, reply)
                    next_one()
                except BaseException as error:
                    fail(error)
                if round.complete():
                    self.loop.quit()

            self.echo.Echo(text, reply_handler=finished, error_handler=fail)

        for _ in range(OUTSTANDING):
            next_one()
        self._run()

    def signals(self, round: Round) -> None:
        def heard(number: int) -> None:
            try:
                round.signalled(number)
            except BaseException as error:
                self.failed = error
            if self.failed or round.complete():
                self.loop.quit()

        subscribed = self.echo.connect_to_signal("Tick", heard)
        while size := round.batch():
            self.echo.Emit(dbus.UInt32(round.done), dbus.UInt32(size))
            # Its signals wait in the main loop, which has not run meanwhile.
            self._run()
        subscribed.remove()
