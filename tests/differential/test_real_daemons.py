"""Debian's system bus, with the policy files of all that is installed, and real daemons on it.

Under jitney-daemon every call must end as it does under dbus-daemon, refusals word by word.
"""

from __future__ import annotations

import difflib
import pwd
from collections.abc import Callable
from pathlib import Path

import buses
import kernel
import pytest
import realbus
from differential import bus_itself, policy_matrix, real_daemons
from differential.masks import masked

from jitney.compat import ways

NO_PID = (
    "org.freedesktop.DBus.Error.UnixProcessIdUnknown",
    "PermissionDenied ['Unable to authenticate the request']",  # NetworkManager's
)
"""What daemons come to that ask the bus, or have polkit ask it, for a client's pid."""
ENOUGH = 15
"""Packages with policy files; fewer say little."""

pytestmark = [
    pytest.mark.skipif(buses.REFERENCE is None, reason="no dbus-daemon to compare with"),
    pytest.mark.skipif(bool(realbus.missing()), reason=realbus.missing()),
    pytest.mark.skipif(bool(real_daemons.missing()), reason=real_daemons.missing()),
    pytest.mark.timeout(300),
]

Play = Callable[[realbus.SystemBus], list[str]]


def records(play: Play) -> tuple[list[str], list[str]]:
    """What comes of it under dbus-daemon, and under jitney-daemon, at the same place."""
    assert buses.REFERENCE is not None
    found = []
    for command in ([buses.REFERENCE], buses.jitney_command()):
        with realbus.directory() as folder, realbus.running(command, realbus.copy(folder)) as bus:
            record = play(bus) + said(bus)
            found.append([line.replace(str(folder), "FOLDER") for line in record])
    return found[0], found[1]


def said(bus: realbus.SystemBus) -> list[str]:
    """The bus's log: of each refusal an administrator reads the same."""
    # A line is written before its error is sent, and all errors have been read.
    lines = [f"logs {masked(line)}" for line in bus.log.splitlines()]
    # jitney logs this refusal as well.
    return [line for line in lines if " is not allowed to own the service " not in line]


def compare(theirs: list[str], ours: list[str]) -> None:
    difference = list(difflib.unified_diff(theirs, ours, "dbus-daemon", "jitney", "", "", 0, ""))
    assert not difference, "\n".join(difference[:60])


def test_what_the_policy_files_say() -> None:
    files: list[Path] = []

    def play(bus: realbus.SystemBus) -> list[str]:
        files[:] = realbus.policy_files(bus.config.parent)
        return policy_matrix.play(bus.address, files)

    theirs, ours = records(play)
    compare(theirs, ours)
    assert len(realbus.packages(files)) >= ENOUGH
    # It was worth asking: for everybody there were calls that passed and calls that did not.
    for who in ("root", "nobody", "messagebus", *(("member",) if ways.LINUX else ())):
        calls = [line for line in theirs if line.startswith(f"{who} calls ")]
        refused = [line for line in calls if "AccessDenied" in line]
        assert 0 < len(refused) < len(calls), who
    member = {line.removeprefix("member") for line in theirs if line.startswith("member calls ")}
    nobody = {line.removeprefix("nobody") for line in theirs if line.startswith("nobody calls ")}
    # Without the kernel's word about a peer's groups, both have to believe the user database.
    assert not (kernel.PEER_GROUPS and ways.LINUX) or {
        line for line in member - nobody if "AccessDenied" not in line
    }


def test_what_the_bus_itself_does_for_whom() -> None:
    who = bus_itself.everybody(pwd.getpwnam(realbus.USER).pw_uid)
    theirs, ours = records(lambda bus: list(bus_itself.play(bus.address, who)))
    compare(theirs, ours)
    # None of these lets anybody in who is neither root nor the bus itself.
    for member in ("UpdateActivationEnvironment", "BecomeMonitor", "GetStats"):
        tried = [line for line in ours if line.startswith("nobody ") and f" {member}(" in line]
        assert tried
        assert all("org.freedesktop.DBus.Error." in line for line in tried)


def test_real_daemons() -> None:
    theirs, ours = records(real_daemons.play)
    if not ways.PEER_PIDS:
        # dbus-daemon tells it.
        pairs = [
            pair for pair in zip(theirs, ours, strict=True)
            if not any(text in pair[1] for text in NO_PID)
        ]  # fmt: skip
        assert len(pairs) > len(ours) * 0.8
        theirs, ours = ([pair[i] for pair in pairs] for i in (0, 1))
    compare(theirs, ours)
    assert real_daemons.started(theirs) == [one.name for one in real_daemons.programs()]
