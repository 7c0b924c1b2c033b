"""Rounds: serving all sockets that are ready, one round after the other.

Invariant: a round is begun and ended with the domain's lock, and each socket in it has one turn. On
the loop of a daemon of its own (`BusLoop`) the sockets are in the loop's own epoll set: then rounds
follow each other without the loop, until something else is ready, due, or has been asked of it.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.compat import ways

from .slots import FrontSlots, PeerSlots

if not cython.compiled:
    from jitney.broker.kdbus.loads import get32

    from .quick import feed
    from .quick import send as quick_send
    from .sysio import milliseconds_now

ROUND = 256
TURN = 32
"""So many frames of one socket are served before others have their turn."""

_OUT = ways.OUT
_HEAD = 24
_TURN = TURN
_ROUND = ROUND


def drain(front: Any, peer: Any) -> None:
    """Serves what there is to read of a socket that keeps frames apart."""
    reader = front.reader
    buffer = reader.buffer
    number = front.number
    # Whoever had one frame the last time has none left now, most likely; if it has, the next round
    # is about it again.
    turn = _TURN if front.whole or peer.turned == number - 1 else 1
    peer.turned = number
    for i in range(turn):  # noqa: B007  (a C integer)
        if peer.owed or peer.dead or peer.paused is not None:
            return
        n = reader.receive(peer.sock, peer.fd)
        if n == -1:
            return
        if n < _HEAD:
            if n >= 0:
                front.close_fds(reader.fds, peer)
            front.lose(peer)
            return
        fds = reader.fds
        said = reader.said
        lost = reader.lost
        if reader.cut or n != get32(buffer, 0):
            front.close_fds(fds, peer)
            front.lose(peer)
            return
        if fds or lost or not quick_send(front, peer, buffer, n, said):
            front.serve(peer, front.view[:n], fds, said, lost)


def pass_on(front: Any) -> None:
    """What came up in a turn: most of it are messages for those who are fed."""
    news = front.news
    while news and not front.doomed:
        handle = news[-1]
        if (
            not handle.fed or handle.conn is None or handle.first is None
            or not handle.conn.active
        ):  # fmt: skip
            break
        news.pop()
        handle.noted = False
        if not handle.first.dead:
            feed(front, handle, handle.first)
    if news or front.doomed:
        front.tell_all()


def serve(front: Any, milliseconds: int) -> int:
    """A round, after waiting so long for it (-1: for ever): how many were ready, -1 if a signal
    came first. What is ready that is none of ours is put to `front.others`."""
    poll = front.ready
    peers = front.peers
    # Those that asked before this round; who asks in it waits for the next.
    settling = None
    most = _ROUND
    if front.settling:
        settling, front.settling = front.settling, []
        milliseconds = 0
        most = max(most, len(peers))
    n = poll.wait(milliseconds, most)
    if n < 0 and settling is not None:
        front.settling = settling + front.settling
    if n < 0 or (n == 0 and settling is None):
        return n
    lock = front.domain.lock
    lock.acquire()
    front.serving = True
    front.number += 1
    front.whole = settling is not None
    try:
        for i in range(n):
            fd = poll.fd_at(i)
            events = poll.events_at(i)
            peer = peers.get(fd)
            if peer is None:
                front.others.append((fd, events))
                continue
            if not isinstance(peer, PeerSlots):
                front.take_turn(fd, peer)
            elif events & _OUT and peer.owed:
                front.pay(peer)
            elif front.stream:
                front.take_turn(fd, peer)
            else:
                drain(front, peer)
            if front.news or front.doomed:
                pass_on(front)
        if settling is not None:
            for settled, serial, flags in settling:
                front.settled(settled, serial, flags)
    finally:
        front.serving = False
        lock.release()
    return n


class Waiter:
    """What `BusLoop` waits with; see there. `front` serves what is ready."""

    def __init__(self, front: FrontSlots) -> None:
        self.front: Any = front
        self.stirred = False

    def wait(self, milliseconds: int) -> list[tuple[int, int]]:
        """What else is ready, after at most so long (-1: for ever)."""
        front = self.front
        until = milliseconds_now() + milliseconds if milliseconds > 0 else 0
        self.stirred = False
        while True:
            try:
                ready = serve(front, milliseconds)
            except Exception:
                # What goes wrong here must not end the loop, which has others to serve.
                traceback.print_exc(file=sys.stderr)
                break
            if front.settling:
                continue
            if front.others or ready <= 0 or self.stirred or milliseconds == 0:
                break
            if until:
                now = milliseconds_now()
                if now >= until:
                    break
                milliseconds = until - now
        others: list[tuple[int, int]] = front.others
        front.others = []
        return others
