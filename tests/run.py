"""pytest, and what failed among others once more, alone: `make test`.

Invariant: a test that fails twice fails the run, and so does anything else that pytest takes for
wrong. A few tests that fail while others run beside them and pass alone are named at the end,
whatever the verdict: each is a race that is to be mended, in the test or in the bus.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

# More than that is no race.
AT_MOST = 3


class Failed:
    """The ids of the tests that failed, in their order, and whether all did so by themselves."""

    def __init__(self) -> None:
        self.ids: dict[str, None] = {}
        self.all_failed = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.ids[report.nodeid] = None
            # Else its process ended, which no race excuses.
            self.all_failed &= report.when in ("setup", "call", "teardown")


def main(words: list[str]) -> int:
    """Gives the exit status: pytest's own, or that of the second look."""
    failed = Failed()
    status = int(pytest.main(words, plugins=[failed]))
    few = failed.all_failed and 0 < len(failed.ids) <= AT_MOST
    if status != pytest.ExitCode.TESTS_FAILED or not few:
        return status
    print("\njitney: once more, alone:", *failed.ids, sep="\n  ", flush=True)
    # -P: this folder's jitney is the installed one.
    again = [sys.executable, "-P", "-m", "pytest", "-n0", *failed.ids]
    status = subprocess.run(again, check=False).returncode
    if not status:
        print(*(f"RACY: failed among others, passed alone: {id}" for id in failed.ids), sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
