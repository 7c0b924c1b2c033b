"""What the checks in the machine have in common: commands, the user's session, the bus's process.

Invariant: a check that does not hold raises, with what was seen; no command runs without an end.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import subprocess
import time
from collections.abc import Callable

USER = "rider"
UID = 1000
LONG = 600
"""Seconds: an emulated machine on a busy one is slow, and only what hangs is to end."""

with open("/proc/cmdline", encoding="ascii") as _file:
    BUS = "dbus-daemon" if "vm.bus=dbus-daemon" in _file.read() else "jitney-daemon"

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/opt/jitney/bin", "LC_ALL": "C.UTF-8", "TERM": "dumb",
    "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0",
}  # fmt: skip


def run(*words: str, status: int | None = 0) -> str:
    """What a command says, which must end with that status (None: with any)."""
    done = subprocess.run(
        words, check=False, env=ENVIRONMENT, timeout=LONG, cwd="/",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    said = done.stdout.decode(errors="replace").strip()
    judge(words, done.returncode, said, status)
    return said


def ask(*words: str, status: int | None = 0) -> str:
    """The same, by the user in the session that was made by the login on the serial line."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(LONG)
        link.connect(f"/run/user/{UID}/vm")
        link.sendall(json.dumps(words).encode())
        link.shutdown(socket.SHUT_WR)
        with link.makefile("rb") as answer:
            ended, said = json.load(answer)
    judge(words, ended, said, status)
    return said


def refused(command: Callable[..., str], *words: str) -> str:
    """What a command says that must not succeed."""
    said = ended(command, *words)
    assert said[0] != 0, f"{' '.join(words)}: this was to be refused: {said[1]}"
    return said[1]


def ended(command: Callable[..., str], *words: str) -> tuple[int, str]:
    try:
        return 0, command(*words)
    except Failed as failed:
        return failed.status, failed.said


class Failed(AssertionError):
    def __init__(self, words: tuple[str, ...], status: int, said: str) -> None:
        super().__init__(f"{' '.join(words)}: status {status}: {said[-2000:]}")
        self.status = status
        self.said = said


def judge(words: tuple[str, ...], ended: int, said: str, status: int | None) -> None:
    if status is not None and ended != status:
        raise Failed(words, ended, said)


def until(true: Callable[[], object], what: str, seconds: float = LONG) -> None:
    """Waits for something that happens by itself."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.5)


def session() -> None:
    """Waits for the user's session."""
    until(lambda: os.path.exists(f"/run/user/{UID}/vm"), "the login on the serial line")


def main_pid(*manager: str) -> int:
    """The process of the bus, as systemd knows it."""
    command = ask if manager else run
    return int(command("systemctl", *manager, "show", "--value", "-P", "MainPID", "dbus.service"))


def command_line(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
        return file.read().replace("\0", " ").strip()


def processes_of(program: str) -> dict[int, str]:
    """Whose command line begins with that program, or with an interpreter and that program."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                line = command_line(int(name))
                if any(word.endswith(program) for word in line.split(" ")[:2]):
                    found[int(name)] = line
    return found


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        lines = (line.split(":", 1) for line in file)
        return {key: value.strip() for key, value in lines}


def entries(*matches: str) -> list[dict[str, object]]:
    """What the journal of this boot has, as it was written: all fields."""
    run("journalctl", "--sync")
    said = run("journalctl", "--boot", "--output=json", "--all", *matches)
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def user_of(pid: int) -> str:
    return pwd.getpwuid(int(status_of(pid)["Uid"].split()[0])).pw_name
