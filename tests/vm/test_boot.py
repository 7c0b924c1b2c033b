"""Debian under systemd with jitney as its system bus and user bus works as with dbus-daemon.

    make vm              makes the machine if need be, and runs this

Emulated, a boot takes a minute or more, so each serves many checks; what they ask is in `guest`.

Invariant: skipped unless JITNEY_VM_IMAGE names a machine that `image.py` made. What is asked of
jitney is asked of dbus-daemon in the same words.
"""

from __future__ import annotations

import pytest
from vm import machine

pytestmark = [
    pytest.mark.skipif(bool(machine.missing()), reason=machine.missing()),
    pytest.mark.timeout(machine.LONG + 600),
]

PLAN = (
    ("booted", "buses"),
    ("apparmor", "apparmor"),
    ("upgraded", "upgrade"),
    ("upgraded", "upgrade_user"),
    ("again", "buses"),
    ("again-apparmor", "apparmor"),
    ("journal", "journal"),
)
REFERENCE = tuple(part for part in PLAN if "again" not in part[0])
BOOTS = {"jitney": (PLAN, ""), "dbus-daemon": (REFERENCE, "vm.bus=dbus-daemon")}


@pytest.mark.parametrize(("bus", "title", "check"), machine.cases(BOOTS))
def test_holds(bus: str, title: str, check: str) -> None:
    machine.boot(*BOOTS[bus]).holds(title, check)


@pytest.mark.parametrize("bus", BOOTS)
def test_is_shut_down(bus: str) -> None:
    """`systemctl poweroff` ends the machine: nothing waits for the bus, or for what was on it."""
    outcome = machine.boot(*BOOTS[bus])
    assert outcome.ended, outcome.console[-3000:]
    assert outcome.powered_off, outcome.console[-3000:]
