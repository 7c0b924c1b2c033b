"""SELinux, enforcing, decides about messages and names of a bus of jitney's as of dbus-daemon's.

AppArmor is what Debian boots with; `test_boot` looks at that.

Invariant: as in `test_boot`.
"""

from __future__ import annotations

import pytest
from vm import machine

pytestmark = [
    pytest.mark.skipif(bool(machine.missing()), reason=machine.missing()),
    pytest.mark.timeout(machine.LONG + 600),
]

PLAN = (("booted", "selinux"), ("upgraded", "upgrade"), ("again", "selinux"))
SELINUX = "security=selinux selinux=1 enforcing=1"
BOOTS = {
    "jitney": (PLAN, SELINUX),
    "dbus-daemon": (PLAN[:1], f"{SELINUX} vm.bus=dbus-daemon"),
}


@pytest.mark.parametrize(("bus", "title", "check"), machine.cases(BOOTS))
def test_holds(bus: str, title: str, check: str) -> None:
    machine.boot(*BOOTS[bus]).holds(title, check)
