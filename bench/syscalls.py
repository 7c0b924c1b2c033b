"""How many system calls a broker makes while something happens.

Invariant: the counter is attached to all threads of the broker before the something begins and
counts until it has returned, no longer; it has ended when `syscalls` returns or raises.

perf counts in the kernel and is not felt; strace stops the broker twice a call, which makes it
slow and can change how many calls it needs for the same work: told apart by the second value.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .running import Running, end, spawn

EVENT = "raw_syscalls:sys_enter"
TIMEOUT = 10.0
"""Seconds that a counter may take to attach."""


class CountError(Exception):
    """A counter that did not do its work; the text says what it said."""


def syscalls(running: Running, during: Callable[[], object]) -> tuple[int | None, str]:
    """Runs `during` and counts the broker's system calls meanwhile: (count, "perf" or "strace").

    Where neither can count: (None, reason), and `during` is not run."""
    how, reason = method()
    if not how:
        return None, reason
    with tempfile.TemporaryDirectory(prefix="jitney-bench-") as folder:
        output = Path(folder, "out")
        try:
            with (_perf if how == "perf" else _strace)(running, output):
                during()
            return (_perf_count if how == "perf" else _strace_count)(output.read_text()), how
        except CountError as error:
            return None, f"{how}: {error}"


@functools.cache
def method() -> tuple[str, str]:
    """("perf" or "strace", "") for what works here, or ("", why neither does)."""
    reasons = []
    for name, trial in (
        ("perf", ["perf", "stat", "-x,", "-e", EVENT, "true"]),
        ("strace", ["strace", "-c", "true"]),
    ):
        if not shutil.which(name):
            reasons.append(f"{name} is not installed")
            continue
        done = subprocess.run(trial, capture_output=True, text=True, check=False)
        text = done.stderr.strip()
        if done.returncode == 0 and (name == "strace" or _counts(text)):
            return name, ""
        reasons.append(f"{name}: {(text.splitlines() or ['it failed'])[0]}")
    return "", ", ".join(reasons)


@contextlib.contextmanager
def _perf(running: Running, output: Path) -> Iterator[None]:
    """perf counts within the block: switched on and off over its control pipes."""
    control = (str(output) + ".ctl", str(output) + ".ack")
    for path in control:
        os.mkfifo(path)
    # Both ways, so that no end waits for the other to open it.
    commands, acks = (os.open(path, os.O_RDWR | os.O_CLOEXEC) for path in control)
    try:
        pids = ",".join(map(str, running.pids()))
        fifo = f"--control=fifo:{control[0]},{control[1]}"
        with open(f"{output}.err", "wb") as errors:
            perf = spawn(
                [
                    "perf",
                    "stat",
                    "-x,",
                    "-e",
                    EVENT,
                    "-D",
                    "-1",
                    fifo,
                    "-p",
                    pids,
                    "-o",
                    str(output),
                ],
                stderr=errors.fileno(),
            )
        try:
            _order(perf, commands, acks, b"enable\n", output)
            yield
            _order(perf, commands, acks, b"disable\n", output)
            _interrupt(perf)
        finally:
            end(perf)
    finally:
        os.close(commands)
        os.close(acks)


def _order(
    perf: subprocess.Popen[bytes], commands: int, acks: int, order: bytes, output: Path
) -> None:
    """Tells perf something and waits until it is done."""
    os.write(commands, order)
    deadline = time.monotonic() + TIMEOUT
    got = b""
    while b"ack\n" not in got:
        if perf.poll() is not None or time.monotonic() > deadline:
            raise CountError(Path(f"{output}.err").read_text().strip() or "no answer")
        if select.select([acks], [], [], 0.05)[0]:
            got += os.read(acks, 64)


def _counts(text: str) -> list[int]:
    """The counters in perf's output; the ones it could not count are not numbers."""
    return [int(count) for count in re.findall(rf"^(\d+),.*{EVENT}", text, re.MULTILINE)]


def _perf_count(text: str) -> int:
    found = _counts(text)
    if not found and "<not counted>" in text:
        return 0  # none of the broker's threads ran at all
    if not found:
        raise CountError(text.strip() or "no output")
    return sum(found)


@contextlib.contextmanager
def _strace(running: Running, output: Path) -> Iterator[None]:
    """strace counts within the block."""
    pids = running.pids()
    targets = [word for pid in pids for word in ("-p", str(pid))]
    log = Path(f"{output}.err")
    with open(log, "wb") as errors:
        strace = spawn(["strace", "-c", "-f", *targets, "-o", str(output)], stderr=errors.fileno())
    try:
        deadline = time.monotonic() + TIMEOUT
        while log.read_text().count(" attached") < len(pids):
            if strace.poll() is not None or time.monotonic() > deadline:
                raise CountError(log.read_text().strip() or "it does not attach")
            time.sleep(0.01)
        yield
        _interrupt(strace)
    finally:
        end(strace)


def _strace_count(text: str) -> int:
    """The sum in strace's table: its last column but those for errors and for the word itself."""
    for line in text.splitlines():
        words = line.split()
        if words[-1:] == ["total"] and len(words) >= 5:
            return int(words[3])
    if not text.strip():
        return 0  # an empty table is left out
    raise CountError(text.strip())


def _interrupt(counter: subprocess.Popen[bytes]) -> None:
    """Lets the counter write its results."""
    counter.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        counter.wait(TIMEOUT)
