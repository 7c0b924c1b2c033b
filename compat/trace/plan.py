"""Plan: what has to be done to make a recording happen again.

Invariant: steps are in the order of the recording. What the bus itself said is not sent again: it
says so again by itself, if what went before is the same; its replies are waited for.

Unique names are other ones on another bus, so each connection of the recording is an `actor`, known
by its old name. What the recording does not show (it began in the middle) is inferred: who answers
calls to a name owns it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from jitney.broker.message import Message

from .. import wire
from .pcap import Packet
from .records import DRIVER

_DRIVER = DRIVER.encode()
_NOT_ACTIVE = b":not.active.yet"
# These would make an actor something else than a client.
_NOT_AGAIN = (b"Hello", b"BecomeMonitor", b"Start")

JOIN, LEAVE, SEND, EXPECT = "join", "leave", "send", "expect"


@dataclass
class Step:
    """What `actor` does: joins, leaves, sends `message`, or gets the bus's reply to `serial`."""

    time: int
    kind: str
    actor: bytes
    message: Message | None = None
    serial: int = 0


@dataclass
class Plan:
    """`steps`, and who has joined and what names they own before the first."""

    steps: list[Step] = field(default_factory=list)
    present: list[bytes] = field(default_factory=list)
    owners: dict[bytes, bytes] = field(default_factory=dict)
    seconds: float = 0.0
    n_fds: int = 0
    n_cut: int = 0


def plan(packets: Iterable[Packet]) -> Plan:
    """The steps of a recording."""
    made = Plan()
    joined: set[bytes] = set()
    requested: set[tuple[bytes, bytes]] = set()
    calls: dict[tuple[bytes, int], bytes] = {}
    not_sent: set[tuple[bytes, int]] = set()
    first = last = 0

    def meet(name: bytes) -> None:
        # Whom we did not see joining was there before.
        if name not in joined:
            joined.add(name)
            made.present.append(name)

    for packet in packets:
        first = first or packet.time
        last = packet.time
        msg = Message()
        if packet.size != len(packet.data) or not msg.load(packet.data):
            made.n_cut += 1
            continue
        sender = msg.sender or b""
        destination = msg.destination
        if sender == _DRIVER:
            if (destination or b"", msg.reply_serial) not in not_sent:
                _bus_said(made, packet.time, msg, joined)
            continue
        if not sender.startswith(b":") or sender == _NOT_ACTIVE:
            continue
        if destination == _DRIVER and msg.type == wire.CALL and msg.member in _NOT_AGAIN:
            not_sent.add((sender, msg.serial))
            continue
        meet(sender)
        if destination is not None and destination[:1] == b":":
            meet(destination)
        if msg.n_fds:
            made.n_fds += 1
            not_sent.add((sender, msg.serial))
            continue
        if msg.type == wire.CALL and destination is not None:
            if destination == _DRIVER and msg.member == b"RequestName":
                requested.add((sender, msg.string_arg(0) or b""))
            elif destination[:1] != b":":
                calls[sender, msg.serial] = destination
        elif msg.reply_serial and destination is not None:
            name = calls.pop((destination, msg.reply_serial), None)
            if name is not None and name != _DRIVER and (sender, name) not in requested:
                made.owners.setdefault(name, sender)
        made.steps.append(Step(packet.time, SEND, sender, msg))
    made.seconds = (last - first) / 1e9
    return made


def _bus_said(made: Plan, time: int, msg: Message, joined: set[bytes]) -> None:
    destination = msg.destination
    if msg.type == wire.SIGNAL and msg.member == b"NameOwnerChanged" and destination is None:
        name, old, new = (msg.string_arg(i) or b"" for i in range(3))
        if name[:1] == b":":
            if new and name not in joined:
                joined.add(name)
                made.steps.append(Step(time, JOIN, name))
            elif old and name in joined:
                made.steps.append(Step(time, LEAVE, name))
    elif msg.reply_serial and destination in joined and destination is not None:
        made.steps.append(Step(time, EXPECT, destination, serial=msg.reply_serial))
