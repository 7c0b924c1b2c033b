"""Configurations for tests: files made up on the spot, and what dbus-daemon thinks of them."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from pathlib import Path

from jitney.compat.config import Config, load

DAEMON = shutil.which("dbus-daemon")

OPEN = '<policy context="default"><allow send_destination="*"/></policy>'


def write(folder: Path, body: str, head: str = "", name: str = "bus.conf") -> str:
    """A file in which `body` starts in line 3 (if `head` has one line at most)."""
    path = folder / name
    path.write_text(
        f"{head}<busconfig>\n<listen>unix:tmpdir={folder}</listen>{OPEN}\n{body}\n</busconfig>\n"
    )
    return str(path)


def read(folder: Path, body: str, head: str = "") -> Config:
    return load(write(folder, body, head))


def ask_daemon(path: str, folder: Path) -> tuple[bool, str]:
    """Whether the installed dbus-daemon starts with this file, and what it writes to stderr."""
    assert DAEMON is not None
    errors = folder / "stderr"
    environ = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    with errors.open("wb") as stderr:
        daemon = subprocess.Popen(
            [DAEMON, f"--config-file={path}", "--print-address", "--nofork"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            stdin=subprocess.DEVNULL,
            env=environ,
        )
    try:
        assert daemon.stdout is not None
        ready, _, _ = select.select([daemon.stdout], [], [], 10)
        assert ready, "dbus-daemon says nothing"
        started = bool(os.read(daemon.stdout.fileno(), 4096))
    finally:
        daemon.kill()
        daemon.wait()
        assert daemon.stdout is not None
        daemon.stdout.close()
    return started, errors.read_text()
