"""The soak: a short one must pass, and its books must see what is wrong."""

from __future__ import annotations

import pytest

from jitney.bench import brokers
from jitney.bench.soak.ledger import REFUSED, UNKNOWN, Ledger, Wrong
from jitney.bench.soak.load import Plan, Soak, config


@pytest.mark.timeout(120)
def test_a_short_soak() -> None:
    name = "jitney-pure" if brokers.missing("jitney") else "jitney"
    broker = brokers.find([name])[0]
    plan = Plan(seconds=8, rate=800, audit_every=3, reload_every=2, warm_up=3, say=str)
    with broker.start(config()) as running:
        outcome = Soak(running, plan).run()
    counts = outcome.counts
    for what in ("delivered", "answered", "broadcasts heard", "descriptors", "monitors", "reloads"):
        assert counts[what] > 0, what
    assert counts["told ServiceUnknown"] > 0
    assert counts["audits"] >= 2
    assert not outcome.grown()


def books() -> Ledger:
    """One message under way from a to b."""
    made = Ledger()
    made.sent("a", "b", 10, True)
    return made


def test_twice() -> None:
    made = books()
    made.arrived("b", "a", "b", 1)
    with pytest.raises(Wrong):
        made.arrived("b", "a", "b", 1)


def test_out_of_order() -> None:
    made = books()
    made.sent("a", "b", 11, True)
    made.arrived("b", "a", "b", 2)
    with pytest.raises(Wrong):
        made.arrived("b", "a", "b", 1)


def test_lost() -> None:
    made = books()
    assert made.unsettled(["a", "b"])
    made.arrived("b", "a", "b", 1)
    assert made.unsettled(["a", "b"])
    made.returned("a", 10)
    assert not made.unsettled(["a", "b"])


def test_lost_without_a_reply() -> None:
    made = Ledger()
    made.sent("a", "b", 10, False)
    assert made.unsettled(["a", "b"])
    made.failed("a", 10, REFUSED)
    assert not made.unsettled(["a", "b"])


def test_with_its_receiver() -> None:
    """What nobody is told of when a receiver goes; a call is not among it."""
    made = Ledger()
    made.sent("a", ":b", 10, False)
    made.sent("a", ":b", 11, True)
    made.gone(":b")
    assert made.unsettled(["a"])
    made.failed("a", 11, UNKNOWN)
    assert not made.unsettled(["a"])


def test_refused_and_delivered() -> None:
    made = books()
    made.failed("a", 10, REFUSED)
    with pytest.raises(Wrong):
        made.arrived("b", "a", "b", 1)
    made = books()
    made.arrived("b", "a", "b", 1)
    with pytest.raises(Wrong):
        made.failed("a", 10, REFUSED)


def test_answers_to_nothing() -> None:
    made = books()
    with pytest.raises(Wrong):
        made.returned("a", 10)  # nobody has got the call
    with pytest.raises(Wrong):
        made.returned("a", 99)


def subscribed(*names: str, keeps_up: bool = True) -> Ledger:
    made = Ledger()
    for name in names:
        made.subscribing(name, keeps_up)
        made.subscribed(name)
    return made


def test_two_orders() -> None:
    made = subscribed("x", "y")
    made.broadcast("a")
    made.broadcast("b")
    made.heard("x", "a", 1)
    made.heard("x", "b", 1)
    made.heard("y", "b", 1)
    with pytest.raises(Wrong):
        made.heard("y", "a", 1)


def test_a_broadcast_twice() -> None:
    made = subscribed("x")
    made.broadcast("a")
    made.heard("x", "a", 1)
    with pytest.raises(Wrong):
        made.heard("x", "a", 1)


@pytest.mark.parametrize("keeps_up", [True, False])
def test_a_broadcast_that_is_lost(keeps_up: bool) -> None:
    made = subscribed("x", keeps_up=keeps_up)
    for _ in range(3):
        made.broadcast("a")
    made.heard("x", "a", 1)
    made.heard("x", "a", 3)
    made.missed("x", 1)  # as the bus says itself
    with pytest.raises(Wrong):
        made.missed("x", 0)
    with pytest.raises(Wrong):
        made.missed("x", 2)


def test_who_has_not_heard_the_last() -> None:
    made = subscribed("x", "y")
    for _ in range(2):
        made.broadcast("a")
        made.heard("x", "a", made.said["a"])
    made.heard("y", "a", 1)
    assert made.lagging()
    made.heard("y", "a", 2)
    assert not made.lagging()
