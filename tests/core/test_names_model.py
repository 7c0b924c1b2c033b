"""Name queues behave as a plain model of the specification's rules does."""

from __future__ import annotations

import corebus
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

ALLOW, REPLACE, NO_QUEUE = 1, 2, 4
NAMES = [b"com.example.A", b"com.example.B"]


class Model:
    """What the specification says of RequestName and ReleaseName, as directly as can be."""

    def __init__(self) -> None:
        self.queues: dict[bytes, list[list[int]]] = {name: [] for name in NAMES}
        self.changes: list[tuple[bytes, int | None, int | None]] = []

    def request(self, who: int, name: bytes, flags: int) -> int:
        queue = self.queues[name]
        if not queue:
            queue.append([who, flags])
            self.changes.append((name, None, who))
            return 1
        owner, owner_flags = queue[0]
        if owner == who:
            queue[0][1] = flags
            return 4
        mine = [entry for entry in queue if entry[0] == who]
        if flags & REPLACE and owner_flags & ALLOW:
            for entry in mine:
                queue.remove(entry)
            old = queue.pop(0)
            queue.insert(0, [who, flags])
            if not owner_flags & NO_QUEUE:
                queue.insert(1, old)
            self.changes.append((name, owner, who))
            return 1
        if flags & NO_QUEUE:
            for entry in mine:
                queue.remove(entry)
            return 3
        if not mine:
            queue.insert(1 if flags & REPLACE else len(queue), [who, flags])
        else:
            mine[0][1] = flags
            if flags & REPLACE:
                queue.remove(mine[0])
                queue.insert(1, mine[0])
        return 2

    def release(self, who: int, name: bytes) -> int:
        queue = self.queues[name]
        if not queue:
            return 2
        mine = [entry for entry in queue if entry[0] == who]
        if not mine:
            return 3
        first = queue[0][0]
        queue.remove(mine[0])
        if first == who:
            self.changes.append((name, who, queue[0][0] if queue else None))
        return 1


class NameQueues(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bus = corebus.make_bus()
        self.model = Model()
        self.conns = [corebus.join(self.bus) for _ in range(4)]
        self.bus.front.take()

    @rule(who=st.integers(0, 3), name=st.sampled_from(NAMES), flags=st.integers(0, 7))
    def request(self, who: int, name: bytes, flags: int) -> None:
        got = self.bus.request_name(self.conns[who], name, flags)
        assert got == self.model.request(who, name, flags)
        self.check_reports()

    @rule(who=st.integers(0, 3), name=st.sampled_from(NAMES))
    def release(self, who: int, name: bytes) -> None:
        assert self.bus.release_name(self.conns[who], name) == self.model.release(who, name)
        self.check_reports()

    @precondition(lambda self: any(self.model.queues.values()))
    @rule(who=st.integers(0, 3))
    def leave(self, who: int) -> None:
        held = list(self.conns[who].names)
        self.bus.disconnect(self.conns[who])
        for name in reversed(held):
            self.model.release(who, name)
        self.check_reports(unique=1)
        self.conns[who] = corebus.join(self.bus)
        self.bus.front.take()

    def check_reports(self, unique: int = 0) -> None:
        events = self.bus.front.take("name_owner_changed")
        number = {id(conn): i for i, conn in enumerate(self.conns)}
        got = [
            (
                name,
                None if old is None else number[id(old)],
                None if new is None else number[id(new)],
            )
            for _, name, old, new in events
            if name[:1] != b":"
        ]
        assert len(events) - len(got) == unique
        assert got == self.model.changes
        self.model.changes.clear()

    @invariant()
    def same_queues(self) -> None:
        for name in NAMES:
            entry = self.bus.names.get(name)
            have = (
                [] if entry is None else [[self.conns.index(o.conn), o.flags] for o in entry.queue]
            )
            assert have == self.model.queues[name]
            assert self.bus.lookup(name) is (self.conns[have[0][0]] if have else None)

    @invariant()
    def counted(self) -> None:
        assert self.conns[0].user.names == sum(len(q) for q in self.model.queues.values())


TestNameQueues = NameQueues.TestCase
TestNameQueues.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
