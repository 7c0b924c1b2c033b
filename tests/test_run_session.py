"""`run_session`: a command gets a bus of its own, and its exit status comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import until

CONNECT = """
import os, sys
from rawclient import RawClient
with RawClient(os.environ["DBUS_SESSION_BUS_ADDRESS"]) as client:
    print(client.hello(), os.environ.get("DBUS_STARTER_ADDRESS"))
"""


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "jitney.compat.run_session", *words]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environment},
        check=False,
    )


def test_command_is_on_a_bus_of_its_own() -> None:
    done = run(
        *("--", sys.executable, "-c", CONNECT),
        DBUS_STARTER_ADDRESS="unix:path=/elsewhere",
        PYTHONPATH=f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
    )
    assert (done.stdout, done.returncode) == (":1.0 None\n", 0), done.stderr


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 128 + signal.SIGTERM)]
)
def test_exit_status_is_the_commands(script: str, status: int) -> None:
    assert run("sh", "-c", script).returncode == status


def test_bus_ends_with_the_command() -> None:
    done = run("sh", "-c", 'echo "$PPID"; cat /proc/$PPID/task/$PPID/children')
    session, children = done.stdout.splitlines()
    gone = [pid for pid in (session, *children.split()) if not Path("/proc", pid).exists()]
    assert len(children.split()) == 2, "the bus and the shell"
    assert gone == [session, *children.split()]


def test_sigterm_ends_command_and_bus() -> None:
    session = subprocess.Popen(
        command("sh", "-c", "trap 'echo told; exit 7' TERM; echo up; while :; do sleep 0.05; done"),
        stdout=subprocess.PIPE,
        text=True,
    )
    with session:
        assert session.stdout is not None
        assert session.stdout.readline() == "up\n"
        children = Path(f"/proc/{session.pid}/task/{session.pid}/children").read_text().split()
        session.send_signal(signal.SIGTERM)
        assert session.stdout.read() == "told\n"
        assert session.wait(30) == 7
    until(lambda: not any(Path("/proc", pid).exists() for pid in children), "all have ended")


@pytest.mark.parametrize(
    "words", [("/nonexistent/program",), ("--config-file", "/nonexistent/bus.conf", "true")]
)
def test_what_cannot_start_is_127(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 127
    assert "run_session: " in done.stderr
    assert "Traceback" not in done.stderr


def test_no_command_is_a_usage_error() -> None:
    assert run().returncode == 2
