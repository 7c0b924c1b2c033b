"""AppArmor decides about messages and names where the kernel has the bus ask; elsewhere, nothing.

Invariant: which of the two it is, the kernel says, not the bus.
"""

from __future__ import annotations

import os

from helpers import run
from mediation import OWNER, RESERVED, SERVED, SERVER, refused, serving, somebody

MASK = "/sys/kernel/security/apparmor/features/dbus/mask"
STRANGER = ("aa-exec", "-p", "vm-stranger", "--")
DENIED = "An AppArmor policy prevents"


def mediates() -> bool:
    return os.path.exists(MASK)


def check_enabled() -> str:
    with open("/sys/module/apparmor/parameters/enabled", encoding="ascii") as file:
        assert file.read().strip() == "Y"
    assert "vm-stranger" in run("aa-status", status=None)
    return "the kernel mediates D-Bus" if mediates() else "the kernel has no D-Bus mediation"


def check_labels_are_told() -> str:
    with serving(STRANGER, "org.jitney.Vm.Labelled"):
        found = somebody((), "label", "org.jitney.Vm.Labelled")
    # A kernel without the one does not have the other: SO_PEERSEC knows no label.
    assert found == (["vm-stranger (enforce)"] if mediates() else [None]), found
    return str(found)


def check_call() -> str:
    with serving(()):
        assert somebody((), "call", SERVER) == SERVED
        found = somebody(STRANGER, "call", SERVER)
    if mediates():
        return refused(found, DENIED)
    assert found == SERVED, found
    return str(found)


def check_name() -> str:
    assert somebody((), "own", RESERVED) == OWNER
    found = somebody(STRANGER, "own", RESERVED)
    if mediates():
        return refused(found, DENIED)
    assert found == OWNER, found
    return str(found)
