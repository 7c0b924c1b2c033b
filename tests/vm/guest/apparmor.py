"""AppArmor decides about messages and names where the kernel has the bus ask; elsewhere, nothing.

Invariant: which of the two it is, the kernel says, not the bus.
"""

from __future__ import annotations

import os

from helpers import BUS, main_pid, run
from mediation import OWNER, RESERVED, SERVED, SERVER, refused, serving, somebody
from two import Bus, records

MASK = "/sys/kernel/security/apparmor/features/dbus/mask"
STRANGER = ("aa-exec", "-p", "vm-stranger", "--")
DENIED = "An AppArmor policy prevents"
OWNING = "due to AppArmor policy"
REQUIRED = "AppArmor mediation required but not present"


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
        return refused(found, OWNING)
    assert found == OWNER, found
    return str(found)


def check_records() -> str:
    """What the two before were refused stands in the kernel's audit log, from this very process."""
    written = records(main_pid(), 0)
    for part in (f'mask="send" name="{SERVER}"', f'name="{RESERVED}" mask="bind"'):
        found = [line for line in written if part in line and 'label="vm-stranger"' in line]
        assert bool(found) is mediates(), (part, written)
        assert all(line.startswith('apparmor="DENIED" ') for line in found), found
    return "\n".join(written)


def check_required() -> str:
    """A bus that is to have it does not begin without."""
    bus = Bus(BUS, '<apparmor mode="required"/>')
    if bus.began():
        bus.end()
        assert mediates(), bus.said()
        return "there"
    assert not mediates(), bus.said()
    assert REQUIRED in bus.said(), bus.said()
    return bus.said()
