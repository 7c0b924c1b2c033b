"""What cannot be shown where something of Linux is missing, and why not.

Invariant: whether something is missing is asked of this very process (`kernel`). Here are only
tests that cannot say so by a mark of `kernel` of their own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import kernel
import pytest

TESTS = Path(__file__).resolve().parent

# They need the kernel's word for the groups of who connects.
WITHOUT_GROUPS = (
    "tests/kdbus/test_names_and_policy.py::test_rights[native-foo.bar-rights7",
    "tests/kdbus/test_names_and_policy.py::test_rights[native-foo.*-rights7",
)


def leave_out(items: list[pytest.Item]) -> None:
    """Marks what cannot be shown here as skipped."""
    if kernel.PEER_GROUPS:
        return
    reason = "the kernel does not tell the groups of who connects (Linux 4.13)"
    for item in items:
        if item.nodeid.startswith(WITHOUT_GROUPS):
            item.add_marker(pytest.mark.skip(reason=reason))


def ask_for_memfds() -> None:
    """Where there are none, a test that makes one for itself is skipped; ours finds none."""
    make = os.memfd_create

    def asked(*words: Any) -> int:
        if Path(sys._getframe(1).f_code.co_filename).is_relative_to(TESTS):
            pytest.skip("the test makes a memfd, and there are none (Linux 3.17)")
        return make(*words)

    if not kernel.MEMFD:
        os.memfd_create = asked
