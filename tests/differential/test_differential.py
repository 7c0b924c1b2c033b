"""jitney-daemon beside the real dbus-daemon: every scenario must give the same record on both.

JITNEY_DAEMON says what is compared with it; JITNEY_DAEMON=dbus-daemon checks the scenarios.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import buses
import pytest
from differential import scenarios_driver, scenarios_monitor, scenarios_names, scenarios_traffic
from differential.script import SCENARIOS, play

pytestmark = [
    pytest.mark.skipif(buses.REFERENCE is None, reason="no dbus-daemon to compare with"),
    pytest.mark.skipif(os.geteuid() != 0, reason="some clients have to be other users"),
]

# Importing them is what lists their scenarios.
FILES = (scenarios_names, scenarios_driver, scenarios_traffic, scenarios_monitor)

Pair = tuple[buses.Daemon, buses.Daemon]


@pytest.fixture(scope="module")
def pair_for() -> Iterator[Callable[[str], Pair]]:
    """Both buses with a given piece of configuration, started when first asked for."""
    running: dict[str, Pair] = {}
    with ExitStack() as stack:

        def pair(extra: str) -> Pair:
            if extra not in running:
                assert buses.REFERENCE is not None
                theirs = stack.enter_context(buses.running([buses.REFERENCE], extra=extra))
                ours = stack.enter_context(buses.running(buses.jitney_command(), extra=extra))
                running[extra] = (theirs, ours)
            return running[extra]

        yield pair


def references(bus: buses.Daemon, name: str) -> Iterator[list[str]]:
    """What dbus-daemon does, played anew each time it is asked for: it sends NoReply from a timer,
    so that on a busy machine it comes a step later than it otherwise does."""
    for attempt in range(4):
        try:
            yield play(bus, name)
        except TimeoutError:
            if attempt == 3:
                raise


@pytest.mark.parametrize("name", SCENARIOS)
def test_same_record(name: str, pair_for: Callable[[str], Pair]) -> None:
    reference, ours = pair_for(SCENARIOS[name].extra)
    got = play(ours, name)
    differences = []
    for expected in references(reference, name):
        assert len(expected) > 1
        if got == expected:
            return
        differences = list(
            difflib.unified_diff(expected, got, "dbus-daemon", "jitney", lineterm="", n=2)
        )
    pytest.fail("\n".join(differences), pytrace=False)
