"""Helpers for tests over sockets: `jitney sockets` in a process of its own.

Invariant: what was served is taken away again, and a server that complained on its standard error
fails the test that ends it.
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

RUN = "import sys; from jitney.compat.command import main; sys.exit(main(sys.argv[1:]))"


def command_line(path: Path, *words: str) -> list[str]:
    return [sys.executable, "-c", RUN, "sockets", str(path), "--foreground", *words]


class Server:
    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.process = process

    @property
    def pid(self) -> int:
        return self.process.pid

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


@contextmanager
def served(path: Path, *words: str, quiet: bool = True) -> Iterator[Server]:
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            command_line(path, *words), stdout=subprocess.PIPE, stderr=complaints
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield Server(path, process)
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        complaints.seek(0)
        said = complaints.read().decode()
        assert not quiet or not said, said
        assert process.returncode == 0
