"""What `jitney install` writes and prints, run the way systemd, runit or a container would."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from activation.inside import bus_of, heredoc, programs, running_inside
from activation.systembus import SOCKET, impossible
from rawclient import RawClient
from waiting import alive, comes, until

from jitney.compat import install_lines, install_units

WHY_NOT = impossible()
needs_root = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")
socket_activate = shutil.which("systemd-socket-activate")


@pytest.fixture
def daemon(tmp_path: Path) -> str:
    return programs(tmp_path)


def ended(pid: int) -> None:
    """Ends a process that is not our child, and waits until it has."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    if not comes(lambda: not alive(pid)):
        os.kill(pid, signal.SIGKILL)
        raise AssertionError("the upgraded bus did not end")


def words_of(unit: str, key: str) -> list[str]:
    (line,) = [line for line in unit.splitlines() if line.startswith(key + "=")]
    # "+": outside of the sandbox, where this test is.
    return shlex.split(line.partition("=")[2].removeprefix("+"))


@needs_root
@pytest.mark.skipif(socket_activate is None, reason="no systemd-socket-activate")
def test_system_unit(daemon: str) -> None:
    """Started by its socket, it says that it is ready; ExecReload does; it is messagebus's."""
    unit = install_units.text("system", daemon, [])
    with ExitStack() as stack:
        told = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        # Not below pytest's directory, which is closed to messagebus.
        notify = f"jitney-test-{os.getpid()}"
        told.bind(f"\0{notify}")
        told.settimeout(30)
        process = stack.enter_context(
            running_inside(
                [str(socket_activate), f"--listen={SOCKET}",
                 f"--setenv=NOTIFY_SOCKET=@{notify}", *words_of(unit, "ExecStart")],
                stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip
        client = stack.enter_context(bus_of(process))
        assert b"READY=1" in told.recv(4096)
        assert Path(f"/proc/{process.pid}").owner() == "messagebus"
        assert client.reply_to(client.driver(b"GetId")).body
        reload = ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", *words_of(unit, "ExecReload")]
        done = subprocess.run(reload, capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        # Another process goes on, and systemd knows which.
        while (told_now := told.recv(4096)).partition(b"=")[0] != b"MAINPID":
            pass
        current = int(told_now.partition(b"=")[2])
        # Whoever knows the first process alone would leave this one behind.
        stack.callback(ended, current)
        assert told.recv(4096) == b"READY=1"
        assert process.wait(30) == 0
        assert client.reply_to(client.driver(b"GetId")).body
        assert Path(f"/proc/{current}").owner() == "messagebus"
        # Helpers must be able to become root.
        status = Path(f"/proc/{current}/status").read_text()
        assert "NoNewPrivs:\t0\n" in status


@pytest.mark.skipif(socket_activate is None, reason="no systemd-socket-activate")
def test_user_unit(daemon: str, tmp_path: Path) -> None:
    unit = install_units.text("user", daemon, [])
    path = tmp_path / "bus"
    process = subprocess.Popen(
        [str(socket_activate), f"--listen={path}", *words_of(unit, "ExecStart")],
        stderr=subprocess.DEVNULL,
    )
    try:
        until(path.exists, "it listens")
        with RawClient(f"unix:path={path}") as client:
            client.hello()
            assert client.reply_to(client.driver(b"GetId")).body
    finally:
        process.terminate()
        process.wait()


@needs_root
@pytest.mark.parametrize("kind", ["runit", "s6"])
def test_run_file(daemon: str, kind: str, tmp_path: Path) -> None:
    lines = install_lines.lines(kind, "system", daemon)
    place = "/etc/sv/jitney/run" if kind == "runit" else '"$source/$name/run"'
    run = tmp_path / "run"
    run.write_text(heredoc(lines, place))
    run.chmod(0o755)
    with ExitStack() as stack:
        ready, told = os.pipe()
        stack.callback(os.close, ready)
        try:
            if kind == "s6":
                # Descriptor 3 is told one line as soon as there is a bus.
                command = ["bash", "-c", f'exec "$1" 3>&{told}', "bash", str(run)]
            else:
                command = [str(run)]
            process = stack.enter_context(
                running_inside(command, pass_fds=(told,), stdout=subprocess.DEVNULL)
            )
        finally:
            os.close(told)
        if kind == "s6":
            assert os.read(ready, 4096).endswith(b"\n")
        with bus_of(process) as client:
            assert client.reply_to(client.driver(b"GetId")).body


@needs_root
def test_container_with_a_system_bus(daemon: str, tmp_path: Path) -> None:
    entry = tmp_path / "entrypoint.sh"
    lines = install_lines.lines("container", "system", daemon)
    entry.write_text(heredoc(lines, "/entrypoint.sh"))
    entry.chmod(0o755)
    with running_inside([str(entry), "sleep", "60"]) as process, bus_of(process) as client:
        # It has left the group that ends with the block. A container would end it.
        asked = client.driver(b"GetConnectionUnixProcessID", "s", "org.freedesktop.DBus")
        pid = client.reply_to(asked).body[0]
        try:
            assert client.reply_to(client.driver(b"GetId")).body
            # The bus is ready before the entry point becomes its command.
            cmdline = Path(f"/proc/{process.pid}/cmdline")
            until(lambda: b"sleep" in cmdline.read_bytes(), "the command runs")
        finally:
            os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("kind", install_lines.KINDS)
def test_session_of_a_program(
    daemon: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would start the session starts a program that finds its bus."""
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    lines = install_lines.lines(kind, "user", daemon)
    if kind == "container":
        scripts = [heredoc(lines, "/entrypoint.sh")]
    else:
        scripts = [
            line.replace("startxfce4", '"$@"') for line in lines.splitlines() if line[:5] == "exec "
        ]
        assert len(scripts) == 2
    for script in scripts:
        if "dbus-run-session" in script and shutil.which("dbus-run-session") is None:
            continue
        done = subprocess.run(
            ["sh", "-c", script, "sh", "sh", "-c", 'echo "$DBUS_SESSION_BUS_ADDRESS"'],
            capture_output=True, text=True, timeout=50, check=True,
        )  # fmt: skip
        assert done.stdout.startswith("unix:"), done.stderr
