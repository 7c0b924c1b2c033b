"""The core's guard: what modules say is obeyed, and what is kept of it is never older than them."""

from __future__ import annotations

from typing import Any

import corebus
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.errors import ACCESS_DENIED, Mediated
from jitney.broker.security import CASES as CASES_KEPT
from jitney.broker.security import Guard
from jitney.compat import wire

PAIR = tuple[bytes | None, bytes | None]


class Module:
    """Lets pass what is in `allow`; `open`: pairs all of whose messages pass. `asked`: of what."""

    feature = "Test"

    def __init__(self) -> None:
        self.allow: set[PAIR] = set()
        self.open: set[PAIR] = set()
        self.asked: list[PAIR] = []
        self.flushes = 0
        self.cases: set[tuple[bytes | None, ...]] = set()
        self.sent = 0
        self.keeps = False

    def flushed(self) -> None:
        self.flushes += 1

    def pair(self, sender: Connection, receiver: Connection | None) -> PAIR:
        return sender.subject, b"bus" if receiver is None else receiver.subject

    def always(self, sender: Connection, receiver: Connection | None) -> bool:
        pair = self.pair(sender, receiver)
        self.asked.append(pair)
        return pair in self.open

    def send(
        self, sender: Connection, receiver: Connection | None, msg: Any, requested: bool
    ) -> Any:
        pair = self.pair(sender, receiver)
        self.sent += 1
        case = (*pair, msg.destination, msg.path, msg.interface, msg.member)
        self.keeps = case in self.cases
        if self.keeps:
            return None
        if requested or pair in self.allow | self.open:
            return None
        return Mediated(ACCESS_DENIED, "no")

    def own(self, conn: Connection, name: bytes) -> Any:
        return None if (conn.subject, name) in self.allow else Mediated(ACCESS_DENIED, "not yours")

    def eavesdrop(self, conn: Connection) -> Any:
        return None if (conn.subject, None) in self.allow else Mediated(ACCESS_DENIED, "no ears")


def guarded(*modules: Module) -> Bus:
    bus = corebus.make_bus()
    bus.guard = Guard(list(modules))
    return bus


def join(bus: Bus, label: bytes | None) -> Connection:
    conn = corebus.join(bus)
    assert bus.guard is not None
    bus.guard.enter(conn, label)
    return conn


def types(conn: Connection) -> list[int]:
    return [msg.type for msg in corebus.received(conn)]


def test_a_message_that_may_not_pass() -> None:
    module = Module()
    bus = guarded(module)
    a, b = join(bus, b"a"), join(bus, b"b")
    bus.front.take()
    bus.dispatch(a, corebus.call(b.unique_name))
    ((_, conn, dest, msg, problem),) = bus.front.take("withheld")
    assert (conn, dest, msg.member, problem.text) == (a, b, b"M", "no")
    assert types(b) == []
    assert bus.n_denied == 1
    module.allow.add((b"a", b"b"))
    bus.dispatch(a, corebus.call(b.unique_name, 2))
    assert types(b) == [wire.CALL]
    # An awaited reply is one to the module; another is not.
    bus.dispatch(b, corebus.message(wire.RETURN, 5, reply_serial=2, destination=a.unique_name))
    bus.dispatch(b, corebus.message(wire.RETURN, 6, reply_serial=2, destination=a.unique_name))
    assert types(a) == [wire.RETURN]


def test_the_bus_is_a_receiver() -> None:
    module = Module()
    bus = guarded(module)
    a = join(bus, b"a")
    bus.front.take()
    bus.dispatch(a, corebus.call(b"org.freedesktop.DBus"))
    assert bus.front.take("driver_call") == []
    module.open.add((b"a", b"bus"))
    bus.dispatch(a, corebus.call(b"org.freedesktop.DBus", 2))
    assert len(bus.front.take("driver_call")) == 1
    asked = len(module.asked)
    bus.dispatch(a, corebus.call(b"org.freedesktop.DBus", 3))
    assert len(module.asked) == asked


def test_broadcasts_and_the_bus_own_word() -> None:
    module = Module()
    bus = guarded(module)
    a, b, c = join(bus, b"a"), join(bus, b"b"), join(bus, b"c")
    from jitney.compat import matchrule

    for conn in (b, c):
        bus.add_match(conn, matchrule.parse(b"type='signal'"))
    module.allow.add((b"a", b"b"))
    bus.front.take()
    bus.dispatch(a, corebus.signal())
    assert (types(b), types(c)) == ([wire.SIGNAL], [])
    assert len(bus.front.take("capture_withheld")) == 1
    bus.tell(corebus.signal())
    assert (types(b), types(c)) == ([wire.SIGNAL], [wire.SIGNAL])


def test_names_and_ears() -> None:
    module = Module()
    bus = guarded(module)
    a = join(bus, b"a")
    with pytest.raises(Mediated, match="not yours"):
        bus.request_name(a, b"com.example.A", 0)
    module.allow.add((b"a", b"com.example.A"))
    assert bus.request_name(a, b"com.example.A", 0) == 1
    assert bus.guard is not None
    with pytest.raises(Mediated, match="no ears"):
        bus.guard.check_eavesdrop(a)


def test_all_modules_must_agree() -> None:
    one, other = Module(), Module()
    bus = guarded(one, other)
    a, b = join(bus, b"a"), join(bus, b"b")
    one.open.add((b"a", b"b"))
    bus.dispatch(a, corebus.call(b.unique_name))
    assert types(b) == []
    other.open.add((b"a", b"b"))
    bus.dispatch(a, corebus.call(b.unique_name, 2))
    assert types(b) == [wire.CALL]


def test_nobodys_messages_are_never_kept() -> None:
    module = Module()
    bus = guarded(module)
    a, b = join(bus, None), join(bus, b"b")
    module.allow.add((None, b"b"))
    for serial in (1, 2, 3):
        bus.dispatch(a, corebus.call(b.unique_name, serial))
    module.allow.clear()
    bus.dispatch(a, corebus.call(b.unique_name, 4))
    assert len(types(b)) == 3


def test_memory_that_changes() -> None:
    module = Module()
    bus = guarded(module)
    memory = bytearray(4)
    assert bus.guard is not None
    bus.guard.watch(memory)
    a, b = join(bus, b"a"), join(bus, b"b")
    module.open.add((b"a", b"b"))
    bus.dispatch(a, corebus.call(b.unique_name, 1))
    module.open.clear()
    bus.dispatch(a, corebus.call(b.unique_name, 2))
    assert len(types(b)) == 2
    for place in range(4):
        flushes = module.flushes
        memory[place] += 1
        bus.dispatch(a, corebus.call(b.unique_name, 3 + place))
        assert module.flushes == flushes + 1
        assert types(b) == []
    bus.guard.unwatch()
    memory.extend(b"free again")


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("say"), st.integers(0, 9), st.integers(0, 9)),
            st.tuples(st.just("change"), st.integers(0, 9), st.integers(0, 9)),
        ),
        max_size=60,
    )
)
def test_what_is_kept_is_what_would_be_said(steps: list[tuple[str, int, int]]) -> None:
    """Ten subjects, more than a receiver has room for; each change is told."""
    module = Module()
    bus = guarded(module)
    assert bus.guard is not None
    conns = [join(bus, b"%d" % i) for i in range(10)]
    serial = 0
    for what, i, j in steps:
        pair = b"%d" % i, b"%d" % j
        if what == "change":
            module.open ^= {pair}
            bus.guard.flush()
            continue
        serial += 1
        bus.dispatch(conns[i], corebus.call(conns[j].unique_name, serial, 1))
        assert bool(types(conns[j])) is (pair in module.open)


CASES = st.tuples(
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([b"/a", b"/b"]),
    st.sampled_from([None, b"com.example.I", b"com.example.J"]),
    st.sampled_from([b"M", b"N"]),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["say", "say", "say", "change"]), CASES), max_size=80))
def test_messages_that_passed_are_told_apart(steps: list[tuple[str, Any]]) -> None:
    """By all that a module may look at; and each is asked about once."""
    module = Module()
    bus = guarded(module)
    assert bus.guard is not None
    conns = [join(bus, b"%d" % i) for i in range(4)]
    for i, conn in enumerate(conns):
        module.allow.add((b"%d" % i, b"com.example.N%d" % i))
        bus.request_name(conn, b"com.example.N%d" % i, 0)
    known: set[Any] = set()
    serial = 0
    for what, (i, j, by_name, path, interface, member) in steps:
        destination = b"com.example.N%d" % j if by_name else conns[j].unique_name
        case = (b"%d" % i, b"%d" % j, destination, path, interface, member)
        if what == "change":
            module.cases ^= {case}
            bus.guard.flush()
            known.clear()
            continue
        serial += 1
        sent = module.sent
        bus.dispatch(
            conns[i],
            corebus.message(
                wire.CALL, serial, flags=1, path=path, interface=interface, member=member,
                destination=destination,
            ),
        )  # fmt: skip
        passed = bool(types(conns[j]))
        assert passed is (case in module.cases)
        assert (module.sent == sent) is (case in known)
        if passed:
            known.add(case)


def test_what_is_remembered_has_an_end() -> None:
    module = Module()
    bus = guarded(module)
    a, b = join(bus, b"a"), join(bus, b"b")
    for serial in range(1, CASES_KEPT + 100):
        name = b"M%d" % serial
        module.cases.add((b"a", b"b", b.unique_name, b"/a", b"com.example.I", name))
        bus.dispatch(
            a,
            corebus.message(
                wire.CALL, serial, flags=1, path=b"/a", interface=b"com.example.I", member=name,
                destination=b.unique_name,
            ),
        )  # fmt: skip
    assert bus.guard is not None
    assert 0 < bus.guard.n_cases <= CASES_KEPT
    assert len(types(b)) == CASES_KEPT + 99


def test_what_is_remembered_is_small() -> None:
    """A path may be as long as a message: thousands of such are none to keep."""
    module = Module()
    bus = guarded(module)
    a, b = join(bus, b"a"), join(bus, b"b")
    path = b"/" + b"p" * 1_000_000
    module.cases.add((b"a", b"b", b.unique_name, path, b"com.example.I", b"M"))
    for serial in (1, 2):
        msg = corebus.message(
            wire.CALL, serial, flags=1, path=path, interface=b"com.example.I", member=b"M",
            destination=b.unique_name,
        )  # fmt: skip
        bus.dispatch(a, msg)
        assert types(b) == [wire.CALL]
        assert module.sent == serial
    assert bus.guard is not None
    assert bus.guard.n_cases == 0
