"""Runs other people's D-Bus tests against a daemon, and holds the results against a list.

    python tests/peer.py DIRECTORY DAEMON...     all suites of tests/peer_expected.txt
    python tests/peer.py --only s2_gdbus DIRECTORY DAEMON...

DIRECTORY holds the suites' scripts, DAEMON is a command that takes dbus-daemon's options.

Invariant: a suite passes only if enough of its tests passed and each that failed is listed. One
that cannot run here is skipped with a loud line; that is never silent and never a pass.

Some suites need a snapshot of dbus-fast's repository, in PEER_MIRROR (default: `.mirror` beside
the directory above DIRECTORY). PEER_CACHE keeps what they download for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

EXPECTED = Path(__file__).with_name("peer_expected.txt")
SNAPSHOT = "Bluetooth-Devices+dbus-fast/repo"
NEEDS_SNAPSHOT = ("s3_dbus_fast", "s4a_python_clients")
BUDGET = 300
"""Seconds a suite may take by its own account; it is ended some time later."""


@dataclass
class Expectation:
    """What one suite must give."""

    suite: str
    minimum: int
    may_fail: set[str] = field(default_factory=set)

    def complaints(self, results: dict[str, list[object]]) -> list[str]:
        """What is wrong with these results (test -> status, seconds, note); empty if nothing."""
        passed = sum(result[0] == "pass" for result in results.values())
        failed = {test for test, result in results.items() if result[0] == "fail"}
        found = [f"failed: {test}" for test in sorted(failed - self.may_fail)]
        if passed < self.minimum:
            found.append(f"{passed} tests passed, at least {self.minimum} must")
        return found


def read(text: str) -> list[Expectation]:
    """The expectations in a file like peer_expected.txt. ValueError for a line that is none."""
    found: list[Expectation] = []
    for number, whole in enumerate(text.splitlines(), 1):
        line = whole.partition("#")[0].rstrip()
        if not line:
            continue
        words = line.split()
        if line[0].isspace() and found and len(words) == 1:
            found[-1].may_fail.add(words[0])
        elif not line[0].isspace() and len(words) == 2:
            found.append(Expectation(words[0], int(words[1])))
        else:
            raise ValueError(f"line {number} makes no sense: {whole}")
    return found


def run(script: Path, daemon: list[str], mirror: Path, results: Path) -> None:
    """Run one suite; its tests' results go to a file in `results`, its output but "ok" to ours."""
    environment = {
        "PEER_CACHE": str(results / "cache"),
        **os.environ,
        "PEER_BUDGET": str(BUDGET),
        "PEER_LABEL": "daemon",
        "PEER_MIRROR": str(mirror),
        "PEER_RESULTS": str(results),
    }
    process = subprocess.Popen(
        [sys.executable, str(script), *daemon],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )

    def too_long(*_: object) -> None:
        os.killpg(process.pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(BUDGET + 180)
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith("ok "):
            print(line, end="", flush=True)
    process.wait()
    signal.alarm(0)


def judge(expected: Expectation, directory: Path, daemon: list[str], mirror: Path) -> bool:
    """Run the suite and say what came out; False if it is not as expected."""
    script = directory / f"{expected.suite}.py"
    missing = [path for path in (script,) if not path.exists()]
    if expected.suite in NEEDS_SNAPSHOT and not (mirror / SNAPSHOT).exists():
        missing.append(mirror / SNAPSHOT)
    if missing:
        print(f"peer: SKIPPED {expected.suite}: {missing[0]} is not there", flush=True)
        return True
    with tempfile.TemporaryDirectory(prefix="jitney-peer-") as results:
        run(script, daemon, mirror, Path(results))
        file = Path(results, f"{expected.suite}.daemon.json")
        if not file.exists():
            print(f"peer: {expected.suite}: WRONG: it ended without results", flush=True)
            return False
        outcome = json.loads(file.read_text(encoding="utf-8"))["results"]
    complaints = expected.complaints(outcome)
    for complaint in complaints:
        print(f"peer: {expected.suite}: WRONG: {complaint}", flush=True)
    for test in sorted(expected.may_fail):
        if outcome.get(test, [""])[0] == "pass":
            print(f"peer: {expected.suite}: {test} passes; it need not be listed any more")
    return not complaints


def main() -> int:
    """The command line; 0 if no suite gave anything but what is expected."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", metavar="SUITE", help="may be given again")
    parser.add_argument("directory", type=Path)
    parser.add_argument("daemon", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if not arguments.daemon:
        parser.error("no daemon given")
    directory = arguments.directory.resolve()
    mirror = Path(os.environ.get("PEER_MIRROR") or directory.parent.parent / ".mirror")
    good = True
    for expected in read(EXPECTED.read_text(encoding="utf-8")):
        if not arguments.only or expected.suite in arguments.only:
            good &= judge(expected, directory, arguments.daemon, mirror)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
