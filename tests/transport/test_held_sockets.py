"""A socket that a child of the bus has as well when the bus closes it: a child that reads the
configuration has all of them, and after an upgrade so has, for a moment, the process before."""

from __future__ import annotations

import os
import socket

import mediated
import pytest
from waiting import until


def test_nothing_is_heard_of_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end was told to whoever got its number next, and to nobody without end."""
    quiet, other = socket.socketpair()
    with mediated.world(monkeypatch) as world, quiet, other:
        witness = world.client()
        peers = world.host.service.hub.peers
        before = {fd for fd, peer in enumerate(peers) if peer is not None}
        client = world.client()
        (fd,) = {fd for fd, peer in enumerate(peers) if peer is not None} - before
        held = os.dup(fd)
        client.close()
        until(lambda: world.do(lambda: peers[fd]) is None, "it has left")
        heard: list[int] = []
        quiet_too = world.do(lambda: os.dup2(quiet.fileno(), fd))
        world.do(lambda: world.loop.add_reader(quiet_too, heard.append, fd))
        for _ in range(20):
            assert witness.reply_to(witness.driver(b"GetId")).body
        world.do(lambda: world.loop.remove_reader(quiet_too))
        os.close(quiet_too)
        os.close(held)
    assert heard == []
