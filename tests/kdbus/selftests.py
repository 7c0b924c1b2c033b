"""kdbus's own selftests, unmodified, against `jitney mount`, or on `jitney sockets` with the shim.

    JITNEY_KDBUS_SOURCE=/path/to/kdbus python tests/kdbus/selftests.py --pool store
    JITNEY_KDBUS_SOURCE=/path/to/kdbus python tests/kdbus/selftests.py --front shim

builds `kdbus-test` from the sources of kdbus's kernel module (tools/testing/selftests/kdbus; needs
make, gcc and libcap-dev), mounts a tree and runs each test under a time limit of its own. The exit
status is 0 if all came out as expected (`expected()`). As an ordinary user it does the same in a
user namespace of its own, where some tests skip themselves.

Invariant: nothing of kdbus's sources is changed or kept: they are copied, built and thrown away.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kdbusmount import mounted
from kdbusshim import served
from kdbusshim import why_not as why_no_shim

SOURCE = "JITNEY_KDBUS_SOURCE"
FOLDER = "tools/testing/selftests/kdbus"
LIMIT = 20

TESTS = [
    "bus-make",
    "hello",
    "byebye",
    "chat",
    "daemon",
    "fd-passing",
    "endpoint",
    "monitor",
    "name-basics",
    "name-conflict",
    "name-queue",
    "name-takeover",
    "message-basic",
    "message-prio",
    "message-quota",
    "memory-access",
    "timeout",
    "sync-byebye",
    "sync-reply",
    "message-free",
    "connection-info",
    "connection-update",
    "writable-pool",
    "policy",
    "policy-priv",
    "policy-ns",
    "metadata-ns",
    "match-id-add",
    "match-id-remove",
    "match-replace",
    "match-name-add",
    "match-name-remove",
    "match-name-change",
    "match-bloom",
    "activator",
]

IMPOSSIBLE = {
    "fd-passing": "FUSE cannot give a descriptor to who receives",
    "writable-pool": "FUSE cannot refuse a writable mapping",
}
"""What fails, and why."""

NEED_PRIVILEGES = [
    "memory-access",
    "connection-info",
    "policy-priv",
    "policy-ns",
    "metadata-ns",
    "activator",
]
"""These skip themselves where not all uids are mapped, or kernel addresses are hidden."""

BENCHMARKS = ("benchmark", "benchmark-nomemfds", "benchmark-uds")


def expected(privileged: bool, front: str = "fuse") -> dict[str, str]:
    results = dict.fromkeys(TESTS, "OK")
    if front == "fuse":
        results.update(dict.fromkeys(IMPOSSIBLE, "ERROR"))
    if not privileged:
        results.update(dict.fromkeys(NEED_PRIVILEGES, "SKIPPED"))
    return results


def why_not(front: str = "fuse") -> str:
    """Why they cannot be run here; empty if they can."""
    source = os.environ.get(SOURCE)
    if not source:
        return f"{SOURCE} is not set to the sources of kdbus"
    if not Path(source, FOLDER, "Makefile").exists():
        return f"there are no selftests in {source}"
    if front == "fuse" and not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    if front == "shim" and why_no_shim():
        return why_no_shim()
    missing = [tool for tool in ("make", "gcc") if shutil.which(tool) is None]
    if not os.path.exists("/usr/include/sys/capability.h"):
        missing.append("libcap-dev")
    return f"missing: {' '.join(missing)}" if missing else ""


def build(into: Path) -> Path:
    """The program, made of a copy of the sources."""
    source = Path(os.environ[SOURCE])
    for folder in ("tools", "samples", "include", "usr"):
        if (source / folder).exists():
            shutil.copytree(source / folder, into / folder)
    words = ["make", "-C", str(into / FOLDER), "kdbus-test"]
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace"))
    return into / FOLDER / "kdbus-test"


Environment = dict[str, str] | None


def run_one(program: Path, root: Path, name: str, logs: Path, environment: Environment) -> str:
    words = [str(program), "--root", str(root), "--fork", "--test", name]
    with open(logs / name, "wb") as log:
        try:
            subprocess.run(
                words, stdout=log, stderr=log, timeout=LIMIT, check=False, env=environment
            )
        except subprocess.TimeoutExpired:
            return "TIMEOUT"
    last = (logs / name).read_bytes().splitlines()[-1:]
    return last[0].rpartition(b": ")[2].decode() if last else "NOTHING"


def run_benchmarks(
    program: Path, root: Path, logs: Path, environment: Environment
) -> dict[str, str]:
    """Which only end when all tests are run in a row."""
    words = [str(program), "--root", str(root), "--tap"]
    done = subprocess.run(words, capture_output=True, timeout=240, check=False, env=environment)
    results = {}
    for line in done.stdout.decode(errors="replace").splitlines():
        for name in BENCHMARKS:
            if line.endswith(f"({name})"):
                results[name] = "OK" if line.startswith("ok") else "ERROR"
                (logs / name).write_bytes(done.stdout + done.stderr)
    return results


def run(
    program: Path,
    pool: str,
    folder: Path,
    benchmarks: bool = False,
    front: str = "fuse",
    tries: int = 1,
) -> dict[str, str]:
    """What came of each test. Some give a busy machine a tenth of a second and no more, so there
    may be more `tries`; which needed them is printed."""
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    results = {}
    # Time to live: of tests that all hang, and of the benchmarks.
    life = len(TESTS) * LIMIT + 240
    with ExitStack() as stack:
        environment: Environment = None
        if front == "shim":
            root, environment = stack.enter_context(served(folder / "kdbus", time_to_live=life))
        else:
            root = stack.enter_context(mounted(folder / "kdbus", pool, time_to_live=life)).path
        for name in TESTS:
            for turn in range(tries):
                if turn:
                    print(f"{name:20} {results[name]}, and once more")
                results[name] = run_one(program, root, name, logs, environment)
                if results[name] in ("OK", "SKIPPED") or (front == "fuse" and name in IMPOSSIBLE):
                    break
        if benchmarks:
            results.update(run_benchmarks(program, root, logs, environment))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--front", choices=("fuse", "shim"), default="fuse")
    parser.add_argument("--pool", choices=("auto", "store", "passthrough"), default="auto")
    parser.add_argument("--benchmarks", action="store_true")
    parser.add_argument("--program", type=Path, help="built already")
    parser.add_argument("--tries", type=int, default=1, help="for each test, on a busy machine")
    options = parser.parse_args()
    if os.geteuid() and options.front == "fuse" and "JITNEY_IN_NAMESPACE" not in os.environ:
        os.environ["JITNEY_IN_NAMESPACE"] = "1"
        os.execvp("unshare", ["unshare", "-Urm", sys.executable, *sys.argv])
    problem = why_not(options.front) if options.program is None else ""
    if problem:
        print(f"kdbus's selftests are not run: {problem}")
        return 77
    privileged = os.geteuid() == 0 and "JITNEY_IN_NAMESPACE" not in os.environ
    wanted = expected(privileged, options.front)
    if options.benchmarks:
        wanted.update(dict.fromkeys(BENCHMARKS, "OK"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # some tests become somebody else
        program = options.program or build(folder / "source")
        began = time.monotonic()
        results = run(
            program, options.pool, folder, options.benchmarks, options.front, options.tries
        )
        for test, result in results.items():
            note = "" if result == wanted[test] else f", but {wanted[test]} was expected"
            if result == wanted[test] == "ERROR":
                note = f", as expected: {IMPOSSIBLE[test]}"
            print(f"{test:20} {result}{note}")
            if result != wanted[test] and (folder / "logs" / test).exists():
                sys.stdout.write((folder / "logs" / test).read_text(errors="replace")[-2000:])
        print(f"{list(results.values()).count('OK')} OK in {time.monotonic() - began:.1f} s")
    return int(results != wanted)


if __name__ == "__main__":
    sys.exit(main())
