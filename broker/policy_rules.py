"""Rules: what one line of a policy is about.

Invariant: a rule says whether it fits, from the message, the name or the user alone; which of the
fitting rules decides is not its business (see `policy.py`). Rules are plain data, made once when a
configuration is read. Each knows the file and line it came from.

Semantics are dbus-daemon's: a name means its holders, so a rule about the name X fits every
connection that owns X or waits in the queue for it, whatever name the message was addressed to. A
header field that a message lacks is no obstacle to a rule about that field, with one exception: an
*allow* rule about an interface needs the interface to be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Protocol

    class Message(Protocol):
        """What a decision reads of a message."""

        type: int
        reply_serial: int
        n_fds: int
        path: bytes | None
        interface: bytes | None
        member: bytes | None
        error_name: bytes | None
        destination: bytes | None
        sender: bytes | None

    class Connection(Protocol):
        """What a decision reads of a connection: every name it owns or waits for."""

        unique_name: bytes
        names: dict[bytes, Any]


# Ids of rules about users and groups.
ANYBODY = -1
UNKNOWN = -2
# No message has more fds (D-Bus specification: 128 MiB in units of 4 bytes).
MAX_FDS = 33554432

EITHER, NO, YES = -1, 0, 1


def below(name: bytes, prefix: bytes) -> bool:
    """Whether `name` is `prefix` or continues it with a dot: a.b and a.b.c for a.b, not a.bc."""
    return name.startswith(prefix) and (len(name) == len(prefix) or name[len(prefix)] == 46)


def holds(conn: Connection, name: bytes) -> bool:
    """Whether the connection owns the name or is in its queue."""
    return name == conn.unique_name or name in conn.names


def holds_below(conn: Connection, prefix: bytes) -> bool:
    """holds() for any name at or below `prefix`."""
    if below(conn.unique_name, prefix):
        return True
    for name in conn.names:
        if below(name, prefix):
            return True
    return False


class Facts:
    """What rules want to know of a message, taken out of it once for all of them.

    `is_requested`: it is a reply that its receiver waits for."""

    __slots__ = (
        "destination",
        "error",
        "interface",
        "is_broadcast",
        "is_reply",
        "is_requested",
        "member",
        "n_fds",
        "path",
        "sender",
        "type",
    )

    def __init__(self, msg: Message, requested_reply: bool) -> None:
        self.type = msg.type
        self.path = msg.path
        self.interface = msg.interface
        self.member = msg.member
        self.error = msg.error_name
        self.destination = msg.destination
        self.sender = msg.sender
        self.n_fds = msg.n_fds
        self.is_reply = msg.reply_serial != 0
        self.is_requested = requested_reply
        self.is_broadcast = self.type == 4 and self.destination is None


class MessageRule:
    """`<allow>` or `<deny>` of sending or receiving. None and 0 mean "any".

    `peer` is a name of the other side, `prefix` the same for all names at or below it (sending
    only); `broadcast` is EITHER, NO or YES (sending only)."""

    __slots__ = (
        "allow",
        "blanket",
        "broadcast",
        "eavesdrop",
        "error",
        "file",
        "interface",
        "line",
        "log",
        "max_fds",
        "member",
        "min_fds",
        "path",
        "peer",
        "plain",
        "prefix",
        "requested_reply",
        "send",
        "type",
        "unconditional",
    )

    def __init__(
        self,
        allow: bool,
        send: bool = True,
        type: int = 0,
        path: bytes | None = None,
        interface: bytes | None = None,
        member: bytes | None = None,
        error: bytes | None = None,
        peer: bytes | None = None,
        prefix: bytes | None = None,
        broadcast: int = EITHER,
        requested_reply: bool = False,
        eavesdrop: bool = False,
        min_fds: int = 0,
        max_fds: int = MAX_FDS,
        log: bool = False,
        file: str = "",
        line: int = 0,
    ) -> None:
        self.allow = allow
        self.send = send
        self.type = type
        self.path = path
        self.interface = interface
        self.member = member
        self.error = error
        self.peer = peer
        self.prefix = prefix
        self.broadcast = broadcast
        self.requested_reply = requested_reply
        self.eavesdrop = eavesdrop
        self.min_fds = min_fds
        self.max_fds = max_fds
        self.log = log
        self.file = file
        self.line = line
        self.blanket = (
            type == 0
            and path is None
            and interface is None
            and member is None
            and error is None
            and peer is None
            and prefix is None
        )
        # Once it is known who the other side is, nothing but "is it a reply" and "is it
        # eavesdropped" is left to ask, for its type.
        self.plain = (
            path is None
            and interface is None
            and member is None
            and error is None
            and broadcast == EITHER
            and min_fds <= 0
            and max_fds >= MAX_FDS
        )
        self.unconditional = self.plain and peer is None and prefix is None

    def fits(self, facts: Facts) -> bool:
        """Whether the rule is about such a message, whoever sends or receives it."""
        if self.type and self.type != facts.type:
            return False
        if self.interface is not None:
            if facts.interface is None:
                if self.allow:
                    return False
            elif facts.interface != self.interface:
                return False
        if self.member is not None and facts.member is not None and facts.member != self.member:
            return False
        if self.path is not None and facts.path is not None and facts.path != self.path:
            return False
        if self.error is not None and facts.error is not None and facts.error != self.error:
            return False
        if facts.is_reply:
            # "requested only" narrows an allow; "unrequested only" narrows a deny.
            if self.allow:
                if self.requested_reply and not facts.is_requested and not self.eavesdrop:
                    return False
            elif facts.is_requested and not self.requested_reply:
                return False
        return self.min_fds <= facts.n_fds <= self.max_fds

    def fits_send(self, facts: Facts, receiver: Connection | None) -> bool:
        """Whether the rule applies to sending. No receiver: the bus itself, or a service to be
        started, which will have the one name that the message asks for."""
        if not self.fits(facts):
            return False
        if self.broadcast != EITHER and facts.is_broadcast != (self.broadcast == YES):
            return False
        if self.peer is not None:
            if receiver is None:
                return facts.destination == self.peer
            return holds(receiver, self.peer)
        if self.prefix is not None:
            if receiver is None:
                return facts.destination is not None and below(facts.destination, self.prefix)
            return holds_below(receiver, self.prefix)
        return True

    def fits_receive(self, facts: Facts, sender: Connection | None, eavesdropping: bool) -> bool:
        """Whether the rule applies to receiving. No sender: the bus itself."""
        if self.allow:
            if eavesdropping and not self.eavesdrop:
                return False
        elif self.eavesdrop and not eavesdropping:
            return False
        if not self.fits(facts):
            return False
        if self.peer is not None:
            if sender is None:
                return facts.sender == self.peer
            return holds(sender, self.peer)
        return True


class OwnRule:
    """`<allow own=…>`, `own_prefix=…` and the same for `<deny>`. No name: any."""

    __slots__ = ("allow", "file", "line", "name", "prefix")

    def __init__(
        self,
        allow: bool,
        name: bytes | None = None,
        prefix: bool = False,
        file: str = "",
        line: int = 0,
    ) -> None:
        self.allow = allow
        self.name = name
        self.prefix = prefix
        self.file = file
        self.line = line

    def fits(self, name: bytes) -> bool:
        """Whether the rule is about this name."""
        if self.name is None:
            return True
        return below(name, self.name) if self.prefix else name == self.name


class ConnectRule:
    """`<allow user=…>`, `group=…` and the same for `<deny>`: who may connect at all.

    `id` is a uid (or gid if `group`), ANYBODY, or UNKNOWN as long as only `name` is known."""

    __slots__ = ("allow", "file", "group", "id", "line", "name")

    def __init__(
        self,
        allow: bool,
        id: int = ANYBODY,
        group: bool = False,
        name: bytes = b"",
        file: str = "",
        line: int = 0,
    ) -> None:
        self.allow = allow
        self.id = id
        self.group = group
        self.name = name
        self.file = file
        self.line = line

    def fits(self, uid: int, gids: Sequence[int]) -> bool:
        """Whether the rule is about a user with this uid and these gids."""
        if self.id == ANYBODY:
            return True
        return self.id in gids if self.group else self.id == uid
