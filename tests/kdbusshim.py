"""Helpers for tests of the shim: `jitney sockets` on a directory, and programs that are preloaded.

Invariant: what is served here ends again, whatever a test did: the server has a time to live.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jitney.kdbus import preload

RUN = "import sys; from jitney.compat.command import main; sys.exit(main(sys.argv[1:]))"
TIME_TO_LIVE = 50


def why_not() -> str:
    """Why nothing can be preloaded here; empty if it can."""
    if preload.library() is None:
        return "jitney was built without a C compiler: there is no shim"
    return ""


@contextmanager
def served(path: Path, time_to_live: int = TIME_TO_LIVE) -> Iterator[tuple[Path, dict[str, str]]]:
    """A directory of `jitney sockets`, and the environment of programs that are to use it."""
    shim = preload.library()
    assert shim is not None
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, "sockets", str(path), "--foreground"], stdout=subprocess.PIPE
    )
    # Not a test's measure: it only makes sure that nobody waits for ever.
    killer = subprocess.Popen(
        ["sh", "-c", f"sleep {time_to_live}; kill -KILL {process.pid}"], start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield path, preload.environment(shim)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.killpg(killer.pid, signal.SIGKILL)
        killer.wait()
        if process.stdout is not None:
            process.stdout.close()
