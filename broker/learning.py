"""Learning: what the clients of an endpoint did, as grants that would let them do it again.

Invariant: what is noted is bounded, by KEPT entries, and says names, never unique names: those are
somebody else's next time. Peers that have no name are counted, since no grant can name them.
"""

from __future__ import annotations

from .connection import Connection
from .message import Message

KEPT = 10000

Entry = tuple[str, bytes, bytes]


class Learned:
    """`used` and `missed`: how often each thing was done, or refused: (kind, name, what), where
    kind is "see", "talk", "own", "call" or "broadcast", and what is "" or INTERFACE.MEMBER."""

    def __init__(self) -> None:
        self.used: dict[Entry, int] = {}
        self.missed: dict[Entry, int] = {}
        self.n_nameless = 0
        self.n_forgotten = 0

    def sends(self, conn: Connection, msg: Message, dest: Connection | None, passed: bool) -> None:
        """A message to a name; those to the bus itself are told of by what they ask."""
        if msg.reply_serial or msg.type not in (1, 4) or dest is conn:
            return
        name = msg.destination or b""
        if name[:1] == b":":
            found = self.name_of(dest)
            if found is None:
                return
            name = found
        elif name == b"org.freedesktop.DBus":
            return
        self.note("call", name, about(msg), passed)

    def hears(self, conn: Connection, msg: Message, sender: Connection) -> None:
        """A broadcast of another peer has come in."""
        if sender is not conn:
            name = self.name_of(sender)
            if name is not None:
                self.note("broadcast", name, about(msg))

    def name_of(self, peer: Connection | None) -> bytes | None:
        """The name by which a peer can be meant."""
        if peer is not None:
            for text in peer.owned:
                return text
        self.n_nameless += 1
        return None

    def note(self, kind: str, name: bytes, what: bytes = b"", passed: bool = True) -> None:
        into = self.used if passed else self.missed
        entry = (kind, name, what)
        if entry not in into and len(into) >= KEPT:
            self.n_forgotten += 1
            return
        into[entry] = into.get(entry, 0) + 1


def about(msg: Message) -> bytes:
    """INTERFACE.MEMBER; "*" for a call that names no interface: nothing narrower lets it pass."""
    if msg.interface is None:
        return b"*"
    return msg.interface + b"." + (msg.member or b"")
