"""What users are charged is what is queued, and a queue takes what it should, after any sequence
of operations: the core against a ledger that adds everything up anew each time."""

from __future__ import annotations

import os
from dataclasses import dataclass

import corebus
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jitney.broker.connection import Connection
from jitney.broker.fds import FdSet
from jitney.broker.match import Rule

MAX_BYTES, MAX_FDS = 200_000, 20
WHO = st.integers(0, 4)
SIZES = st.sampled_from([0, 1, 100, 5000, 16383, 16384, 40000])


@dataclass(eq=False)
class Entry:
    """One message in a queue; `to_many`: it was a broadcast."""

    sender: Connection
    receiver: Connection
    size: int
    fds: int
    to_many: bool


def fits(used: int, limit: int, mine: int, need: int) -> bool:
    """In words: up to the limit as in dbus-daemon; then, of a reserve half as large, nobody may
    take more than he leaves to others."""
    if used <= limit:
        return True
    return mine + need <= (limit + limit // 2) - (used + need)


class Accounts(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bus = corebus.make_bus(max_outgoing_bytes=MAX_BYTES, max_outgoing_unix_fds=MAX_FDS)
        # Five connections of three users, one of which cannot take descriptors.
        self.conns = [corebus.join(self.bus, 1000 + i // 2, fds=i != 3) for i in range(5)]
        self.serial = 0
        self.ledger: list[Entry] = []

    def next(self) -> int:
        self.serial += 1
        return self.serial

    @rule(a=WHO, b=WHO, size=SIZES, fds=st.integers(0, 3), silent=st.booleans())
    def unicast(self, a: int, b: int, size: int, fds: int, silent: bool) -> None:
        dest = self.conns[b]
        more = {"signature": "ay", "values": [bytes(size)]} if size else {}
        msg = corebus.call(dest.unique_name, self.next(), 1 if silent else 0, n_fds=fds, **more)
        if fds:
            assert msg.n_fds == fds
            msg.fds = FdSet([os.open("/dev/null", os.O_RDONLY) for _ in range(fds)])
        sender = self.conns[a]
        room = self.expected(sender, dest, msg.size, fds, False)
        before = dest.queue.size
        self.bus.dispatch(sender, msg)
        if room and (not fds or dest.accepts_fds):
            assert dest.queue.size > before + size
            self.ledger.append(Entry(sender, dest, dest.queue.size - before, fds, False))
        else:
            assert dest.queue.size == before
            assert self.bus.front.take("refused")

    def expected(
        self, sender: Connection, dest: Connection, size: int, fds: int, to_many: bool
    ) -> bool:
        """Whether the queue should take the message."""
        kept = [entry for entry in self.ledger if entry.receiver.user is dest.user]
        mine = [entry for entry in kept if entry.sender.user is sender.user]
        if sender.user is dest.user:
            mine = [e for e in mine if e.to_many == to_many and (to_many or e.sender is sender)]
        used = dest.queue.size, dest.queue.n_fds
        total = sum(entry.size for entry in kept), sum(entry.fds for entry in kept)
        claim = sum(entry.size for entry in mine), sum(entry.fds for entry in mine)
        return (
            fits(used[0], MAX_BYTES, claim[0], size)
            and fits(used[1], MAX_FDS, claim[1], fds)
            and fits(total[0], MAX_BYTES * 4, claim[0], size)
            and fits(total[1], MAX_FDS * 4, claim[1], fds)
        )

    @rule(a=WHO, size=SIZES)
    def broadcast(self, a: int, size: int) -> None:
        more = {"signature": "ay", "values": [bytes(size)]} if size else {}
        sender = self.conns[a]
        msg = corebus.signal(self.next(), **more)
        before = [conn.queue.size for conn in self.conns]
        room = [
            bool(conn.rules) and self.expected(sender, conn, msg.size, 0, True)
            for conn in self.conns
        ]
        self.bus.dispatch(sender, msg)
        for i, conn in enumerate(self.conns):
            grown = conn.queue.size - before[i]
            assert room[i] == (grown > 0)
            if grown:
                self.ledger.append(Entry(sender, conn, grown, 0, True))

    @rule(a=WHO)
    def subscribe(self, a: int) -> None:
        self.bus.add_match(self.conns[a], Rule(type=4))

    @rule(a=WHO, b=WHO)
    def answer(self, a: int, b: int) -> None:
        sender, dest = self.conns[a], self.conns[b]
        msg = corebus.message(2, self.next(), reply_serial=1, destination=dest.unique_name)
        room = self.expected(sender, dest, msg.size, 0, False)
        before = dest.queue.size
        self.bus.dispatch(sender, msg)
        grown = dest.queue.size - before
        assert room == (grown > 0)
        if grown:
            self.ledger.append(Entry(sender, dest, grown, 0, False))

    @rule(a=WHO, part=st.floats(0, 1))
    def read(self, a: int, part: float) -> None:
        queue = self.conns[a].queue
        data = queue.peek()
        n = int(len(data) * part)
        queue.sent(n)
        assert queue.peek() == data[n:]
        self.forget(self.conns[a], len(queue))

    def forget(self, dest: Connection, left: int) -> None:
        """Only the last `left` messages to `dest` are still there."""
        mine = [entry for entry in self.ledger if entry.receiver is dest]
        gone = mine[: len(mine) - left]
        self.ledger = [entry for entry in self.ledger if entry not in gone]

    @rule(a=WHO)
    def leave(self, a: int) -> None:
        uid = self.conns[a].user.uid
        self.bus.disconnect(self.conns[a])
        self.forget(self.conns[a], 0)
        self.conns[a] = corebus.join(self.bus, uid, fds=a != 3)

    @invariant()
    def charged_is_queued(self) -> None:
        for conn in self.conns:
            queue = conn.queue
            charges = queue.charges_list()
            assert len(queue.peek()) == queue.size
            assert sum(fds for _, fds, _ in charges) == queue.n_fds
            assert sum(size for size, _, _ in charges) >= queue.size
            mine = [entry for entry in self.ledger if entry.receiver is conn]
            assert [(size, fds) for size, fds, _ in charges] == [(e.size, e.fds) for e in mine]
        for user in self.bus.accounts.users:
            sent = [entry for entry in self.ledger if entry.sender.user is user]
            kept = [entry for entry in self.ledger if entry.receiver.user is user]
            assert user.bytes == sum(entry.size for entry in sent)
            assert user.fds == sum(entry.fds for entry in sent)
            assert user.kept_bytes == sum(entry.size for entry in kept)
            assert user.kept_fds == sum(entry.fds for entry in kept)
            for share in user.shares.values():
                assert share.bytes == sum(e.size for e in kept if e.sender.user is share.sender)
        # Of those who left, no tally is kept longer than it is charged with something.
        for tally in self.bus.accounts.tallies:
            assert tally is None or tally.bytes > 0 or not tally.ended

    @invariant()
    def counted_is_held(self) -> None:
        for user in self.bus.accounts.users[1:]:
            mine = [conn for conn in self.conns if conn.user is user]
            assert user.connections == len(mine)
            assert user.matches == sum(len(conn.rules) for conn in mine)
            assert user.replies == sum(conn.n_calls for conn in mine)
        assert len(self.bus.replies) == sum(conn.n_calls for conn in self.conns)

    def teardown(self) -> None:
        for conn in self.conns:
            self.bus.disconnect(conn)
        assert len(self.bus.replies) == 0
        assert len(self.bus.match_index) == 0
        for user in self.bus.accounts.users:
            assert user.idle()
        assert all(t is None or t.owner is None for t in self.bus.accounts.tallies)


TestAccounts = pytest.mark.weakness("dbus-broker NEWS 19")(Accounts.TestCase)
TestAccounts.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
