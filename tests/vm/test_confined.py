"""AppArmor, enforcing, decides about messages and names of a bus of jitney's as of dbus-daemon's.

Debian 12's kernel has the profiles and no labels of peers, and neither bus asks it (`test_boot`
looks at that). So this boot has a kernel and a compiler of profiles of a later Debian (`newer`);
the rest of the machine, both buses included, is the same. Nothing is made up: the kernel says by
itself that it mediates D-Bus, knows who connected, and answers from the profiles as compiled.

Invariant: as in `test_boot`; skipped, too, where the image was made without that kernel.
"""

from __future__ import annotations

import pytest
from vm import machine

KERNEL = "vmlinuz-newer"
pytestmark = [
    pytest.mark.skipif(bool(machine.missing(KERNEL)), reason=machine.missing(KERNEL)),
    pytest.mark.timeout(machine.LONG + 600),
]

# The first has the profiles loaded. The machine's system bus is jitney, the other's is beside it.
PLAN = (
    ("side-by-side", "confined"),
    ("system-bus", "apparmor"),
    ("upgraded", "upgrade"),
    ("again", "apparmor"),
)
BOOTS = {"apparmor": (PLAN, "", KERNEL)}


@pytest.mark.parametrize(("bus", "title", "check"), machine.cases(BOOTS))
def test_holds(bus: str, title: str, check: str) -> None:
    machine.boot(*BOOTS[bus]).holds(title, check)
