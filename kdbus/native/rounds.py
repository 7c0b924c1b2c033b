"""Rounds: serving all sockets that are ready, one round after the other.

Invariant: a round is begun and ended with the domain's lock, and each socket in it has one turn. On
the loop of a daemon of its own (`BusLoop`) the sockets are in the loop's own epoll set: then rounds
follow each other without the loop, until something else is ready, due, or has been asked of it.
"""

from __future__ import annotations

import select
import sys
import time
import traceback
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from .peer import Peer

if not cython.compiled:
    from jitney.broker.kdbus.loads import get32

    from .quick import feed
    from .quick import send as quick_send

ROUND = 256
TURN = 32
"""So many frames of one socket are served before others have their turn."""

_OUT = select.EPOLLOUT
_HEAD = 24
_TURN = TURN


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


def serve(front: Any, left: float) -> tuple[bool, list[tuple[int, int]]]:
    """A round, after waiting so many seconds for it (-1: for ever); whether there was one, and what
    is ready that is none of ours."""
    peers = front.peers
    others: list[tuple[int, int]] = []
    stream = front.stream
    # Those that asked before this round; who asks in it waits for the next.
    settling, front.settling = front.settling, []
    most = max(ROUND, len(peers)) if settling else ROUND
    ready = front.poll.poll(0 if settling else left, most)
    with front.domain.lock:
        front.serving = True
        front.number += 1
        front.whole = bool(settling)
        try:
            for fd, events in ready:
                peer = peers.get(fd)
                if peer is None:
                    others.append((fd, events))
                elif events & _OUT and peer.owed:
                    front.pay(peer)
                elif not stream and type(peer) is Peer:
                    drain(front, peer)
                else:
                    front.take_turn(fd, peer)
                news = front.news
                while news and not front.doomed:
                    handle = news[-1]
                    conn = handle.conn
                    first = handle.first
                    if not handle.fed or conn is None or first is None or not conn.active:
                        break
                    news.pop()
                    handle.noted = False
                    if not first.dead:
                        feed(front, handle, first)
                if news or front.doomed:
                    front.tell_all()
            for settled, serial, flags in settling:
                front.settled(settled, serial, flags)
        finally:
            front.serving = False
    return bool(ready), others


class Waiter:
    """What `BusLoop` waits with; see there. `front` serves what is ready."""

    def __init__(self, front: Any) -> None:
        self.front = front
        self.stirred = False

    def wait(self, milliseconds: int) -> list[tuple[int, int]]:
        """What else is ready, after at most so long (-1: for ever)."""
        until = time.monotonic() + milliseconds / 1000 if milliseconds > 0 else 0.0
        left = milliseconds / 1000 if milliseconds >= 0 else -1.0
        self.stirred = False
        while True:
            try:
                ready, others = serve(self.front, left)
            except InterruptedError:
                return []
            except Exception:
                # What goes wrong here must not end the loop, which has others to serve.
                traceback.print_exc(file=sys.stderr)
                return []
            if self.front.settling:
                continue
            if others or not ready or self.stirred or not left:
                return others
            if until:
                left = until - time.monotonic()
                if left <= 0:
                    return others
