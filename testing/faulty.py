"""FaultyBus: the real bus, with a look at each message before it is routed.

Invariant: what no fault is about takes exactly the way that it takes on any other bus, from the
same code; what one is about ends as such a failure ends in real life, with the errors that the
peers would see then. Everything that is sent is written down, whatever becomes of it.

It exists in tests alone: other buses have no hook for it, they are another class.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from jitney.broker.bus import Bus
from jitney.broker.connection import CLOSED, Connection
from jitney.broker.errors import ACCESS_DENIED, LIMITS
from jitney.broker.match import MatchIndex
from jitney.broker.mem import Buffer
from jitney.broker.message import Message
from jitney.broker.policy import ClientPolicy
from jitney.broker.routing import DRIVER, FULL, SEND_DENIED
from jitney.compat import matchrule, wire

KEPT = 100_000
"""Messages that the journal remembers."""

Line = tuple[int, float, str, tuple[str, ...], str, str, bytes]
"""Number, time, sender, names that it owned, receiver, verdict, the message as it came."""


class Injected:
    """A fault that is in force: what it does, and to which messages."""

    def __init__(self, bus: FaultyBus, number: int, spec: Mapping[str, Any]) -> None:
        self.number = number
        self.kind: str = spec["kind"]
        self.spec = spec
        self.left: int | None = spec.get("times")
        self.peer: Connection | None = None
        self.index = MatchIndex(bus.atoms)
        # Whose rule it is does not matter, but a rule is somebody's.
        self.owner = bus.connect(None)
        if "match" in spec:
            rule = matchrule.parse(spec["match"].encode())
            rule.eavesdrop = True
            self.index.add(rule, self.owner)

    def fits(self, msg: Message, conn: Connection, dest: Connection | None) -> bool:
        if self.kind == "fill_queue":
            return dest is not None and dest is self.peer
        if self.kind == "reply_with_error" and msg.type != wire.CALL:
            return False
        return bool(self.index.collect(msg, conn, dest))


class _Full:
    """The policy of a connection whose queue counts as full: what would be lost is lost."""

    matched = 0
    log = False
    rule = None

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.before = conn.policy
        self.number = ClientPolicy([]).number
        self.receive_open = False
        self.receive_types = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.before, name)

    def may_receive(self, *_: Any) -> bool:
        self.conn.dropped += 1
        return False

    def types_from(self, sender: Connection) -> int:
        return 0


class FaultyBus(Bus):
    """`loop`: the event loop that it runs on."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.loop: Any = None
        self.faults: dict[int, Injected] = {}
        self.n_faults = 0
        self.hits: dict[int, int] = {}
        self.lines: deque[Line] = deque(maxlen=KEPT)
        self.n_lines = 0
        self.inside = False

    # Faults

    def inject(self, spec: Mapping[str, Any]) -> int:
        """Puts a fault in force; its number. Raises DBusError for a rule that is none."""
        self.n_faults += 1
        fault = Injected(self, self.n_faults, spec)
        if fault.kind == "fill_queue":
            fault.peer = self.known(spec["peer"])
            self.set_policy(fault.peer, _Full(fault.peer))
        self.faults[fault.number] = fault
        return fault.number

    def lift(self, number: int) -> None:
        """Ends a fault; what it did is done."""
        fault = self.faults.pop(number, None)
        if fault is not None and fault.peer is not None and fault.peer.state != CLOSED:
            self.front.give_policy(fault.peer)

    def known(self, name: str) -> Connection:
        """The connection with this name; LookupError if there is none."""
        conn = self.lookup(name.encode()) if name else None
        if conn is None:
            raise LookupError(f"nobody on the bus is called {name}")
        return conn

    def dispatch(self, conn: Connection, msg: Message) -> None:
        name = msg.destination
        dest = self.lookup(name) if name is not None else None
        for fault in self.faults.values():
            if fault.fits(msg, conn, dest):
                break
        else:
            self.write_down(conn, dest, msg, "passed")
            super().dispatch(conn, msg)
            return
        self.hits[fault.number] = self.hits.get(fault.number, 0) + 1
        if fault.left is not None:
            fault.left -= 1
            if not fault.left:
                self.lift(fault.number)
        self.write_down(conn, dest, msg, fault.kind)
        getattr(self, "do_" + fault.kind)(fault.spec, conn, dest, msg)

    def do_delay(
        self, spec: Mapping[str, Any], conn: Connection, dest: Connection | None, msg: Message
    ) -> None:
        self.loop.call_later(spec["seconds"], self.late, conn, msg.copy())

    def late(self, conn: Connection, msg: Message) -> None:
        if conn.state != CLOSED:
            super().dispatch(conn, msg)

    def do_drop(
        self, spec: Mapping[str, Any], conn: Connection, dest: Connection | None, msg: Message
    ) -> None:
        if self.monitors:
            self.capture(msg, conn, dest)

    def do_deny(
        self, spec: Mapping[str, Any], conn: Connection, dest: Connection | None, msg: Message
    ) -> None:
        self.do_drop(spec, conn, dest, msg)
        self.complain(conn, dest, msg, ACCESS_DENIED, SEND_DENIED, None, False)

    def do_fill_queue(
        self, spec: Mapping[str, Any], conn: Connection, dest: Connection | None, msg: Message
    ) -> None:
        self.do_drop(spec, conn, dest, msg)
        self.complain(conn, dest, msg, LIMITS, FULL, None, False)

    def do_disconnect(
        self, spec: Mapping[str, Any], conn: Connection, dest: Connection | None, msg: Message
    ) -> None:
        if spec["whom"] == "sender":
            self.do_drop(spec, conn, dest, msg)
            self.front.hub.drop(conn.transport)
            return
        # It got the message, and then it was gone: whoever waits for a reply hears of that.
        super().dispatch(conn, msg)
        if dest is not None and dest.state != CLOSED:
            self.front.hub.drop(dest.transport)

    def do_reply_with_error(
        self, spec: Mapping[str, Any], conn: Connection, dest: Connection | None, msg: Message
    ) -> None:
        self.do_drop(spec, conn, dest, msg)
        if msg.flags & wire.NO_REPLY:
            return
        self.emit(
            conn,
            wire.message(
                wire.ERROR,
                self.front.driver.next_serial(),
                flags=wire.NO_REPLY,
                destination=conn.unique_name,
                error_name=spec["error"].encode(),
                sender=dest.unique_name if dest is not None else DRIVER,
                reply_serial=msg.serial,
                signature="s",
                body=wire.string(spec["text"]),
            ),
        )

    # The journal

    def write_down(
        self, conn: Connection | None, dest: Connection | None, msg: Message, verdict: str
    ) -> None:
        sender = DRIVER.decode()
        names: tuple[str, ...] = ()
        if conn is not None:
            sender = conn.unique_name.decode()
            names = tuple([name.decode() for name in conn.owned])
        receiver = dest.unique_name.decode() if dest is not None else ""
        self.n_lines += 1
        self.lines.append((self.n_lines, time.time(), sender, names, receiver, verdict, msg.wire()))

    def own_word(self, dest: Connection | None, data: bytes) -> None:
        msg = Message()
        if msg.load(data):
            self.write_down(None, dest, msg, "passed")

    def post(self, dest: Connection, data: Buffer) -> None:
        self.said(dest, bytes(data), super().post, dest, data)

    def emit(
        self, dest: Connection | None, wire: bytes, fds: Any = None, captured: bool = False
    ) -> None:
        self.said(dest, wire, super().emit, dest, wire, fds, captured)

    def tell(self, msg: Message) -> None:
        self.said(None, msg.wire(), super().tell, msg)

    def said(self, dest: Connection | None, data: bytes, how: Any, *what: Any) -> None:
        # One of these may call another, but it is one message.
        if self.inside:
            how(*what)
            return
        self.own_word(dest, data)
        self.inside = True
        try:
            how(*what)
        finally:
            self.inside = False
