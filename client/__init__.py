"""jitney.client: a client of kdbus's commands over a socket (docs/native.md), on asyncio.

Invariant: it knows the format and kdbus's tables, and nothing of the bus behind it; so it is a
client of any bus that speaks the format.

    async with await connect("/run/user/1000/kdbus/1000-user/bus") as bus:
        with await bus.call("org.example.Clock", b"what time is it") as answer:
            print(bytes(answer.payload))

docs/client.md tells the rest.
"""

from __future__ import annotations

from .connection import Connection, Info, Name, connect
from .errors import (
    BusError,
    BusGone,
    Cancelled,
    Disconnected,
    NameTaken,
    NoDescriptors,
    NoSuchName,
    NoSuchPeer,
    NotPermitted,
    NotWaitedFor,
    PeerGone,
    QueueFull,
    TimedOut,
    TooManyDescriptors,
)
from .frames import FormatError
from .items import (
    Creds,
    IdAdded,
    IdRemoved,
    Metadata,
    NameAdded,
    NameChanged,
    NameRemoved,
    Pids,
    ReplyDead,
    ReplyTimedOut,
)
from .memory import Memfd, sealed
from .message import Message
from .nodes import Node, make_bus, make_endpoint
from .outgoing import BROADCAST
from .rules import (
    Access,
    BloomMask,
    FromId,
    FromName,
    OnIdAdded,
    OnIdRemoved,
    OnName,
    Right,
    ToId,
    Whom,
)

__all__ = [
    "BROADCAST", "Access", "BloomMask", "BusError", "BusGone", "Cancelled", "Connection", "Creds",
    "Disconnected", "FormatError", "FromId", "FromName", "IdAdded", "IdRemoved", "Info", "Memfd",
    "Message", "Metadata", "Name", "NameAdded", "NameChanged", "NameRemoved", "NameTaken",
    "NoDescriptors", "NoSuchName", "NoSuchPeer", "Node", "NotPermitted", "NotWaitedFor",
    "OnIdAdded", "OnIdRemoved", "OnName", "PeerGone", "Pids", "QueueFull", "ReplyDead",
    "ReplyTimedOut", "Right", "TimedOut", "ToId", "TooManyDescriptors", "Whom", "connect",
    "make_bus", "make_endpoint", "sealed",
]  # fmt: skip
