"""What cannot be shown where something of Linux is missing, and why not.

Invariant: each entry is the beginning of a test's id with its reason; it is asked of this very
process (`kernel`, `ways`) whether it applies. A test that needs one thing alone has a mark of
`kernel` instead.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import kernel
import pytest

from jitney.compat import ways

TESTS = Path(__file__).resolve().parent

PIDS = "it asks for pids, which only Linux and macOS tell"
ORDER = "its record holds pids, and takes who sends first to be routed first, as epoll does"
LOOPS = "another event loop watches the bus as one descriptor, which poll() is not"
EPOLL = "it has calls of epoll fail, and there are none"
GROUPS = "the kernel does not tell the groups of who connects (Linux 4.13)"
SLOW_LOOK = "changes of directories are found every two seconds only"

WITHOUT_LINUX_WAYS = {
    "tests/anywhere/test_linux310.py::test_a_bus_on_linux_3_10": PIDS,
    "tests/differential/test_differential.py": ORDER,
    "tests/differential/test_real_daemons.py": ORDER,
    "tests/endpoints/test_against_proxy.py": ORDER,
    "tests/endpoints/test_containers.py::test_says_of_a_connection_what_its_launcher_said": PIDS,
    "tests/endpoints/test_daemon.py::test_credentials": PIDS,
    "tests/faults/test_each_call.py::test_traffic[epoll": EPOLL,
    "tests/faults/test_start_up.py::test_start_up[epoll": EPOLL,
    "tests/faults/test_start_up.py::test_start_up[inotify": "it has calls of inotify fail",
    "tests/kdbus/worlds/test_one_daemon.py::test_credentials_either_way": PIDS,
    "tests/kdbus/worlds/test_one_daemon.py::test_other_loops_are_refused": LOOPS,
    "tests/system/test_reload.py::test_included_directory": SLOW_LOOK,
    "tests/test_inspect.py::test_a_peer_and_its_calls": PIDS,
    "tests/test_inspect.py::test_commands": PIDS,
    "tests/test_top.py::test_the_screen": PIDS,
    "tests/testing/": LOOPS,
    "tests/upgrade/test_live_upgrade.py::test_policies_of_groups_and_of_users": PIDS,
}
WITHOUT_GROUPS = {
    "tests/kdbus/test_names_and_policy.py::test_rights[native-foo.bar-rights7": GROUPS,
    "tests/kdbus/test_names_and_policy.py::test_rights[native-foo.*-rights7": GROUPS,
}


def leave_out(items: list[pytest.Item]) -> None:
    """Marks what cannot be shown here as skipped."""
    reasons = {
        **({} if ways.LINUX else WITHOUT_LINUX_WAYS),
        **({} if kernel.PEER_GROUPS else WITHOUT_GROUPS),
    }
    for item in items if reasons else ():
        for start, reason in reasons.items():
            if item.nodeid.startswith(start):
                known = "" if ways.LINUX else " (JITNEY_WAYS)"
                item.add_marker(pytest.mark.skip(reason=reason + known))


def ask_for_memfds() -> None:
    """Where there are none, a test that makes one for itself is skipped; ours finds none."""
    make = os.memfd_create

    def asked(*words: Any) -> int:
        if Path(sys._getframe(1).f_code.co_filename).is_relative_to(TESTS):
            pytest.skip("the test makes a memfd, and there are none (Linux 3.17)")
        return make(*words)

    if not kernel.MEMFD:
        os.memfd_create = asked
