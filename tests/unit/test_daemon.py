"""The daemon as a process: how it starts, how it fails to, how it reloads, how it ends.

What it says when it cannot start is held against dbus-daemon where that is installed.
"""

from __future__ import annotations

import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from waiting import alive, comes

from jitney.compat.cli import Options
from jitney.compat.daemon import Daemon

REFERENCE = shutil.which("dbus-daemon")
JITNEY = [sys.executable, "-m", "jitney.compat"]
HELLO = b"\0AUTH EXTERNAL %b\r\n" % str(os.geteuid()).encode().hex().encode()

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def write(folder: Path, *elements: str) -> Path:
    path = folder / "bus.conf"
    policy = '<policy context="default"><allow send_destination="*"/><allow own="*"/></policy>'
    path.write_text("\n".join(["<busconfig>", *elements, policy, "</busconfig>"]))
    return path


def listen(folder: Path) -> str:
    return f"<listen>unix:path={folder}/bus</listen>"


class Bus:
    """A daemon that has printed its address and its pid."""

    def __init__(self, process: subprocess.Popen[str], address: str, pid: int, log: Path) -> None:
        self.process = process
        self.address = address
        self.pid = pid
        self._log = log

    def log(self, expected: str = "") -> str:
        """The log so far; waits for a text in it."""
        assert comes(lambda: expected in self._log.read_text()), self._log.read_text()
        return self._log.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; its exit status (only of a bus that did not fork)."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def running(folder: Path, config: Path | str, *options: str, **more: Any) -> Iterator[Bus]:
    log = folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*JITNEY, f"--config-file={config}", "--print-address=1", "--print-pid=1", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            **more,
        )
    assert process.stdout is not None
    pid = 0
    try:
        address = process.stdout.readline().strip()
        assert address, log.read_text()
        pid = int(process.stdout.readline())
        yield Bus(process, address, pid, log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if pid not in (0, process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def answers(address: str) -> bool:
    """Whether somebody at this address lets us in."""
    path = address.removeprefix("unix:path=").split(",")[0]
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(path)
        sock.sendall(HELLO)
        return sock.recv(1000).startswith(b"OK ")


def gone(pid: int) -> bool:
    return comes(lambda: not alive(pid))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_start_and_end(tmp_path: Path, number: int) -> None:
    pidfile = tmp_path / "pid"
    config = write(tmp_path, listen(tmp_path), f"<pidfile>{pidfile}</pidfile>")
    with running(tmp_path, config) as bus:
        assert re.fullmatch(rf"unix:path={tmp_path}/bus,guid=[0-9a-f]{{32}}", bus.address)
        assert bus.pid == bus.process.pid
        assert pidfile.read_text() == f"{bus.pid}\n"
        assert answers(bus.address)
        assert bus.end(number) == 0
        assert "Failed" not in bus.log().replace("Failed to set fd limit", "")
    assert sorted(os.listdir(tmp_path)) == ["bus.conf", "log"]


def test_nopidfile(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    pidfile.write_text("1\n")
    config = write(tmp_path, listen(tmp_path), f"<pidfile>{pidfile}</pidfile>")
    with running(tmp_path, config, "--nopidfile") as bus:
        assert bus.end() == 0
    assert pidfile.read_text() == "1\n"


def test_address_of_the_command_line(tmp_path: Path) -> None:
    config = write(tmp_path, listen(tmp_path))
    with running(tmp_path, config, "--address", f"unix:path={tmp_path}/other") as bus:
        assert bus.address.startswith(f"unix:path={tmp_path}/other,guid=")
        assert not (tmp_path / "bus").exists()


def test_several_addresses(tmp_path: Path) -> None:
    config = write(
        tmp_path,
        *(f"<listen>unix:path={tmp_path}/{name}</listen>" for name in ("a", "b")),
        "<listen>nonce-tcp:host=127.0.0.1</listen>",
    )
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    with running(tmp_path, config, env=environ) as bus:
        last, *others = bus.address.split(";")
        assert last.startswith("nonce-tcp:")
        assert [answers(address) for address in others] == [True, True]
        assert bus.end() == 0
    assert sorted(os.listdir(tmp_path)) == ["bus.conf", "log"]


def test_configuration_may_vanish(tmp_path: Path) -> None:
    config = write(tmp_path, listen(tmp_path))
    with running(tmp_path, config) as bus:
        config.unlink()
        bus.process.send_signal(signal.SIGHUP)
        bus.log(f'Unable to reload configuration: Failed to open "{config}"')
        assert answers(bus.address)
        assert bus.end() == 0


def test_configuration_from_a_descriptor(tmp_path: Path) -> None:
    with tempfile.TemporaryFile() as file:
        fd = os.dup(file.fileno())
    os.write(fd, write(tmp_path, listen(tmp_path)).read_bytes())
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        with running(tmp_path, f"/proc/self/fd/{fd}", pass_fds=[fd]) as bus:
            assert answers(bus.address)
            bus.process.send_signal(signal.SIGHUP)
            bus.log("Reloaded configuration")
    finally:
        os.close(fd)


def test_reload(tmp_path: Path) -> None:
    config = write(tmp_path, listen(tmp_path))
    with running(tmp_path, config) as bus:
        bus.process.send_signal(signal.SIGHUP)
        bus.log("Reloaded configuration")
        config.write_text("<busconfig>")
        bus.process.send_signal(signal.SIGHUP)
        bus.log("Unable to reload configuration: ")
        assert answers(bus.address)
        assert bus.end() == 0


def test_reload_of_a_relative_path_after_the_fork(tmp_path: Path) -> None:
    write(tmp_path, listen(tmp_path))
    environ = {**os.environ, "DBUS_DEBUG_OUTPUT": "1"}
    with running(tmp_path, "bus.conf", "--fork", cwd=tmp_path, env=environ) as bus:
        os.kill(bus.pid, signal.SIGHUP)
        bus.log("Reloaded configuration")


def test_fork(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    config = write(tmp_path, listen(tmp_path), f"<pidfile>{pidfile}</pidfile>", "<fork/>")
    with running(tmp_path, config) as bus:
        assert bus.process.wait(30) == 0
        assert bus.pid != bus.process.pid
        assert pidfile.read_text() == f"{bus.pid}\n"
        assert os.getsid(bus.pid) == bus.pid
        assert os.readlink(f"/proc/{bus.pid}/cwd") == "/"
        assert [os.readlink(f"/proc/{bus.pid}/fd/{fd}") for fd in range(3)] == ["/dev/null"] * 3
        assert answers(bus.address)
        os.kill(bus.pid, signal.SIGTERM)
        assert gone(bus.pid)
    assert sorted(os.listdir(tmp_path)) == ["bus.conf", "log"]


def test_nofork_wins(tmp_path: Path) -> None:
    config = write(tmp_path, listen(tmp_path), "<fork/>")
    with running(tmp_path, config, "--nofork") as bus:
        assert bus.pid == bus.process.pid


def test_fork_with_everything_closed(tmp_path: Path) -> None:
    config = write(tmp_path, listen(tmp_path))
    command = [*JITNEY, f"--config-file={config}", "--fork", "--print-address=8", "--print-pid=9"]
    shell = 'exec "$@" 8>address 9>pid <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", *command], cwd=tmp_path, timeout=30, check=False
    )
    assert done.returncode == 0
    pid = int((tmp_path / "pid").read_text())
    try:
        assert answers((tmp_path / "address").read_text().strip())
    finally:
        os.kill(pid, signal.SIGTERM)
    assert gone(pid)


def test_descriptors_are_closed_once_printed(tmp_path: Path) -> None:
    config = write(tmp_path, listen(tmp_path))
    inward, outward = os.pipe()
    process = subprocess.Popen(
        [
            *JITNEY,
            f"--config-file={config}",
            f"--print-address={outward}",
            f"--print-pid={outward}",
        ],
        pass_fds=[outward],
        stderr=subprocess.DEVNULL,
    )
    os.close(outward)
    try:
        with open(inward) as pipe:
            address, pid = pipe.read().splitlines()  # to its end, while the bus runs
        assert address.startswith(f"unix:path={tmp_path}/bus,")
        assert int(pid) == process.pid
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


@as_root
def test_user(tmp_path: Path) -> None:
    folder = tmp_path.parent
    folder.chmod(0o755)
    tmp_path.chmod(0o755)
    folder.parent.chmod(0o755)
    config = write(tmp_path, listen(tmp_path), "<user>nobody</user>")
    with running(tmp_path, config) as bus:
        assert answers(bus.address)  # it runs; the ids are final by then
        entry = pwd.getpwnam("nobody")
        status = Path(f"/proc/{bus.pid}/status").read_text()
        assert f"Uid:\t{entry.pw_uid}\t{entry.pw_uid}\t{entry.pw_uid}" in status
        assert f"Gid:\t{entry.pw_gid}\t{entry.pw_gid}\t{entry.pw_gid}" in status
        assert re.search(r"^Groups:\s*$", status, re.MULTILINE)
        # CAP_AUDIT_WRITE is number 29, if we had it ourselves.
        assert re.search(r"^CapEff:\s*0{8}[02]0{7}$", status, re.MULTILINE)
        assert bus.end() == 0


def test_service_manager_is_told(tmp_path: Path) -> None:
    config = write(tmp_path, listen(tmp_path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        environ = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with running(tmp_path, config, env=environ) as bus:
            assert manager.recv(100) == b"READY=1"
            bus.process.send_signal(signal.SIGHUP)
            assert manager.recv(100).startswith(b"RELOADING=1\n")
            assert manager.recv(100) == b"READY=1"
            assert bus.end() == 0
            assert manager.recv(100) == b"STOPPING=1"


FAILURES: dict[str, tuple[list[str], list[str]]] = {
    "no-listen": ([], []),
    "bad-address": (["<listen>foo</listen>"], []),
    "unknown-transport": (["<listen>foo:a=b</listen>"], []),
    "nowhere": (["<listen>unix:path=/nonexistent/bus</listen>"], []),
    "second-nowhere": (["{listen}", "<listen>unix:path=/nonexistent/bus</listen>"], []),
    "bad-option-address": (["{listen}"], ["--address=unix:"]),
    "auth": (["{listen}", "<auth>FOO</auth>"], []),
    "user": (["{listen}", "<user>nosuchuser</user>"], []),
    "pidfile": (["{listen}", "<pidfile>{folder}/there</pidfile>"], []),
    "pidfile-nowhere": (["{listen}", "<pidfile>/nonexistent/pid</pidfile>"], []),
    "pidfile-nowhere-fork": (["{listen}", "<pidfile>/nonexistent/pid</pidfile>"], ["--fork"]),
    "print-address": (["{listen}"], ["--print-address=77"]),
    "print-pid": (["{listen}"], ["--print-pid=77"]),
    "print-pid-fork": (["{listen}"], ["--print-pid=77", "--fork"]),
}


def none_runs_with(config: Path) -> bool:
    """Whether no process has this file in its command line, now or in a moment."""
    wanted = str(config).encode()

    def runs(pid: str) -> bool:
        try:
            return wanted in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    return all(gone(int(pid)) for pid in os.listdir("/proc") if pid.isdecimal() and runs(pid))


def fails(command: list[str], folder: Path, name: str) -> tuple[int, str, list[str]]:
    """Status and complaint of a daemon that cannot start, and the files it leaves."""
    folder.mkdir()
    (folder / "there").touch()
    elements, options = FAILURES[name]
    words = {"listen": listen(folder), "folder": str(folder)}
    config = write(folder, *(element.format(**words) for element in elements))
    done = subprocess.run(
        [*command, f"--config-file={config}", *options],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == ""
    # dbus-daemon, when it forks, at times complains of its own epoll set as well.
    noise = ("fd limit", "Error when trying to remove fd")
    said = filter(None, done.stderr.splitlines())
    lines = [line for line in said if not any(words in line for words in noise)]
    assert len(lines) == 1, lines
    line = lines[0]
    match = re.fullmatch(r"dbus(?:-daemon)?\[\d+\]: Failed to start message bus: (.*)", line)
    assert match, line
    text = match.group(1).replace(str(folder), "FOLDER")
    assert none_runs_with(config), "a daemon was left behind"
    return done.returncode, text, sorted(os.listdir(folder))


@pytest.mark.skipif(REFERENCE is None, reason="no dbus-daemon to compare with")
@pytest.mark.parametrize("name", FAILURES)
def test_fails_as_dbus_daemon(tmp_path: Path, name: str) -> None:
    assert REFERENCE is not None
    ours = fails(JITNEY, tmp_path / "ours", name)
    assert ours == fails([REFERENCE], tmp_path / "theirs", name)
    assert ours[0] == 1
    assert ours[2] == ["bus.conf", "there"]


def test_missing_configuration(tmp_path: Path) -> None:
    done = subprocess.run(
        [*JITNEY, f"--config-file={tmp_path}/none", "--print-address"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    text = (
        f'Failed to start message bus: Failed to open "{tmp_path}/none": No such file or directory'
    )
    assert done.stderr.endswith(f"]: {text}\n")


def test_broken_configuration_says_where(tmp_path: Path) -> None:
    config = write(tmp_path, listen(tmp_path), "<nonsense/>")
    done = subprocess.run(
        [*JITNEY, f"--config-file={config}", "--print-address"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{config}:3" in done.stderr


class FakeService:
    """A bus that does nothing but end, or fail to reload."""

    def __init__(self, daemon: Daemon, loop: Any) -> None:
        self.closed = 0
        self.offers = [listener.offer for listener in daemon.listeners]
        loop.call_soon(daemon.quit)

    def reload(self, config: object) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1


def test_what_a_builder_finds(tmp_path: Path) -> None:
    config = write(tmp_path, listen(tmp_path), "<auth>EXTERNAL</auth>", "<allow_anonymous/>")
    service = run_with(config, FakeService)
    assert service.closed == 1
    (offer,) = service.offers
    assert offer is not None
    assert offer.mechanisms == {b"EXTERNAL"}
    assert offer.allow_anonymous
    assert not (tmp_path / "bus").exists()


class Buggy(FakeService):
    """A bus that cannot reload the first time, for no reason that anybody foresaw."""

    def __init__(self, daemon: Daemon, loop: Any) -> None:
        self.daemon = daemon
        self.loop = loop
        self.reloads = 0
        loop.call_soon(daemon.reload_soon)

    def reload(self, config: object) -> None:
        self.reloads += 1
        if self.reloads == 1:
            self.loop.call_soon(self.daemon.reload_soon)
            raise RuntimeError("a bug")
        self.loop.call_soon(self.daemon.quit)

    def close(self) -> None: ...


class Impatient(FakeService):
    """A bus that is told to reload while a child has something older to tell."""

    def __init__(self, daemon: Daemon, loop: Any) -> None:
        self.daemon = daemon
        self.loop = loop
        self.types: list[str | None] = []
        loop.call_soon(self.begin)

    def begin(self) -> None:
        self.write("older")
        self.daemon.reload_soon()
        reading = self.daemon._reading
        assert reading is not None
        select.select([reading], [], [], 30)  # it has read the file, and tells us so
        self.write("newer")
        self.daemon.reload()
        self.daemon.reload_soon()

    def write(self, word: str) -> None:
        config = Path(self.daemon.options.config_file)
        config.write_text(re.sub("<type>.*</type>", f"<type>{word}</type>", config.read_text()))

    def reload(self, config: Any) -> None:
        self.types.append(config.type)
        if len(self.types) == 2:
            self.loop.call_soon(self.daemon.quit)

    def close(self) -> None: ...


F = TypeVar("F", bound=FakeService)


def run_with(config: Path, kind: Callable[[Daemon, Any], F]) -> F:
    """A daemon around a bus of this kind, until that ends it."""
    built: list[F] = []

    def build(daemon: Daemon, loop: Any) -> F:
        built.append(kind(daemon, loop))
        return built[0]

    old = {number: signal.getsignal(number) for number in (1, 2, 13, 15)}
    try:
        assert Daemon(Options(config_file=str(config)), build).run() == 0
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    (service,) = built
    return service


def test_a_bug_in_one_reload_is_no_end_of_reloading(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, "<type>first</type>", listen(tmp_path))
    assert run_with(config, Buggy).reloads == 2
    assert "RuntimeError: a bug" in capfd.readouterr().err


def test_an_older_configuration_does_not_come_after_a_newer_one(tmp_path: Path) -> None:
    # Once for ReloadConfig, once for the last signal; what the first child read is forgotten.
    config = write(tmp_path, "<type>first</type>", listen(tmp_path))
    assert run_with(config, Impatient).types == ["newer", "newer"]
