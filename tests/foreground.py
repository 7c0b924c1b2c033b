"""Helpers for tests: what `jitney mount` and `jitney sockets` serve, by a process of its own.

Invariant: the process ends, whatever a test did: it has a time to live. One that complained on its
standard error, or ended as no daemon should, fails the test that ends it, if that is `quiet`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TIME_TO_LIVE = 110
RUN = "import sys; from jitney.compat.command import main; sys.exit(main(sys.argv[1:]))"


def command_line(command: str, path: Path, *words: str) -> list[str]:
    return [sys.executable, "-c", RUN, command, str(path), "--foreground", *words]


class Served:
    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.process = process

    @property
    def pid(self) -> int:
        return self.process.pid

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@contextmanager
def mortal(pid: int, time_to_live: float) -> Iterator[None]:
    """Not a test's measure: it only makes sure that nobody waits for ever."""
    words = ["sh", "-c", f"sleep {time_to_live}; kill -KILL {pid}"]
    killer = subprocess.Popen(words, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(killer.pid, signal.SIGKILL)
        killer.wait()


@contextmanager
def foreground(
    command: str,
    path: Path,
    *words: str,
    quiet: bool = True,
    time_to_live: float = TIME_TO_LIVE,
) -> Iterator[Served]:
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            command_line(command, path, *words), stdout=subprocess.PIPE, stderr=complaints
        )
        assert process.stdout is not None
        try:
            with mortal(process.pid, time_to_live):
                assert process.stdout.readline() == b"ready\n"
                yield Served(path, process)
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        complaints.seek(0)
        said = complaints.read().decode()
        assert not quiet or (not said and process.returncode == 0), said
        sys.stderr.write(said)
