"""`systemctl reload dbus`, for the system bus.

Invariant: nobody who was on a bus before is gone afterwards, and systemd knows the bus's process.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from buses import DBUS
from helpers import BUS, main_pid, run

LASTING = {
    "--user": ("org.freedesktop.systemd1",),
    "--system": (
        "org.freedesktop.systemd1", "org.freedesktop.login1", "org.freedesktop.network1",
        "org.freedesktop.timesync1",
    ),
}  # fmt: skip


def check_reload_of_the_system_bus() -> str:
    return reload(run, (), "--system")


def reload(command: Callable[..., str], manager: tuple[str, ...], bus: str) -> str:
    before, pid = known(command, bus), main_pid(*manager)
    command("systemctl", *manager, "reload", "dbus")
    after, new = known(command, bus), main_pid(*manager)
    assert after == before, (before, after)
    if BUS == "jitney-daemon":
        assert new != pid, "the bus was not upgraded"
        assert not os.path.exists(f"/proc/{pid}"), "the old process is still there"
    else:
        assert new == pid
    assert command("systemctl", *manager, "is-active", "dbus") == "active"
    return f"{pid} -> {new}"


def known(command: Callable[..., str], bus: str) -> dict[str, str]:
    """The bus's id, and who owns what, of those that do not end when they are idle."""
    found = {"id": command("busctl", bus, "call", *DBUS, "GetId")}
    for name in LASTING[bus]:
        found[name] = command("busctl", bus, "call", *DBUS, "GetNameOwner", "s", name)
    return found
