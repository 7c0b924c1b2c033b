"""What cannot be shown where something of Linux is missing, and why not.

Invariant: each entry is the beginning of a test's id with its reason; it is asked of this very
process (`kernel`) whether it applies. A test that needs one thing alone has a mark of
`kernel` instead.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import kernel
import pytest

TESTS = Path(__file__).resolve().parent

MEMFDS = "a client sends what is large in memfds (Linux 3.17)"
GROUPS = "the kernel does not tell groups"

WITHOUT_MEMFDS = {
    **{
        f"tests/client/test_client.py::test_{name}": MEMFDS
        for name in (
            "a_part_of_a_memfd", "descriptors[", "parts_keep_their_order",
            "the_outbox_may_be_full", "what_is_beyond_all_limits_goes_in_a_memfd",
        )
    },
    "tests/client/test_example.py": MEMFDS,
    "tests/kdbus/native/test_format.py::test_pool_is_for_reading": "a file has no seals",
}  # fmt: skip
WITHOUT_GROUPS = {
    "tests/kdbus/test_names_and_policy.py::test_rights[native-foo.bar-rights7": GROUPS,
    "tests/kdbus/test_names_and_policy.py::test_rights[native-foo.*-rights7": GROUPS,
}


def leave_out(items: list[pytest.Item]) -> None:
    """Marks what cannot be shown here as skipped."""
    reasons = {
        **({} if kernel.MEMFD else WITHOUT_MEMFDS),
        **({} if kernel.PEER_GROUPS else WITHOUT_GROUPS),
    }
    for item in items if reasons else ():
        for start, reason in reasons.items():
            if item.nodeid.startswith(start):
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
