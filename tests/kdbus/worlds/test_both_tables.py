"""Random lives on a shared bus: whoever does what, both worlds' books agree, and end empty.

Invariant: after each step, what kdbus awaits across is what the core awaits across, call by call;
when everybody is gone, nothing is awaited, owned, charged, kept or open any more.
"""

from __future__ import annotations

import os
from typing import Any

import corebus
from corebus import received
from hypothesis import given, settings
from hypothesis import strategies as st
from kdbuskit import Client
from unnamed import unnamed
from worldskit import Shared, answer, call, parsed, signal, tell, unique

from jitney.broker.fds import FdSet
from jitney.broker.kdbus import constants as c
from jitney.broker.match import Rule
from jitney.compat import wire

NAMES = [b"com.example.A", b"com.example.B", b"com.example.C"]

small = st.integers(0, 5)
names = st.sampled_from([*NAMES, NAMES[2]])
# What happens most stands there more often.
step = st.one_of(
    st.tuples(st.sampled_from(["classic", "kdbus", "activator", "wait", "later"])),
    st.tuples(st.sampled_from(["leave", "drop", "release", "signal"]), small),
    st.tuples(st.sampled_from(["read", "answer"]), small),
    st.tuples(st.sampled_from(["read", "answer"]), small),
    st.tuples(st.just("acquire"), small, names, st.sampled_from([0, 3, 7])),
    st.tuples(st.just("start"), names),
    st.tuples(st.just("call"), small, small, st.booleans(), st.sampled_from([1, 2, 1 << 40])),
    st.tuples(st.just("call name"), small, names, st.booleans()),
    st.tuples(st.just("call name"), small, names, st.booleans()),
    st.tuples(st.just("fds"), small, small),
)
steps = st.lists(step, min_size=15, max_size=60)


class Life:
    def __init__(self) -> None:
        self.jobs: list[Any] = []
        self.shared = Shared(self.jobs)
        self.peers: list[Any] = []
        self.owed: dict[Any, list[tuple[bytes, int]]] = {}
        self.serial = 0

    def next(self) -> int:
        self.serial += 1
        return self.serial

    def pick(self, number: int) -> Any:
        return self.peers[number % len(self.peers)] if self.peers else None

    def join(self, peer: Any) -> None:
        self.peers.append(peer)
        self.owed[peer] = []

    def do(self, step: tuple[Any, ...]) -> None:
        getattr(self, "do_" + step[0].replace(" ", "_"))(*step[1:])

    def do_classic(self) -> None:
        conn = self.shared.classic()
        self.shared.core.add_match(conn, Rule(type=4))
        self.join(conn)

    def do_kdbus(self) -> None:
        client = self.shared.kdbus()
        client.listen()
        self.join(client)

    def do_activator(self) -> None:
        entry = self.shared.core.names.get(NAMES[2])
        if entry is None or entry.activator is None:
            self.join(self.shared.activator(NAMES[2]))

    def do_leave(self, number: int) -> None:
        peer = self.pick(number)
        if peer is not None:
            self.peers.remove(peer)
            del self.owed[peer]
            if isinstance(peer, Client):
                peer.handle.close()
            else:
                self.shared.core.disconnect(peer)

    def do_read(self, number: int) -> None:
        peer = self.pick(number)
        if peer is None:
            return
        if not isinstance(peer, Client):
            for msg in received(peer):
                if msg.type == wire.CALL and not msg.flags & 1:
                    self.owed[peer].append((msg.sender or b"", msg.serial))
            return
        while not isinstance(got := peer.try_recv(), int):
            if got.flags & c.EXPECT_REPLY:
                said = parsed(got, peer.id)
                self.owed[peer].append((said.sender or b"", said.cookie))

    def do_drop(self, number: int) -> None:
        peer = self.pick(number)
        if isinstance(peer, Client):
            peer.error("RECV", c.RECV_DROP)

    def do_answer(self, number: int) -> None:
        peer = self.pick(number)
        if peer is None or not self.owed[peer]:
            return
        to, serial = self.owed[peer].pop(0)
        if isinstance(peer, Client):
            answer(peer, to, serial)
        else:
            reply = corebus.message(
                wire.RETURN, self.next(), flags=1, destination=to, reply_serial=serial
            )
            tell(self.shared, peer, reply)

    def do_call(self, who: int, whom: int, sync: bool, factor: int) -> None:
        a, b = self.pick(who), self.pick(whom)
        if a is None or (isinstance(a, Client) and a.handle.conn.activator):  # type: ignore[union-attr]
            return
        if isinstance(a, Client):
            deadline = self.shared.now + 10**9
            call(a, unique(b), self.next() * factor, sync=sync, timeout=deadline)
        else:
            tell(self.shared, a, corebus.call(unique(b), self.next()))

    def do_call_name(self, who: int, name: bytes, sync: bool) -> None:
        a = self.pick(who)
        if a is None or (isinstance(a, Client) and a.handle.conn.activator):  # type: ignore[union-attr]
            return
        if isinstance(a, Client):
            call(a, name, self.next(), sync=sync, timeout=self.shared.now + 10**9)
        else:
            tell(self.shared, a, corebus.call(name, self.next()))

    def do_signal(self, who: int) -> None:
        a = self.pick(who)
        if isinstance(a, Client):
            if a.handle.conn.ordinary:  # type: ignore[union-attr]
                signal(a, self.next())
        elif a is not None:
            tell(self.shared, a, corebus.signal(self.next()))

    def do_fds(self, who: int, whom: int) -> None:
        a, b = self.pick(who), self.pick(whom)
        if a is not None and not isinstance(a, Client):
            msg = corebus.call(unique(b), self.next(), signature="h", values=[0], n_fds=1)
            msg.fds = FdSet([unnamed()])
            tell(self.shared, a, msg)

    def do_acquire(self, who: int, name: bytes, flags: int) -> None:
        a = self.pick(who)
        if isinstance(a, Client):
            if a.handle.conn.ordinary:  # type: ignore[union-attr]
                a.acquire(name, flags)
        elif a is not None:
            self.shared.core.request_name(a, name, flags)

    def do_release(self, who: int) -> None:
        a = self.pick(who)
        if a is None or isinstance(a, Client):
            return
        for name in list(a.names):
            self.shared.core.release_name(a, name)

    def do_start(self, name: bytes) -> None:
        self.shared.front.starts.add(name)

    def do_wait(self) -> None:
        self.shared.wait(0.5)

    def do_later(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()

    # What must hold

    def across(self) -> set[tuple[int, int, int]]:
        """(caller, callee, serial) of the calls across that kdbus's table has."""
        found = set()
        for conn in self.shared.bus.connections.values():
            for reply in [reply for replies in conn.awaited.values() for reply in replies]:
                if reply.crossed is not None and reply.crossed.callee is not None:
                    crossed = reply.crossed
                    found.add((crossed.caller.id, crossed.callee.id, crossed.serial))
        for guest in self.shared.worlds.guests.values():
            for reply in [reply for replies in guest.awaited.values() for reply in replies]:
                crossed = reply.crossed
                found.add((crossed.caller.id, crossed.callee.id, crossed.serial))
        return found

    def check(self) -> None:
        core = self.shared.core
        own = self.shared.bus.connections
        slots = set()
        for conn in core.connections.values():
            for callee, serial, _ in core.replies.awaited(conn, 1 << 20):
                if conn.id in own or callee.id in own:
                    slots.add((conn.id, callee.id, serial))
        assert self.across() == slots
        assert not [text for text, _, _ in self.shared.front.take("log")], (
            "something was raised between the worlds"
        )


@given(steps)
@settings(deadline=None, max_examples=300)
def test_books_agree(script: list[tuple[Any, ...]]) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    life = Life()
    for first in ("classic", "kdbus", "activator", "classic", "kdbus"):
        life.do((first,))
    for one in script:
        life.do(one)
        life.check()
    shared = life.shared
    while life.peers:
        life.do_leave(0)
        life.check()
    life.do_later()
    shared.front.kept.clear()
    assert shared.bus.replies.n_linked == len(shared.core.replies) == 0
    assert shared.worlds.calls.of == {}
    assert shared.worlds.guests == {}
    assert shared.worlds.moved == []
    assert len(shared.core.names) == 0
    assert shared.core.connections == shared.bus.connections == {}
    assert all(user.idle() for user in shared.core.accounts.users)
    del life, shared
    # What was garbage before may have gone as well.
    assert len(os.listdir("/proc/self/fd")) <= open_before
