"""GLib: GDBus through PyGObject, with a main loop for what does not block.

Invariant: replies and signals are unpacked by GLib's own variants, as its users do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gi.repository import Gio, GLib

from .program import INTERFACE, OUTSTANDING, PATH, Round

XML = f"""<node><interface name="{INTERFACE}">
<method name="Echo"><arg type="s" direction="in"/><arg type="s" direction="out"/></method>
<method name="Emit"><arg type="u" direction="in"/><arg type="u" direction="in"/></method>
<signal name="Tick"><arg type="u"/></signal>
</interface></node>"""
TIMEOUT = 60_000  # milliseconds


def version() -> str:
    return f"{GLib.MAJOR_VERSION}.{GLib.MINOR_VERSION}.{GLib.MICRO_VERSION}"


def _connect(address: str) -> Any:
    flags = Gio.DBusConnectionFlags
    return Gio.DBusConnection.new_for_address_sync(
        address, flags.AUTHENTICATION_CLIENT | flags.MESSAGE_BUS_CONNECTION, None, None
    )


def serve(address: str, ready: Callable[[str], None]) -> None:
    bus = _connect(address)

    def called(
        _bus: Any, _sender: str, path: str, _interface: str, member: str, args: Any, call: Any
    ) -> None:
        if member == "Echo":
            call.return_value(GLib.Variant("(s)", args.unpack()))
            return
        first, count = args.unpack()
        for number in range(first, first + count):
            bus.emit_signal(None, path, INTERFACE, "Tick", GLib.Variant("(u)", (number,)))
        call.return_value(None)

    interface = Gio.DBusNodeInfo.new_for_xml(XML).interfaces[0]
    bus.register_object(PATH, interface, called, None, None)
    ready(bus.get_unique_name())
    GLib.MainLoop().run()


class Client:
    def __init__(self, address: str, destination: str) -> None:
        self.bus = _connect(address)
        self.to = (destination, PATH, INTERFACE)
        self.loop = GLib.MainLoop()
        self.failed: BaseException | None = None

    def _run(self) -> None:
        """The main loop, until somebody ends it; raises what a callback ended it for."""
        self.loop.run()
        if self.failed is not None:
            raise self.failed

    def _calling(self, member: str, args: Any, type: str | None) -> tuple[Any, ...]:
        reply = GLib.VariantType(type) if type else None
        return (*self.to, member, args, reply, Gio.DBusCallFlags.NONE, TIMEOUT, None)

    def calls(self, round: Round) -> None:
        while round.more():
            text = round.next_text()
            begun = round.now()
            args = GLib.Variant("(s)", (text,))
            reply = self.bus.call_sync(*self._calling("Echo", args, "(s)"))
            round.answered(begun, text, reply.unpack()[0])

    def calls16(self, round: Round) -> None:
        def next_one() -> None:
            if not round.more():
                return
            text = round.next_text()
            begun = round.now()

            def finished(bus: Any, result: Any) -> None:
                try:
                    round.answered(begun, text, bus.call_finish(result).unpack()[0])
                    next_one()
                except BaseException as error:
                    self.failed = error
                if self.failed or round.complete():
                    self.loop.quit()

            self.bus.call(*self._calling("Echo", GLib.Variant("(s)", (text,)), "(s)"), finished)

        for _ in range(OUTSTANDING):
            next_one()
        self._run()

    def signals(self, round: Round) -> None:
        destination, path, interface = self.to

        def heard(_bus: Any, _from: str, _path: str, _iface: str, _name: str, args: Any) -> None:
            try:
                round.signalled(args.unpack()[0])
            except BaseException as error:
                self.failed = error
            if self.failed or round.complete():
                self.loop.quit()

        flags = Gio.DBusSignalFlags.NONE
        subscribed = self.bus.signal_subscribe(
            destination, interface, "Tick", path, None, flags, heard
        )
        while size := round.batch():
            args = GLib.Variant("(uu)", (round.done, size))
            self.bus.call_sync(*self._calling("Emit", args, None))
            # Its signals wait in the main loop, which has not run meanwhile.
            self._run()
        self.bus.signal_unsubscribe(subscribed)
