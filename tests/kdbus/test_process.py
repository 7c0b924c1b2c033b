"""What is told of processes that we may not look into: nothing that would be another's."""

from __future__ import annotations

import os

import pytest

from jitney.broker.kdbus.metadata import Facts
from jitney.kdbus import process
from jitney.kdbus.process import ClientNamespaces, Spaces, pid_namespace, view_of

ALL = b"0 0 4294967295\n"
INNER = {b"NSpid": b"1000\t5", b"NStgid": b"1000\t5", b"PPid": b"1"}


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """We may not look into anybody."""
    monkeypatch.setattr(process, "namespace", lambda tid, kind: None)


def facts_of(tid: int, status: dict[bytes, bytes]) -> Facts:
    facts = Facts()
    facts.pids = (1000, 1000, 1)
    facts.caps = (7, 7, 7, 7)
    facts.spaces = Spaces(tid, status)
    return facts


@pytest.mark.usefixtures("blind")
def test_namespaces_that_are_not_known_are_not_the_same() -> None:
    """A sender in some container, a receiver in another: the sender's inner pid is a stranger's
    to the receiver, and its capabilities are none."""
    facts = facts_of(1, INNER)
    receiver = ClientNamespaces(None, None, 2, (ALL, ALL))
    assert receiver.pids(facts) == (0, 0, 0)
    assert receiver.caps(facts) == (0, 0, 0, 0)
    assert not receiver.sees(facts)


@pytest.mark.skipif(process._DEPTH != 1, reason="runs in a nested pid namespace")
@pytest.mark.usefixtures("blind")
def test_who_has_one_pid_is_in_our_namespace() -> None:
    assert pid_namespace(os.getpid()) == process.HOST_PID is not None
    view = view_of(os.getpid())
    assert view.pids(facts_of(1, INNER)) == (1000, 1000, 1)


@pytest.mark.usefixtures("blind")
def test_who_has_several_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "status_of", lambda tid: INNER)
    assert pid_namespace(1000) is None
