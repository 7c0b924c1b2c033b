"""Slots: what rounds look at of a front, its handles and its sockets, as fields of C.

Invariant: these are fields and nothing else, but for the way that news take, which a message takes
as well. What they mean stands with the classes that have them: `Front`, `Opened`, `Peer`.
"""

from __future__ import annotations

from typing import Any

from jitney.broker.kdbus.connection import Transport


class FrontSlots:
    """Of `front.Front`."""


class HandleSlots:
    """Of `peer.Opened`."""


class PeerSlots:
    """Of `peer.Peer`."""

    owed: Any


class Waker(Transport):
    """Of a handle's transport: how a connection's news get to the front."""

    front: Any
    handle: Any

    def wake(self) -> None:
        self.stir()

    def stir(self) -> None:
        handle = self.handle
        if not handle.noted:
            handle.noted = True
            front = self.front
            front.news.append(handle)
            if not front.serving:
                front.call(front.tell_later)
