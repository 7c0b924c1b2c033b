"""A bus without sockets, and the least of a front, for tests of the core."""

from __future__ import annotations

from typing import Any

from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.limits import Limits
from jitney.broker.message import Message
from jitney.compat import wire


class OpenPolicy:
    """Lets everything pass."""

    number = 1
    send_open = receive_open = True
    send_types = receive_types = 0b11110

    def may_own(self, name: bytes) -> bool:
        return True


class RecordingFront:
    """Writes down what the core reports, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.handled = True
        self.bus: Any = None

    def __getattr__(self, name: str) -> Any:
        def record(*args: Any, **about: Any) -> None:
            self.events.append((name, *args))

        return record

    def registered(self, conn: Connection) -> None:
        self.bus.set_policy(conn, OpenPolicy())

    def driver_call(self, conn: Connection, msg: Message) -> bool:
        self.events.append(("driver_call", conn, msg.member))
        return self.handled

    def complaint(self, *args: Any) -> str:
        return str(args[3])

    def activate(self, conn: Connection, msg: Message, name: bytes) -> Exception:
        from jitney.broker.errors import UNKNOWN_SERVICE, Refused

        return Refused(UNKNOWN_SERVICE, name.decode())

    def take(self, *names: str) -> list[tuple[Any, ...]]:
        """The events of these names so far; forgets all."""
        found = [event for event in self.events if not names or event[0] in names]
        self.events.clear()
        return found


def make_bus(**limits: int) -> Bus:
    chosen = Limits()
    chosen.max_names_per_connection = chosen.max_match_rules_per_connection = 100000
    for name, value in limits.items():
        setattr(chosen, name, value)
    front = RecordingFront()
    bus = Bus(chosen, front)
    front.bus = bus
    return bus


def join(bus: Bus, uid: int = 1000, *, fds: bool = True) -> Connection:
    conn = bus.connect(uid)
    conn.accepts_fds = fds
    bus.hello(conn)
    bus.announce(conn)
    return conn


def message(kind: int, serial: int = 1, **fields: Any) -> Message:
    """A parsed message; `values` with `signature` make the body."""
    values = fields.pop("values", ())
    signature = fields.get("signature", "")
    data = wire.message(kind, serial, sender=None, body=wire.marshal(signature, values), **fields)
    msg = Message()
    assert msg.load(data), data
    return msg


def call(dest: bytes, serial: int = 1, flags: int = 0, **more: Any) -> Message:
    return message(
        wire.CALL,
        serial,
        flags=flags,
        path=b"/a",
        interface=b"com.example.I",
        member=b"M",
        destination=dest,
        **more,
    )


def signal(serial: int = 1, **more: Any) -> Message:
    more = {"path": b"/a", "interface": b"com.example.I", "member": b"S"} | more
    return message(wire.SIGNAL, serial, **more)


def received(conn: Connection) -> list[Message]:
    """Takes everything off a connection's queue, as its socket would."""
    data = conn.queue.peek()
    conn.queue.sent(len(data))
    out = []
    while data:
        big = data[:1] == b"B"
        order = "big" if big else "little"
        fields = int.from_bytes(data[12:16], order)
        size = (16 + fields + 7) // 8 * 8 + int.from_bytes(data[4:8], order)
        msg = Message()
        assert msg.load(data[:size]), data[:size]
        out.append(msg)
        data = data[size:]
    return out
