"""A system bus under runit, s6 and OpenRC, with the files that `jitney install` prints for them.

Invariant: each supervisor runs in a corner of its own (activation.inside) and ends with its test.
What is held of each: it starts the bus and knows when it is ready, takes its log (under OpenRC that
goes to syslog), starts another one after a crash if it does that at all, and ends it for good.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from activation.inside import bus_of, heredoc, programs, running_inside
from activation.systembus import SOCKET, impossible
from waiting import alive, until

from jitney.compat import install_lines

WHY_NOT = impossible()
SERVICE = "/etc/init.d/dbus"
"""OpenRC's."""
STOPPED = 3

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")


def needs(*commands: str, package: str) -> pytest.MarkDecorator:
    missing = [command for command in commands if shutil.which(command) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)} (Debian: {package})")


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Corner:
    """Where a supervisor runs; `process` is it, or holds its place."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of the supervisor's, in the corner."""
        return subprocess.run(
            ["nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt", *command],
            capture_output=True, text=True, timeout=40, check=False, cwd="/",
        )  # fmt: skip

    def ok(self, *command: str | Path) -> str:
        done = self.run(*command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def pid(self) -> int:
        """The bus's, as it says itself."""
        with bus_of(self.process) as client:
            asked = client.driver(b"GetConnectionUnixProcessID", "s", "org.freedesktop.DBus")
            return int(client.reply_to(asked).body[0])

    def crashes(self) -> int:
        """The bus is killed and another one there; its pid."""
        old = self.pid()
        with bus_of(self.process) as client:
            os.kill(old, signal.SIGKILL)
            while client.receive() is not None:
                pass
        until(lambda: not alive(old))
        new = self.pid()
        assert new != old
        return new


@contextlib.contextmanager
def corner(*command: str | Path) -> Iterator[Corner]:
    with running_inside(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        yield Corner(process)


def reloaded(log: Path) -> bool:
    """Whether something of the bus's is in the log of a logger."""
    return log.exists() and "Reloaded configuration" in log.read_text()


@needs("runsvdir", "runsv", "sv", "svlogd", package="runit")
def test_runit(tmp_path: Path) -> None:
    lines = install_lines.lines("runit", "system", programs(tmp_path))
    source, log = tmp_path / "sv" / "jitney", tmp_path / "log"
    for file in ("run", "check"):
        executable(source / file, heredoc(lines, f"/etc/sv/jitney/{file}"))
    log.mkdir()
    executable(source / "log" / "run", f"#!/bin/sh\nexec svlogd {log}\n")
    services = tmp_path / "service"
    services.mkdir()
    (services / "dbus").symlink_to(source)
    service = services / "dbus"
    with corner("runsvdir", services) as it:
        # Other services wait with this for the bus. There is a moment in which runsv has made its
        # files and does not listen yet.
        until(lambda: not it.run("sv", "-w", "20", "check", service).returncode, "it is checked")
        first = it.pid()
        assert f"(pid {first})" in it.ok("sv", "status", service)
        it.ok("sv", "hup", service)
        until(lambda: reloaded(log / "current"))
        second = it.crashes()
        assert f"(pid {second})" in it.ok("sv", "status", service)
        it.ok("sv", "-w", "20", "down", service)
        assert it.ok("sv", "status", service).startswith("down:")
        assert not alive(second)
        it.ok("sv", "-w", "20", "start", service)
        assert it.pid() != second


@needs("s6-svscan", "s6-supervise", "s6-svc", "s6-svwait", "s6-svstat", "s6-log", package="s6")
def test_s6(tmp_path: Path) -> None:
    lines = install_lines.lines("s6", "system", programs(tmp_path))
    services, log = tmp_path / "service", tmp_path / "log"
    service = services / "dbus"
    executable(service / "run", heredoc(lines, '"$source/$name/run"'))
    # As the lines say; `type` is for s6-rc alone.
    assert 'echo 3 > "$source/$name/notification-fd"\n' in lines
    (service / "notification-fd").write_text("3\n")
    executable(service / "log" / "run", f"#!/bin/sh\nexec s6-log n3 {log}\n")
    ready = ("s6-svwait", "-U", "-t", "20000", service)
    with corner("s6-svscan", services) as it:
        # There is a moment in which s6-supervise has made some of its files.
        until(lambda: not it.run(*ready).returncode, "it is ready")
        first = it.pid()
        assert it.ok("s6-svstat", "-o", "pid,ready", service).split() == [str(first), "true"]
        it.ok("s6-svc", "-h", service)
        until(lambda: reloaded(log / "current"))
        second = it.crashes()
        it.ok(*ready)
        assert it.ok("s6-svstat", "-o", "pid,ready", service).split() == [str(second), "true"]
        it.ok("s6-svc", "-wD", "-T", "20000", "-d", service)
        assert it.ok("s6-svstat", "-o", "up", service).split() == ["false"]
        assert not alive(second)
        it.ok("s6-svc", "-wU", "-T", "20000", "-u", service)
        assert it.pid() != second


# OpenRC as it is after a boot, with an empty /etc/init.d and /run, and nothing else to start.
AFTER_BOOT = """
set -e
mount -t tmpfs none /etc/init.d
cp "$1"/init.d/* /etc/init.d
mount --bind "$1"/rc.conf /etc/rc.conf
mount -t tmpfs none /run
mkdir /run/dbus /run/openrc
cd /run/openrc
mkdir daemons exclusive failed hotplugged inactive options scheduled
mkdir started starting stopping tmp wasinactive
echo default > /run/openrc/softlevel
touch /run/booted
exec sleep 600
"""


def booted(tmp_path: Path, settings: str = "") -> list[str | Path]:
    lines = install_lines.lines("openrc", "system", programs(tmp_path))
    executable(tmp_path / "init.d" / "dbus", heredoc(lines, "/etc/init.d/dbus"))
    executable(tmp_path / "init.d" / "localmount", "#!/sbin/openrc-run\nstart() { true; }\n")
    (tmp_path / "rc.conf").write_text(f"rc_logger=NO\n{settings}")
    return ["sh", "-c", AFTER_BOOT, "sh", tmp_path]


def is_booted(it: Corner) -> None:
    # Not before: until then /etc/init.d is the machine's own.
    until(lambda: os.path.exists(f"/proc/{it.process.pid}/root/run/booted"))


@needs("openrc-run", "start-stop-daemon", package="openrc")
def test_openrc(tmp_path: Path) -> None:
    """Which starts nothing again by itself."""
    with corner(*booted(tmp_path)) as it:
        is_booted(it)
        it.ok(SERVICE, "start")
        # The bus is there when `start` ends.
        it.ok("test", "-S", SOCKET)
        first = it.pid()
        assert "started" in it.ok(SERVICE, "status")
        it.ok(SERVICE, "reload")
        assert it.pid() == first
        os.kill(first, signal.SIGKILL)
        until(lambda: not alive(first))
        it.ok(SERVICE, "restart")
        second = it.pid()
        it.ok(SERVICE, "stop")
        assert not alive(second)
        assert it.run(SERVICE, "status").returncode == STOPPED


@needs("openrc-run", "supervise-daemon", package="openrc")
def test_openrc_with_a_supervisor(tmp_path: Path) -> None:
    """What rc.conf or conf.d/dbus may ask for."""
    with corner(*booted(tmp_path, "supervisor=supervise-daemon\n")) as it:
        is_booted(it)
        it.ok(SERVICE, "start")
        first = it.pid()
        it.ok(SERVICE, "reload")
        assert it.pid() == first
        second = it.crashes()
        it.ok(SERVICE, "stop")
        until(lambda: not alive(second))
        assert it.run(SERVICE, "status").returncode == STOPPED
