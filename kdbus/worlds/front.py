"""Front: what the core reports, for both worlds; and attaching one to the other.

Invariant: each report goes to kdbus's bus and from there to the classic front, once; what the core
asks is answered by the classic front, for connections of either world.

A bus becomes a shared one while nobody is on it: unique names are ":1.N" for id N from then on, as
sd-bus has it, and no id is given twice in the domain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.bus import Bus
from jitney.broker.kdbus.domain import Domain
from jitney.broker.kdbus.metadata import Caller, Creds, Facts
from jitney.broker.match import Rule
from jitney.broker.message import NO_AUTO_START, SIGNAL

from .. import bloom
from . import forms
from .calls import Calls
from .guest import Guest, Known
from .inward import Inward
from .outward import Outward


class Worlds(Outward, Inward):
    """The classic side of a bus of kdbus: its `foreign`. `classic`: the classic front, which gives
    each connection its policy (`give_policy`); `later`: has the classic side's own thread call
    something, None where there is one thread; `startable`: whether a name without an owner may be
    sent to; `place`: adds to a classic sender's facts where its process is."""

    def __init__(
        self,
        bus: Bus,
        classic: Any,
        later: Callable[[Callable[[], None]], Any] | None,
        startable: Callable[[bytes], bool],
        place: Callable[[Facts], None],
    ) -> None:
        self.bus = bus
        self.core = bus.core
        self.classic = classic
        self.later = later
        self.startable = startable
        self.place = place
        self.calls = Calls(self.core)
        self.guests: dict[int, Guest] = {}
        self.nobody = Guest(bus, None, place)
        self.nobody.core = self.core.connect(None)
        self.sending: Any = None
        self.refused = 0
        self.moved: list[tuple[Any, Any, Any]] = []
        self.spy: Any = None
        self.spying: Any = None

    def guest(self, core: Any) -> Any:
        if core is self.nobody.core:
            return self.nobody
        guest = self.guests.get(core.id)
        if guest is None:
            guest = self.guests[core.id] = Guest(self.bus, core, self.place)
        return guest

    def gone(self, core: Any) -> None:
        """A classic connection is no peer any more."""
        guest = self.guests.pop(core.id, None)
        if guest is not None:
            for reply in [reply for replies in guest.awaited.values() for reply in replies]:
                self.bus.replies.unlink(reply)

    # Monitors of kdbus

    def monitors_changed(self) -> None:
        """As long as kdbus has monitors, one of the core's looks on for them."""
        if self.bus.monitors and self.spy is None:
            spy = self.spy = self.core.connect(None)
            spy.taker = self.spied
            self.spying = Rule(eavesdrop=True)
            self.core.monitor_index.add(self.spying, spy)
            self.core.monitors.append(spy)
            self.core.find_sole()
        elif not self.bus.monitors and self.spy is not None:
            self.core.monitor_index.remove(self.spying)
            self.core.monitors.remove(self.spy)
            self.spy = None
            self.core.find_sole()

    def spied(self, _: Any, msg: Any, sender: Any) -> None:
        # What comes from kdbus its monitors have seen, and what the driver says they are told.
        if sender is None or sender.taker is not None or not sender.id:
            return
        to = self.core.lookup(msg.destination) if msg.destination is not None else None
        unowned = to is None and (msg.type != SIGNAL or msg.destination is not None)
        if unowned:
            to = self.standing_in(msg)
            if to is None:
                return
        try:
            message = forms.to_kdbus(self.bus, msg, self.guest(sender), to)
        except Exception:
            for conn in self.bus.monitors.values():
                conn.lose()
            return
        self.bus.eavesdrop(message)
        message.drop()

    def standing_in(self, msg: Any) -> Any:
        """Who takes a message to a name without an owner. None, too, for the driver, which is
        nobody in kdbus's world, and for what is refused: there it would never have been on the bus.
        """
        name = msg.destination
        if name is None or msg.flags & NO_AUTO_START:
            return None
        entry = self.core.names.get(name)
        if entry is not None and self.bus.is_own(entry.activator):
            return entry.activator
        return self.nobody if self.startable(name) else None


class Front:
    """The front of a shared bus; what is not here is the classic front's."""

    def __init__(self, worlds: Worlds) -> None:
        self.worlds = worlds
        self.classic = worlds.classic
        self.bus = worlds.bus
        self.name_lost = self.bus.name_lost
        self.name_acquired = self.bus.name_acquired
        # The core asks for these with each message.
        for name in ("driver_call", "undirected", "refused", "denied", "complaint"):
            found = getattr(self.classic, name, None)
            if found is not None:
                setattr(self, name, found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.classic, name)

    def registered(self, core: Any) -> None:
        conn = self.bus.conn_of(core)
        if conn is None:
            self.bus.domain.taken(core.id)
            self.classic.registered(core)
            return
        core.creds = Known(conn)
        core.accepts_fds = bool(conn.flags & c.HELLO_ACCEPT_FD)
        core.taker = self.worlds.take
        self.classic.give_policy(core)

    def name_owner_changed(self, text: bytes, old: Any, new: Any) -> None:
        if new is None and text[:1] == b":" and self.bus.conn_of(old) is None:
            self.worlds.gone(old)
        self.bus.name_owner_changed(text, old, new)

    def name_owned(self, core: Any, text: bytes) -> None:
        self.worlds.name_owned(core, text)
        self.classic.name_owned(core, text)

    def activate(self, core: Any, msg: Any, name: bytes) -> Any:
        """A name without an owner may have an activator of kdbus's."""
        entry = self.worlds.core.names.get(name)
        if entry is not None and self.bus.is_own(entry.activator):
            self.worlds.core.deliver_kept(core, msg, entry.activator.core)
            return None
        return self.classic.activate(core, msg, name)

    def no_reply(self, caller: Any, serial: int, text: str) -> None:
        guest = self.worlds.guests.get(caller.id)
        if guest is not None and caller.taker is None:
            for reply in list(guest.awaited.get(serial, ())):
                if reply.callee.core is not reply.crossed.callee and reply.callee.active:
                    # The call has moved on to a new owner of the name that it was sent to.
                    reply.crossed.follow()
                    return
                self.bus.replies.unlink(reply)
        self.classic.no_reply(caller, serial, text)

    def wake(self) -> None:
        if self.worlds.later is not None:
            self.worlds.later(self.classic.wake)
        else:
            self.classic.wake()

    def deadline(self, when: float) -> None:
        if self.worlds.later is not None:
            self.worlds.later(lambda: self.classic.deadline(when))
        else:
            self.classic.deadline(when)


def attach(
    core: Any,
    domain: Domain,
    name: bytes,
    creds: Creds,
    *,
    flags: int = c.ACCESS_WORLD,
    facts: Facts | None = None,
    later: Callable[[Callable[[], None]], Any] | None = None,
    startable: Callable[[bytes], bool] = lambda name: False,
    place: Callable[[Facts], None] = lambda facts: None,
) -> Bus:
    """Makes the core's bus, on which nobody is yet, a bus of the domain under this name as well.

    `creds`, `facts`: of whom it belongs to, that is us; for the others see `Worlds`."""
    if core.connections or core.last_id:
        raise ValueError("somebody is on the bus already")
    caller = Caller(creds, facts)
    bloom_parameters = (bloom.SIZE, bloom.N_HASH)
    bus = domain.make_bus(caller, name, flags, bloom_parameters, c.ATTACH_ALL, core)
    classic = core.front
    core.first = core.match_index.first = core.monitor_index.first = 0
    core.last_id = domain.last_id
    worlds = Worlds(bus, classic, later, startable, place)
    bus.foreign = worlds
    bus.next = classic
    # Classic connections can be given descriptors, so they are taken from kdbus's senders.
    bus.installers += 1
    domain.shared.append(bus)
    core.front = Front(worlds)
    core.outside = worlds.outside
    return bus
