"""Buses that tests start for themselves, and end by the process they started.

Invariant: `running()` never leaves a process or a directory behind, whatever the test did.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REFERENCE = shutil.which("dbus-daemon")
"""dbus-daemon, or None where it is not installed."""

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>{type}</type>
  <listen>unix:path={directory}/bus</listen>
  <auth>EXTERNAL</auth>
  <servicedir>{directory}/services</servicedir>
  <policy context="default">
    <allow user="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
  {extra}
</busconfig>
"""


@dataclass
class Daemon:
    """A running bus: its address, process, and the directory of its configuration."""

    address: str
    pid: int
    directory: Path


def jitney_command() -> list[str]:
    """How to start jitney-daemon: JITNEY_DAEMON, its installed script, or this interpreter."""
    given = os.environ.get("JITNEY_DAEMON")
    if given:
        return shlex.split(given)
    script = Path(sys.executable).with_name("jitney-daemon")
    return [str(script)] if script.exists() else [sys.executable, "-m", "jitney.compat"]


@contextlib.contextmanager
def running(
    command: list[str], *, extra: str = "", type: str = "session", config: str = CONFIG
) -> Iterator[Daemon]:
    """The bus that `command` starts with a configuration of its own; `extra` is added to that.

    RuntimeError when it ends, or closes its output, without having printed an address."""
    directory = Path(tempfile.mkdtemp(prefix="jitney-test-"))
    (directory / "services").mkdir()
    os.chmod(directory, 0o755)
    file = directory / "bus.conf"
    file.write_text(config.format(type=type, directory=directory, extra=extra))
    process = subprocess.Popen(
        [*command, f"--config-file={file}", "--nofork", "--print-address=1"],
        stdout=subprocess.PIPE,
        stderr=(directory / "log").open("wb"),
        cwd=directory,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().decode().strip()
        if not address:
            log = (directory / "log").read_text(errors="replace")
            raise RuntimeError(f"{command[0]} printed no address: {log[-2000:]}")
        yield Daemon(address, process.pid, directory)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        shutil.rmtree(directory, ignore_errors=True)
