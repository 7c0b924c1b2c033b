# cython: infer_types=True
"""Endpoint: a second door to a bus, whose clients see, talk to and own what its policy allows.

Invariant: an endpoint only takes away: what it lets pass is still for the bus's policy to decide.
A client of a filtering endpoint sends calls and signals to nobody whom no grant opens to it,
replies only where one is awaited, and gets replies that it awaits, what others send to it, and
broadcasts that a grant lets in. Whoever is on no endpoint pays one look at a pointer for a message.

The idea is kdbus's custom endpoint. What a grant means, and what becomes visible when, is
xdg-dbus-proxy's (its manual, "Policy"): levels see, talk and own, each with the ones before it; a
peer that has sent something to a client is seen by it from then on, and so is one that has lost a
name which the client sees. Talking, however, ends with the name: a proxy cannot know in time. And
broadcasts take a grant of their own or a plain one, as with the proxy up to 0.1.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

try:
    import cython
except ImportError:
    from ._cython import cython

from .connection import Connection
from .match import unique_id
from .mem import Map64
from .message import Message
from .replies import Replies

if not cython.compiled:
    from .mem import hash64, of_bytes, same, take

SEE, TALK, OWN = 1, 2, 3
CALLS, BROADCASTS = 1, 2
PASSED, DENIED, HIDDEN = 0, 1, 2

DRIVER = b"org.freedesktop.DBus"
NAME_OWNER_CHANGED = b"NameOwnerChanged"

KEPT = 4096
"""So many verdicts are kept at once, on names and on peers each."""

# Copies that are C integers when compiled.
_SEE, _TALK, _OWN = SEE, TALK, OWN
_CALLS, _BROADCASTS = CALLS, BROADCASTS
_PASSED, _DENIED, _HIDDEN = PASSED, DENIED, HIDDEN


class Grant:
    """One rule: `level` on a name, or (`subtree`) on it and all below it. With a path, interface or
    member it is about such calls and signals to it (`what` has CALLS), or broadcasts of it
    (BROADCASTS), only; `below`: or about objects below that path."""

    def __init__(
        self,
        name: bytes,
        level: int,
        subtree: bool = False,
        what: int = CALLS | BROADCASTS,
        path: bytes | None = None,
        below: bool = False,
        interface: bytes | None = None,
        member: bytes | None = None,
    ) -> None:
        self.name = name
        self.level = level
        self.subtree = subtree
        self.what = what
        self.path = path
        self.below = below
        self.interface = interface
        self.member = member

    @property
    def plain(self) -> bool:
        """Whether it says nothing of what a message is about."""
        return self.path is None and self.interface is None and self.member is None

    def fits(self, what: int, msg: Message) -> bool:
        """Whether it lets this message pass, from or to one who has the name."""
        if self.level < _TALK or not self.what & what:
            return False
        p = msg.p
        if self.interface is not None and not (
            msg.iface_len >= 0 and same(p, msg.iface_off, msg.iface_len, self.interface)
        ):
            return False
        if self.member is not None and not (
            msg.member_len >= 0 and same(p, msg.member_off, msg.member_len, self.member)
        ):
            return False
        if self.path is None:
            return True
        n = msg.path_len
        if n < 0:
            return False
        want = len(self.path)
        if not self.below or n <= want:
            return same(p, msg.path_off, n, self.path)
        return same(p, msg.path_off, want, self.path) and p[msg.path_off + want] == 47


class Verdict:
    """What all grants together say of a name, or of a peer for all the names that it owns.

    `calls_open`, `signals_open`: any call to it, any broadcast of it. `version` is the peer's, when
    this was found out; `next` another one that fell to the same place."""

    def __init__(self, text: bytes = b"") -> None:
        self.text = text
        self.level = 0
        self.grants: list[Grant] = []
        self.calls_open = False
        self.signals_open = False
        self.version = 0
        self.next: Verdict | None = None


class Endpoint:
    """`filtering`: grants count; without, clients may do what the bus's policy lets them, and are
    told apart only. `sloppy`: comings and goings of all unique names are seen.

    `learned`: what is told of all that clients do, see `learning.Learned`; `holder`: the front's.
    `connections` are its clients, said Hello or not."""

    def __init__(
        self,
        name: bytes,
        grants: Iterable[Grant] = (),
        filtering: bool = True,
        sloppy: bool = False,
        learned: Any = None,
    ) -> None:
        self.name = name
        self.filtering = filtering
        self.sloppy = sloppy
        self.learned = learned
        self.holder: Any = None
        self.connections: set[Connection] = set()
        self.n_refused = 0
        self.replies: Replies | None = None
        self.table: Map64 | None = None
        self.first = 1
        self.grants = [*grants]
        self.by_name: dict[bytes, list[Grant]] = {}
        # The bus itself may be talked to, whatever else; what it does is the front's to decide.
        for grant in (Grant(DRIVER, _TALK), *self.grants):
            self.by_name.setdefault(grant.name, []).append(grant)
        self.names = Map64()
        self.peers = Map64()
        self.n_names = 0
        self.n_peers = 0

    # Who is there

    def enter(self, conn: Connection) -> None:
        """Makes `conn` one of its clients, from its first message on."""
        conn.endpoint = self
        self.connections.add(conn)

    def leave(self, conn: Connection) -> None:
        self.connections.discard(conn)

    def notice(self, conn: Connection, peer: Connection) -> None:
        """Its client `conn` sees `peer` from now on."""
        if peer is conn:
            return
        seen = conn.seen
        if seen is None:
            seen = conn.seen = set()
        elif peer in seen:
            return
        seen.add(peer)
        if peer.seen_by is None:
            peer.seen_by = set()
        peer.seen_by.add(conn)

    def losing(self, text: bytes, old: Connection) -> None:
        """`old` is about to lose this name: who saw him by it will want to see the end of him."""
        if self.filtering and self.level_of(text) >= _SEE:
            for conn in self.connections:
                # Who has not said Hello has seen nobody, and is not there to be forgotten.
                if conn.id:
                    self.notice(conn, old)

    # What the grants say

    def of_name(self, p, off: int, n: int) -> Verdict:
        """The verdict on a well-known name."""
        key = hash64(p, off, n)
        first = self.names.get(key)
        found = first
        while found is not None:
            if same(p, off, n, found.text):
                return found
            found = found.next
        found = Verdict(take(p, off, n))
        self.weigh(found, found.text)
        self.conclude(found)
        if found.level:
            if self.n_names >= KEPT:
                # Below a name there may be any number of others.
                self.names = Map64()
                self.n_names = 0
                first = None
            found.next = first
            self.names.put(key, found)
            self.n_names += 1
        return found

    def of_peer(self, peer: Connection) -> Verdict:
        """The verdict on a connection, for the names that it owns now."""
        found = self.peers.get(peer.id)
        if found is not None and found.version == peer.version:
            return found
        if found is None:
            if self.n_peers >= KEPT:
                self.peers = Map64()
                self.n_peers = 0
            self.n_peers += 1
        found = Verdict(peer.unique_name)
        found.version = peer.version
        for text in peer.owned:
            self.weigh(found, text)
        self.conclude(found)
        self.peers.put(peer.id, found)
        return found

    def weigh(self, verdict: Verdict, text: bytes) -> None:
        """Adds to a verdict what there is about this name."""
        end = len(text)
        exact = True
        while end > 0:
            for grant in self.by_name.get(text[:end], ()):
                if exact or grant.subtree:
                    verdict.grants.append(grant)
                    verdict.level = max(verdict.level, grant.level)
            exact = False
            end = text.rfind(b".", 0, end)

    def conclude(self, verdict: Verdict) -> None:
        # Who may own a name may do all else: such a grant is always a plain one.
        for grant in verdict.grants:
            if grant.level >= _TALK and grant.plain:
                if grant.what & _CALLS:
                    verdict.calls_open = True
                if grant.what & _BROADCASTS:
                    verdict.signals_open = True

    def level_of(self, text: bytes) -> int:
        """The level on a well-known name."""
        return self.of_name(of_bytes(text), 0, len(text)).level

    def level(self, conn: Connection, text: bytes) -> int:
        """The level that its client `conn` has on any name, be it no valid one: 0 for none."""
        if not self.filtering:
            return _OWN
        if not text:
            return 0
        if text[0] != 58:
            return self.level_of(text)
        return self.level_on(conn, self.table.get(unique_id(text, self.first)))

    def level_on(self, conn: Connection, peer: Connection | None) -> int:
        """The level that `conn` has on a peer (None: nobody)."""
        if peer is None:
            return 0
        if peer is conn:
            return max(_TALK, self.of_peer(peer).level)
        level = self.of_peer(peer).level
        if level == 0 and conn.seen is not None and peer in conn.seen:
            return _SEE
        return level

    def may_own(self, text: bytes) -> bool:
        return not self.filtering or self.level_of(text) >= _OWN

    # Messages

    def judge(self, conn: Connection, msg: Message, dest: Connection | None) -> int:
        """PASSED, DENIED or HIDDEN: what becomes of a message that `conn` sends to a name whose
        owner is `dest` (None: nobody, or the bus)."""
        if not self.filtering:
            return _PASSED
        if msg.reply_serial or msg.type == 2 or msg.type == 3:
            if (
                dest is not None
                and (msg.type == 2 or msg.type == 3)
                and self.replies.find(dest, conn, msg.reply_serial) is not None
            ):
                return _PASSED
            return _DENIED
        p = msg.p
        if p[msg.dest_off] == 58:
            if dest is None:
                return _HIDDEN
            if dest is conn:
                return _PASSED
            found = self.of_peer(dest)
            if found.level == 0:
                return _HIDDEN if self.level_on(conn, dest) == 0 else _DENIED
        else:
            if dest is None and same(p, msg.dest_off, msg.dest_len, DRIVER):
                return _PASSED if msg.type == 1 else _DENIED
            found = self.of_name(p, msg.dest_off, msg.dest_len)
            if found.level == 0:
                return _HIDDEN
        if found.calls_open:
            return _PASSED
        for grant in found.grants:
            if grant.fits(_CALLS, msg):
                return _PASSED
        return _DENIED

    def lets_out(self, bus: Any, conn: Connection, msg: Message, dest: Connection | None) -> bool:
        """Whether a message of its client `conn` may go on to a name; if not, the front is told."""
        verdict = self.judge(conn, msg, dest)
        if self.learned is not None:
            self.learned.sends(conn, msg, dest, verdict == _PASSED)
        if verdict == _PASSED:
            return True
        self.n_refused += 1
        if bus.monitors:
            bus.capture(msg, conn, dest)
        bus.front.turned_back(conn, dest, msg, verdict == _HIDDEN)
        return False

    def lets_in(self, conn: Connection, msg: Message, sender: Connection, requested: bool) -> bool:
        """Whether its client `conn` gets what `sender` sent to it."""
        if self.filtering and (msg.type == 2 or msg.type == 3) and not requested:
            return False
        self.notice(conn, sender)
        return True

    def hears(self, conn: Connection, msg: Message, sender: Connection | None) -> bool:
        """Whether its client `conn` gets a broadcast that it listens for (sender None: the bus)."""
        if self.filtering and not self.open_to(conn, msg, sender):
            return False
        if sender is not None:
            self.notice(conn, sender)
            if self.learned is not None:
                self.learned.hears(conn, msg, sender)
        return True

    def open_to(self, conn: Connection, msg: Message, sender: Connection | None) -> bool:
        if sender is None:
            return self.of_the_bus(conn, msg)
        if sender is conn:
            return True
        if msg.dest_len >= 0:
            return False  # it was for somebody else
        found = self.of_peer(sender)
        if found.signals_open:
            return True
        for grant in found.grants:
            if grant.fits(_BROADCASTS, msg):
                return True
        return False

    def of_the_bus(self, conn: Connection, msg: Message) -> bool:
        p = msg.p
        if (
            msg.n_args == 0
            or not same(p, msg.member_off, msg.member_len, NAME_OWNER_CHANGED)
            or not same(p, msg.iface_off, msg.iface_len, DRIVER)
        ):
            return True
        off = msg.arg_off[0]
        n = msg.arg_len[0]
        if p[off] != 58:
            return self.of_name(p, off, n).level >= _SEE
        if self.sloppy:
            return True
        peer = self.table.get(unique_id(take(p, off, n), self.first))
        return self.level_on(conn, peer) >= _SEE


def forget(conn: Connection) -> None:
    """Nobody sees this connection any more, nor it anybody."""
    if conn.seen_by is not None:
        for other in conn.seen_by:
            other.seen.discard(conn)
        conn.seen_by = None
    if conn.seen is not None:
        for other in conn.seen:
            other.seen_by.discard(conn)
        conn.seen = None
