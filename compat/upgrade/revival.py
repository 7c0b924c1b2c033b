"""Revival: a bus goes on with the connections that the service manager kept over a crash.

Invariant: whoever is revived has the id, names and rules that the journal tells of, and a socket on
which nothing is half written; all others leave in the ordinary way, with the signals that belong to
it. Half a message that had been read is no message: what follows on that socket is refused as such.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from jitney.broker.limits import Limits
from jitney.broker.restore import Source, restore

from .. import matchrule
from ..creds import Credentials
from ..peer import RECEIVE
from ..sysio import COMPILED, attach
from .peers import restore_peers
from .store import CONNECTION, Found, Store, end

if TYPE_CHECKING:
    from ..assembly import BusService
    from ..daemon import Daemon


class _Silent:
    """A front that nobody hears."""

    def __init__(self, bus: Any) -> None:
        self.bus = bus

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **about: None


def revive(daemon: Daemon, service: BusService, store: Store, kept: Found) -> None:
    """Fills a bus that nobody is on yet; whoever cannot be revived leaves when the loop runs."""
    bus, front, limits = service.bus, service.front, service.bus.limits
    bus.front = _Silent(bus)
    unlimited = Limits()
    for name in vars(unlimited):
        setattr(unlimited, name, 1 << 30)
    unlimited.reply_timeout = -1
    bus.set_limits(unlimited)
    try:
        restore(bus, kept.document["bus"], Source([], []))
        lost = set(kept.document["lost"])
        blocked = set(kept.document["blocked"])
        for record in kept.records:
            _again(bus, record, lost, blocked)
    finally:
        bus.front = front
        bus.set_limits(limits)
    conns = list(bus.connections.values())
    back = [c for c in conns if c.id in kept.sockets and c.id not in lost | blocked]
    for number in kept.sockets.keys() - {conn.id for conn in back}:
        end(kept.sockets[number])
        os.close(kept.sockets[number])
        store.drop(f"{CONNECTION}{number}")
    peers = []
    for place, conn in enumerate(back):
        if not COMPILED:
            _attach(kept.sockets[conn.id])
        one = {"fd": place, "listener": 0, "conn": place, "turn": RECEIVE, "wanted": 16}
        if conn.accepts_fds:
            one["with_fds"] = True
        peers.append(one)
    fds = [kept.sockets[conn.id] for conn in back]
    all_peers = {"peers": peers, "incomplete": [], "fd_waits": []}
    for peer in restore_peers(service.hub, all_peers, Source([], []), fds, back, daemon.listeners):
        store.take(peer)
    gone = [conn for conn in conns if conn.transport is None]
    for conn in gone:
        # Nobody can be asked who that was.
        conn.creds = Credentials(-1)
    for conn in conns:
        front.give_policy(conn)
    daemon.log.warning(
        f"The bus crashed: {len(back)} connections go on, {len(gone)} could not be saved"
    )
    _await(service, kept, conns)
    for conn in gone:
        service.hub.loop.call_soon(_leave, bus, store, conn)


def _await(service: BusService, kept: Found, conns: list[Any]) -> None:
    """Replies that are sure to be due are awaited again; whose call or reply may have been lost is
    told so."""
    bus = service.bus
    timeout = bus.limits.reply_timeout / 1000
    deadline = bus.clock() + timeout if timeout > 0 else 0.0
    known = {conn.id: conn for conn in conns}
    for caller, callee, serial, sure in kept.calls:
        one, other = known.get(caller), known.get(callee)
        if one is None:
            continue
        if sure and other is not None:
            bus.replies.expect(one, other, serial, deadline, bus.accounts.moment)
        elif one.transport is not None:
            service.hub.loop.call_soon(_tell, service, one, serial)
    if bus.replies.next_deadline() > 0:
        service.hub.alarm(deadline)


def _tell(service: BusService, conn: Any, serial: int) -> None:
    if conn.transport is not None and not conn.monitor:
        service.front.no_reply(
            conn, serial, "Message did not receive a reply (timeout by message bus)"
        )


def _leave(bus: Any, store: Store, conn: Any) -> None:
    store.went(conn)
    bus.disconnect(conn)


def _again(bus: Any, record: list[Any], lost: set[int], blocked: set[int]) -> None:
    """Does once more what the journal says was done."""
    kind, number, *rest = record
    if kind == "hello":
        uid, fds = rest
        conn = bus.connect(uid)
        conn.accepts_fds = fds
        bus.last_id = number - 1
        bus.hello(conn)
        return
    conn = bus.connections.get(number)
    if conn is None:
        return
    if kind == "gone":
        bus.disconnect(conn)
    elif kind == "request":
        bus.names.request(conn, rest[0].encode("latin-1"), rest[1])
    elif kind == "release":
        bus.names.release(conn, rest[0].encode("latin-1"))
    elif kind == "match":
        bus.add_match(conn, matchrule.parse(rest[0].encode("latin-1")))
    elif kind == "unmatch":
        bus.remove_match(conn, matchrule.parse(rest[0].encode("latin-1")))
    elif kind == "monitor":
        bus.become_monitor(conn, [matchrule.parse(text.encode()) for text in rest[0]])
    elif kind == "lost":
        # A tracer, which has taken its leave as a client.
        bus.become_monitor(conn, [])
        lost.add(number)
    elif kind == "blocked":
        blocked.add(number)
    elif kind == "unblocked":
        blocked.discard(number)


def _attach(fd: int) -> None:
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    attach(sock)
