"""Real client libraries against a broker: what their users get out of it.

Invariant: a figure comes from programs that checked every reply and signal (`clients.program`),
and the broker's CPU time with it was spent between a round's order and its answer. No program
outlives `run`.

A round's figures: `rate` (calls or signals a second), `p50_us` and `p99_us` (one call as the
caller sees it; none for signals), `cpu_us` (the broker's CPU time divided by the messages that it
passed on: two a call, one a signal), `count`, `messages` and `seconds`.
"""

from __future__ import annotations

import functools
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from .running import Running, end, spawn

NAMES = {
    "dbus-fast": ("dbus_fast", "pip install dbus-fast"),
    "glib": ("glib", "Debian: apt install python3-gi"),
    "sd-bus": ("sd_bus", "Debian: apt install libsystemd0"),
    "dbus-python": ("dbus_python", "Debian: apt install python3-dbus python3-gi"),
}
"""The libraries' names, with the programs for them and where each can be had."""

ROUNDS = ("calls", "calls16", "signals")
"""One call at a time, 16 outstanding, and signals from the service to one client."""

SYSTEM = "/usr/bin/python3"
PROGRAMS = str(Path(__file__).with_name("clients"))
TIMEOUT = 60.0
"""Seconds that a program may take beyond those it was asked to run for."""


class LibraryError(Exception):
    """A program on a library failed; the text says what it wrote."""


def available() -> dict[str, str]:
    """For each library, why it cannot be had, or ""."""
    return {name: _interpreter(name)[2] for name in NAMES}


def versions() -> dict[str, str]:
    """The libraries that can be had, with their versions."""
    return {name: _interpreter(name)[1] for name in NAMES if not _interpreter(name)[2]}


def run(
    library: str,
    running: Running,
    *,
    count: int = 0,
    seconds: float = 1.0,
    warmup: int = 200,
    rounds: Sequence[str] = ROUNDS,
    cpus: set[int] | None = None,
) -> dict[str, dict[str, float]]:
    """Drives the broker with a service and a client on `library`; each round's figures.

    `count` calls or signals a round, or as many as there is time for in `seconds` if it is 0;
    `warmup` of them go before and are not counted. Both programs run on `cpus`.

    LookupError if the library cannot be had; LibraryError if a reply was wrong or a program
    ended."""
    reason = available().get(library, "no such library")
    if reason:
        raise LookupError(f"{library}: {reason}")
    found = {}
    with _Program(library, ["service", running.address], cpus) as service:
        destination = service.answer(TIMEOUT)
        with _Program(library, ["client", running.address, destination], cpus) as client:
            client.answer(TIMEOUT)
            for name in rounds:
                if warmup:
                    client.order(name, warmup, 0.0)
                before = running.cpu_seconds()
                figures = client.order(name, count, seconds)
                used = running.cpu_seconds() - before
                figures["cpu_us"] = used * 1e6 / figures["messages"]
                found[name] = figures
    return found


class _Program:
    """A program of `clients`, ended when its block is left."""

    def __init__(self, library: str, words: list[str], cpus: set[int] | None) -> None:
        python = _interpreter(library)[0]
        self.name = f"{library} {words[0]}"
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = spawn(
            _command(python, library, *words),
            cpus,
            env=_environment(python),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors.fileno(),
        )

    def order(self, name: str, count: int, seconds: float) -> dict[str, float]:
        """Has a client run a round; its figures."""
        assert self.process.stdin is not None
        line = json.dumps({"round": name, "count": count, "seconds": seconds}) + "\n"
        try:
            os.write(self.process.stdin.fileno(), line.encode())
        except BrokenPipeError:
            raise self.failure() from None
        figures: dict[str, float] = json.loads(self.answer(seconds + TIMEOUT))
        return figures

    def answer(self, timeout: float) -> str:
        """The program's next line."""
        assert self.process.stdout is not None
        # It writes no line unasked, so nothing can be left in our buffer.
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise LibraryError(f"{self.name}: no answer in {timeout:.0f} s")
        line = self.process.stdout.readline().decode().strip()
        if not line:
            raise self.failure()
        return line

    def failure(self) -> LibraryError:
        """What the program wrote before it ended."""
        end(self.process)
        self.errors.seek(0)
        text = self.errors.read()[-2000:].decode(errors="replace").strip()
        return LibraryError(f"{self.name}: {text or 'it ended'}")

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)
        self.errors.close()


@functools.cache
def _interpreter(library: str) -> tuple[str, str, str]:
    """An interpreter that has the library, the library's version, and what keeps us from it."""
    for python in dict.fromkeys((sys.executable, SYSTEM)):
        try:
            probe = subprocess.run(
                _command(python, library, "probe"),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30,
                env=_environment(python),
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if probe.returncode == 0:
            return python, probe.stdout.strip(), ""
    where = " or ".join(dict.fromkeys((sys.executable, SYSTEM)))
    return "", "", f"not for {where} ({NAMES[library][1]})"


def _command(python: str, library: str, *words: str) -> list[str]:
    return [python, PROGRAMS, NAMES[library][0], *words]


def _environment(python: str) -> dict[str, str]:
    """Ours; what tells our interpreter where to find modules is not for another one."""
    foreign = () if python == sys.executable else ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in foreign}
