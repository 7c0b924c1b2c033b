"""What `jitney install` writes and prints, tried without installing it.

Invariant: nothing of the machine changes. A command runs in a mount namespace in which /run/dbus is
empty and our policy is where it belongs; all of its process group ends with the block.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import buses
from activation.systembus import SOCKET
from rawclient import RawClient
from waiting import until

from jitney.compat import install_policy


def programs(folder: Path) -> str:
    """The path of a jitney-daemon in there, with what pip installs beside it."""
    bin = folder / "bin"
    bin.mkdir()
    command_line = "from jitney.compat.command import main_entry; main_entry()"
    for name, command in (
        ("jitney-daemon", buses.jitney_command()),
        ("jitney", [sys.executable, "-c", command_line]),
        ("python", [sys.executable]),
    ):
        # systemd hands on no environment.
        path = f"export PYTHONPATH={shlex.quote(os.environ.get('PYTHONPATH', ''))}"
        (bin / name).write_text(f'#!/bin/sh\n{path}\nexec {shlex.join(command)} "$@"\n')
        (bin / name).chmod(0o755)
    return str(bin / "jitney-daemon")


@contextmanager
def running_inside(command: list[str], **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command with an empty /run/dbus of its own, and with our policy, as root."""
    folder = install_policy.FOLDER
    script = (
        "mount -t tmpfs -o mode=755 none /run/dbus && "
        f"mount -t tmpfs -o mode=755 none {folder} && "
        f"printf %s {shlex.quote(install_policy.TEXT)} > {folder}/org.jitney.conf && "
        'exec "$@"'
    )
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command], process_group=0, **more
    )  # type: ignore[call-overload]
    try:
        yield process
    finally:
        for number in (15, 9):
            try:
                os.killpg(process.pid, number)
                process.wait(5)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        process.wait()


def bus_of(process: subprocess.Popen[bytes]) -> RawClient:
    """A client of the bus at the usual place, as soon as there is one."""
    address = f"unix:path=/proc/{process.pid}/root{SOCKET}"
    found: list[RawClient] = []

    def there() -> bool:
        try:
            found.append(RawClient(address))
        except OSError:
            assert process.poll() is None
        return bool(found)

    until(there, "there is a bus")
    found[0].hello()
    return found[0]


def heredoc(lines: str, file: str) -> str:
    """What the printed lines write into a file."""
    return lines.partition(f"cat > {file} <<'END'\n")[2].partition("END\n")[0]
