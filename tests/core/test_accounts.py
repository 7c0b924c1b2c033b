"""What users are charged is what is queued, after any sequence of operations."""

from __future__ import annotations

import os

import corebus
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jitney.broker.fds import FdSet
from jitney.broker.match import Rule

WHO = st.integers(0, 4)
SIZES = st.sampled_from([0, 1, 100, 5000, 16383, 16384, 40000])


class Accounts(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bus = corebus.make_bus(max_outgoing_bytes=200_000, max_outgoing_unix_fds=20)
        # Five connections of three users, one of which cannot take descriptors.
        self.conns = [corebus.join(self.bus, 1000 + i // 2, fds=i != 3) for i in range(5)]
        self.serial = 0

    def next(self) -> int:
        self.serial += 1
        return self.serial

    @rule(a=WHO, b=WHO, size=SIZES, fds=st.integers(0, 3), silent=st.booleans())
    def unicast(self, a: int, b: int, size: int, fds: int, silent: bool) -> None:
        dest = self.conns[b]
        more = {"signature": "ay", "values": [bytes(size)]} if size else {}
        msg = corebus.call(dest.unique_name, self.next(), 1 if silent else 0, **more)
        if fds:
            msg.fds = FdSet([os.open("/dev/null", os.O_RDONLY) for _ in range(fds)])
        room = dest.queue.size <= 200_000 and dest.queue.n_fds <= 20
        before = dest.queue.size
        self.bus.dispatch(self.conns[a], msg)
        if room and (not fds or dest.accepts_fds):
            assert dest.queue.size > before + size
        else:
            assert dest.queue.size == before
            assert self.bus.front.take("refused")

    @rule(a=WHO, size=SIZES)
    def broadcast(self, a: int, size: int) -> None:
        more = {"signature": "ay", "values": [bytes(size)]} if size else {}
        self.bus.dispatch(self.conns[a], corebus.signal(self.next(), **more))

    @rule(a=WHO)
    def subscribe(self, a: int) -> None:
        self.bus.add_match(self.conns[a], Rule(type=4))

    @rule(a=WHO, b=WHO)
    def answer(self, a: int, b: int) -> None:
        self.bus.dispatch(
            self.conns[a],
            corebus.message(2, self.next(), reply_serial=1, destination=self.conns[b].unique_name),
        )

    @rule(a=WHO, part=st.floats(0, 1))
    def read(self, a: int, part: float) -> None:
        queue = self.conns[a].queue
        data = queue.peek()
        n = int(len(data) * part)
        queue.sent(n)
        assert queue.peek() == data[n:]

    @rule(a=WHO)
    def leave(self, a: int) -> None:
        uid = self.conns[a].user.uid
        self.bus.disconnect(self.conns[a])
        self.conns[a] = corebus.join(self.bus, uid, fds=a != 3)

    @invariant()
    def charged_is_queued(self) -> None:
        owed_bytes: dict[int, int] = {}
        owed_fds: dict[int, int] = {}
        for conn in self.conns:
            queue = conn.queue
            charges = queue.charges_list()
            assert len(queue.peek()) == queue.size
            assert sum(fds for _, fds, _ in charges) == queue.n_fds
            assert sum(size for size, _, _ in charges) >= queue.size
            for size, fds, user in charges:
                owed_bytes[user] = owed_bytes.get(user, 0) + size
                owed_fds[user] = owed_fds.get(user, 0) + fds
        for user in self.bus.accounts.users:
            assert user.bytes == owed_bytes.get(user.index, 0)
            assert user.fds == owed_fds.get(user.index, 0)

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


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
