# cython: infer_types=True
"""The hub's sockets as plain data, and back: what was half read and half written, who still
authenticates, who is not read from.

Invariant: exporting changes nothing; a peer that was restored reads and writes on at the very byte.
Descriptors are told by their place in `Luggage.fds`, bytes by their number in the sink.
"""

from __future__ import annotations

from typing import Any

from jitney.broker.connection import Connection
from jitney.broker.export import Sink, text
from jitney.broker.mem import Buffer
from jitney.broker.restore import BadState, Source, raw

from ..auth import Auth, KeyringError
from ..creds import Credentials
from ..hub import Hub
from ..peer import CLOSED, OPEN, Peer

# Copies that are C integers when compiled.
_OPEN, _CLOSED = OPEN, CLOSED

Record = dict[str, Any]

# From this size on a message that did not come whole has a buffer of its own; as the hub has it.
_LARGE = 32768


class Luggage(Sink):
    """What does not go into the text: bytes, sets of descriptors, and single descriptors."""

    def __init__(self) -> None:
        super().__init__()
        self.fds: list[int] = []

    def fd(self, fd: int) -> int:
        self.fds.append(fd)
        return len(self.fds) - 1


def newcomers(hub: Hub) -> list[Connection]:
    """Connections that have authenticated and not said Hello."""
    found = []
    for peer in hub.peers:
        if peer is not None and peer.conn is not None and peer.conn.id == 0:
            found.append(peer.conn)
    return found


def stays(service: Any) -> str:
    """What could not come along, and so keeps the bus where it is; "" if nothing does."""
    hub = service.hub
    if service.kdbus is not None:
        return "clients of kdbus"
    for conn in hub.bus.connections.values():
        if not isinstance(conn.transport, Peer):
            return "connections that are no sockets"
    return ""


def export_peers(
    hub: Hub, listeners: list[Any], places: dict[Any, int], luggage: Luggage
) -> Record:
    """All peers, and since when which of them are waited for."""
    numbers = {listener: i for i, listener in enumerate(listeners)}
    records: list[Record] = []
    order = {}
    for peer in hub.peers:
        if peer is None or peer.state == _CLOSED:
            continue
        order[peer] = len(records)
        records.append(_peer(peer, numbers[peer.listener], places, luggage))
    return {
        "peers": records,
        "incomplete": [[order[peer], when] for peer, when in hub.incomplete.items()],
        "fd_waits": [[order[peer], when] for peer, when in hub.fd_waits.items()],
    }


def _peer(peer: Peer, listener: int, places: dict[Any, int], luggage: Luggage) -> Record:
    record: Record = {
        "fd": luggage.fd(peer.fd),
        "listener": listener,
        "conn": places[peer.conn] if peer.conn is not None else -1,
        "turn": peer.turn,
        "wanted": peer.wanted,
    }
    if peer.with_fds:
        record["with_fds"] = True
    if peer.blocked:
        record["blocked"] = True
    if peer.wide:
        record["wide"] = True
    if peer.held:
        record["held"] = True
    if peer.nonce:
        record["nonce"] = text(peer.nonce)
    if peer.partial is not None:
        record["partial"] = luggage.blob(bytes(peer.partial))
    if peer.fds_in:
        record["fds_in"] = luggage.fd_set(peer.fds_in)
    if peer.auth is not None:
        record["auth"] = _auth(peer.auth)
    if peer.creds.described is not None:
        record["described"] = peer.creds.described
    return record


def _auth(auth: Auth) -> Record:
    """A conversation that goes on; one that is over has no Auth any more."""
    return {
        "identity": auth.identity,
        "unix_fds": bool(auth.unix_fds),
        "uid": auth._uid,
        "fds_possible": bool(auth._fds_possible),
        "state": auth._state,
        "buffer": text(auth._buffer),
        "rejections": auth._rejections,
        "mechanism": text(auth._mechanism),
        "claimed": text(auth._claimed),
        "prompted": bool(auth._prompted),
        "key": auth._key,
        "challenge": text(auth._challenge),
    }


def restore_peers(
    hub: Hub,
    record: Record,
    source: Source,
    fds: list[int],
    conns: list[Connection],
    listeners: list[Any],
) -> list[Peer]:
    """Gives the hub these peers. Nothing is read or written; timers are the caller's."""
    found = []
    for one in record["peers"]:
        peer = _restored(one, source, fds, conns, listeners)
        while len(hub.peers) <= peer.fd:
            hub.peers.append(None)
        if hub.poller.add(peer.fd) < 0:
            raise BadState("the kernel has no room to watch the connections")
        if peer.held or peer.blocked:
            peer.watch(hub.poller, peer.blocked)
        hub.peers[peer.fd] = peer
        hub.n_peers += 1
        found.append(peer)
    for place, when in record["incomplete"]:
        hub.incomplete[found[place]] = when
    for place, when in record["fd_waits"]:
        hub.fd_waits[found[place]] = when
    for conn in conns:
        if conn.transport is None:
            raise BadState(f"{conn.label} has no socket")
    return found


def _restored(
    one: Record, source: Source, fds: list[int], conns: list[Connection], listeners: list[Any]
) -> Peer:
    listener = listeners[one["listener"]]
    peer = Peer(fds[one["fd"]], listener)
    peer.creds = Credentials(peer.fd)
    peer.creds.described = one.get("described")
    peer.nonce = raw(one.get("nonce", ""))
    peer.turn = one["turn"]
    peer.wanted = one["wanted"]
    peer.with_fds = one.get("with_fds", False)
    peer.blocked = one.get("blocked", False)
    peer.wide = one.get("wide", False)
    peer.held = one.get("held", False)
    if "partial" in one:
        data = source.blob(one["partial"])
        partial = Buffer()
        partial.reserve(peer.wanted if peer.wanted > _LARGE else len(data))
        partial.add(data)
        peer.partial = partial
    if "fds_in" in one:
        peer.fds_in = source.claim(one["fds_in"])
    if one["conn"] >= 0:
        if "auth" in one:
            raise BadState("a connection that still authenticates")
        conn = conns[one["conn"]]
        if conn.transport is not None:
            raise BadState(f"{conn.label} has two sockets")
        peer.conn = conn
        peer.state = _OPEN
        conn.transport = peer
        conn.creds = peer.creds
    else:
        peer.auth = _conversation(one["auth"], listener.offer)
    return peer


def _conversation(record: Record, offer: Any) -> Auth:
    auth = Auth(offer, record["uid"], record["fds_possible"])
    auth.identity = record["identity"]
    auth.unix_fds = record["unix_fds"]
    auth._state = record["state"]
    auth._buffer = raw(record["buffer"])
    auth._rejections = record["rejections"]
    auth._mechanism = raw(record["mechanism"])
    auth._claimed = raw(record["claimed"])
    auth._prompted = record["prompted"]
    auth._challenge = raw(record["challenge"])
    auth._key = record["key"]
    if auth._key >= 0 and offer.keyring is not None:
        try:
            auth._keyring = offer.keyring()
            auth._keyring.best_key()
        except KeyringError:
            pass  # without keys its answer is wrong, and it may try again
    return auth
