"""Processes of services: what they inherit, how they end, and who hears of it."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from waiting import until_async

from jitney.compat.activation import environment, helper, journal, spawn
from jitney.compat.activation.spawn import Child, Spawner, failure
from jitney.compat.errors import DBusError

T = TypeVar("T")
PREFIX = "org.freedesktop.DBus.Error."


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    new = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop
    loop = new()
    yield loop
    loop.close()


@pytest.fixture(params=["pidfd", "thread"])
def spawner(
    request: pytest.FixtureRequest,
    loop: asyncio.AbstractEventLoop,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Spawner]:
    if request.param == "thread":

        def pidfd_open(pid: int) -> int:
            raise OSError(errno.ENOSYS, "an old kernel")

        monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    spawner = Spawner(loop)
    yield spawner
    for child in list(spawner.children.values()):
        child.kill()
        end(loop, spawner, child)
    spawner.close()


def run(loop: asyncio.AbstractEventLoop, what: Awaitable[T]) -> T:
    return loop.run_until_complete(asyncio.wait_for(what, 20))


def start(
    loop: asyncio.AbstractEventLoop,
    spawner: Spawner,
    *argv: str,
    env: dict[bytes, bytes] | None = None,
    nofile: tuple[int, int] | None = None,
    to_journal: bool = False,
) -> tuple[Child, asyncio.Future[Child]]:
    ended: asyncio.Future[Child] = loop.create_future()
    child = spawner.start(
        "org.example.A",
        [argument.encode() for argument in argv],
        {} if env is None else env,
        ended.set_result,
        nofile,
        to_journal,
    )
    return child, ended


def end(loop: asyncio.AbstractEventLoop, spawner: Spawner, child: Child) -> None:
    run(loop, until_async(lambda: not child.running, "it ends"))


def shell_output(
    loop: asyncio.AbstractEventLoop,
    spawner: Spawner,
    path: Path,
    script: str,
    nofile: tuple[int, int] | None = None,
) -> str:
    """What a shell, started like a service, writes."""
    _, ended = start(loop, spawner, "/bin/sh", "-c", f"exec >{path}; {script}", nofile=nofile)
    assert failure(run(loop, ended)) is None
    return path.read_text()


# ---- how it ends


@pytest.mark.parametrize(
    ("argv", "name", "text"),
    [
        (["/bin/sh", "-c", "exit 0"], None, None),
        (
            ["/bin/sh", "-c", "exit 3"],
            "Spawn.ChildExited",
            "Process org.example.A exited with status 3",
        ),
        (
            ["/bin/sh", "-c", "kill -11 $$"],
            "Spawn.ChildSignaled",
            "Process org.example.A received signal 11",
        ),
        (
            ["/nonexistent/program"],
            "Spawn.ExecFailed",
            "Failed to execute program org.example.A: No such file or directory",
        ),
        (
            [""],
            "Spawn.ExecFailed",
            "Failed to execute program org.example.A: No such file or directory",
        ),
        (
            ["sh"],
            "Spawn.ExecFailed",
            "Failed to execute program org.example.A: No such file or directory",
        ),
        (
            ["/"],
            "Spawn.ExecFailed",
            "Failed to execute program org.example.A: Permission denied",
        ),
        (
            ["/bin/sh", "x" * 3_000_000],
            "Spawn.ExecFailed",
            "Failed to execute program org.example.A: Argument list too long",
        ),
    ],
)
def test_end(
    loop: asyncio.AbstractEventLoop,
    spawner: Spawner,
    argv: list[str],
    name: str | None,
    text: str | None,
) -> None:
    child, ended = start(loop, spawner, *argv)
    assert spawner.children == {child.pid: child}
    assert run(loop, ended) is child
    error = failure(child)
    if name is None:
        assert error is None
    else:
        assert error is not None
        assert (error.name, error.text) == (PREFIX + name, text)
    assert spawner.children == {}
    assert (child.report, child.pidfd) == (-1, -1)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_file_that_is_no_program(
    loop: asyncio.AbstractEventLoop, spawner: Spawner, tmp_path: Path
) -> None:
    path = tmp_path / "program"
    path.write_text("exit 0\n")
    path.chmod(0o755)
    _, ended = start(loop, spawner, str(path))
    error = failure(run(loop, ended))
    assert error is not None
    assert error.text == "Failed to execute program org.example.A: Exec format error"


def test_kill(loop: asyncio.AbstractEventLoop, spawner: Spawner) -> None:
    child, ended = start(loop, spawner, "/bin/sleep", "1000")
    child.kill()
    assert run(loop, ended).status == signal.SIGKILL
    # Its pid may be anybody's now.
    child.pid = os.getpid()
    child.kill()


def test_nobody_cares_any_more(loop: asyncio.AbstractEventLoop, spawner: Spawner) -> None:
    child, ended = start(loop, spawner, "/bin/sh", "-c", "exit 1")
    child.on_exit = None
    end(loop, spawner, child)
    assert not ended.done()
    assert spawner.children == {}


def test_many_at_once(loop: asyncio.AbstractEventLoop, spawner: Spawner) -> None:
    started = [start(loop, spawner, "/bin/sh", "-c", f"exit {code}") for code in range(30)]
    run(loop, asyncio.gather(*(ended for _, ended in started)))
    codes = [os.waitstatus_to_exitcode(child.status or 0) for child, _ in started]
    assert codes == list(range(30))


def test_other_children_are_left_alone(loop: asyncio.AbstractEventLoop, spawner: Spawner) -> None:
    with subprocess.Popen(["/bin/sh", "-c", "exit 5"]) as other:
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        _, ended = start(loop, spawner, "/bin/sh", "-c", "exit 3")
        run(loop, ended)
    assert other.returncode == 5


def test_child_that_somebody_else_reaped(loop: asyncio.AbstractEventLoop, spawner: Spawner) -> None:
    child, ended = start(loop, spawner, "/bin/sh", "-c", "exit 3")
    os.waitpid(child.pid, 0)
    error = failure(run(loop, ended))
    assert error is not None
    assert (error.name, error.text) == (
        PREFIX + "Failed",
        "Process org.example.A exited, reason unknown",
    )


def test_a_wait_that_fails(
    loop: asyncio.AbstractEventLoop, spawner: Spawner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that is told that there is no such child is not believed."""

    def untrue(*_: int) -> None:
        raise ChildProcessError(errno.ECHILD, "no child processes")

    monkeypatch.setattr(os, "waitid", untrue)
    child, ended = start(loop, spawner, "/bin/sh", "-c", "sleep 0.2; exit 3")
    assert failure(run(loop, ended)) is not None
    assert not child.running


def test_close_lets_children_live(loop: asyncio.AbstractEventLoop, spawner: Spawner) -> None:
    child, ended = start(loop, spawner, "/bin/sleep", "1000")
    spawner.close()
    assert (child.report, child.pidfd) == (-1, -1)
    os.kill(child.pid, 0)
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    child.running = False
    run(loop, asyncio.sleep(0))
    assert not ended.done()


# ---- when it can't even begin


@pytest.mark.parametrize(
    ("call", "name", "text"),
    [
        ("fork", "Spawn.ForkFailed", "Failed to fork (Resource temporarily unavailable)"),
        (
            "pipe",
            "Spawn.Failed",
            (
                "Failed to create pipe for communicating with child process "
                "(Resource temporarily unavailable)"
            ),
        ),
    ],
)
def test_no_process(
    loop: asyncio.AbstractEventLoop,
    spawner: Spawner,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    name: str,
    text: str,
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EAGAIN, "no")

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(DBusError) as caught:
        start(loop, spawner, "/bin/true")
    assert (caught.value.name, caught.value.text) == (PREFIX + name, text)
    assert spawner.children == {}
    assert set(os.listdir("/proc/self/fd")) == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


# ---- what it gets


def test_arguments_and_environment(
    loop: asyncio.AbstractEventLoop, spawner: Spawner, tmp_path: Path
) -> None:
    _, ended = start(
        loop, spawner,
        "/bin/sh", "-c", f'printf "%s|" "$0" "$@" >{tmp_path}/args; exec env >{tmp_path}/env',
        "é", "", "a b",
        env={b"A": b"\xff=1", b"PATH": os.environb[b"PATH"]},
    )  # fmt: skip
    run(loop, ended)
    assert (tmp_path / "args").read_text() == "é||a b|"
    variables = dict(line.split(b"=", 1) for line in (tmp_path / "env").read_bytes().splitlines())
    # What remains is the shell's own.
    assert variables.pop(b"A") == b"\xff=1"
    assert set(variables) <= {b"PATH", b"PWD", b"OLDPWD", b"SHLVL", b"_"}


def test_no_descriptor_of_the_bus(
    loop: asyncio.AbstractEventLoop, spawner: Spawner, tmp_path: Path
) -> None:
    left, right = socket.socketpair()
    with left, right:
        left.set_inheritable(True)
        fds = shell_output(
            loop, spawner, tmp_path / "out", "cd /proc/$$/fd; for f in *; do readlink $f; done; :"
        ).split()
    # 0, 1 and 2, and what the shell may have made of its redirection.
    assert fds[0] == "/dev/null"
    assert fds[1] == str(tmp_path / "out")
    assert not [fd for fd in fds if fd.startswith(("socket:", "pipe:", "anon_inode:"))]


def test_no_descriptor_of_the_bus_without_proc(
    loop: asyncio.AbstractEventLoop,
    spawner: Spawner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def listdir(path: str) -> list[str]:
        raise OSError(errno.ENOENT, "no /proc")

    monkeypatch.setattr(os, "listdir", listdir)
    test_no_descriptor_of_the_bus(loop, spawner, tmp_path)


def test_signals(loop: asyncio.AbstractEventLoop, spawner: Spawner, tmp_path: Path) -> None:
    def handler(*args: object) -> None: ...

    before = signal.signal(signal.SIGUSR1, handler)
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        status = shell_output(loop, spawner, tmp_path / "out", "exec cat /proc/self/status")
        lines = dict(line.split(":\t", 1) for line in status.splitlines())
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGUSR2, ignored)
    assert int(lines["SigBlk"], 16) == 0
    mask = int(lines["SigIgn"], 16)

    def is_ignored(number: int) -> bool:
        return bool(mask >> (number - 1) & 1)

    assert is_ignored(signal.SIGPIPE)  # as dbus-daemon leaves it
    assert is_ignored(signal.SIGUSR2)  # as whoever started us wants it
    assert not is_ignored(signal.SIGXFSZ)  # Python's own habit
    assert not is_ignored(signal.SIGUSR1)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_stays_in_session_and_group(
    loop: asyncio.AbstractEventLoop, spawner: Spawner, tmp_path: Path
) -> None:
    text = shell_output(loop, spawner, tmp_path / "out", "read l </proc/$$/stat; echo $l")
    after_name = text.rpartition(")")[2].split()
    assert (int(after_name[2]), int(after_name[3])) == (os.getpgrp(), os.getsid(0))


def test_limit_of_open_files(
    loop: asyncio.AbstractEventLoop, spawner: Spawner, tmp_path: Path
) -> None:
    script = "ulimit -Sn; ulimit -Hn"
    now = resource.getrlimit(resource.RLIMIT_NOFILE)
    path = tmp_path / "out"
    assert shell_output(loop, spawner, path, script, (100, 200)) == "100\n200\n"
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == now
    # One that cannot be had is no reason not to start.
    assert shell_output(loop, spawner, path, script, (200, 100)).split()[0] == str(now[0])


@pytest.mark.parametrize(
    ("before", "after"), [(b"-500\n", b"0500\n"), (b"0\n", b"0\n"), (b"300\n", b"300\n")]
)
def test_out_of_memory_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes, after: bytes
) -> None:
    """A negative score is taken off, any other stays. The kernel's file takes writes anywhere."""
    path = tmp_path / "oom_score_adj"
    path.write_bytes(before)
    monkeypatch.setattr(spawn, "OOM_SCORE", str(path))
    spawn._reset_oom_score()
    assert path.read_bytes() == after
    monkeypatch.setattr(spawn, "OOM_SCORE", str(tmp_path / "none"))
    spawn._reset_oom_score()


def test_output_to_the_journal(
    loop: asyncio.AbstractEventLoop,
    spawner: Spawner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = journal.stream
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "journal"))
        listener.listen()
        monkeypatch.setattr(
            journal, "stream", lambda name, level: real(name, level, str(tmp_path / "journal"))
        )
        _, ended = start(loop, spawner, "/bin/sh", "-c", "echo out; echo err >&2", to_journal=True)
        run(loop, ended)
        streams = []
        for _ in range(2):
            with listener.accept()[0] as peer, peer.makefile("rb") as file:
                streams.append(file.read())
    assert streams == [
        b"org.example.A\n\n6\n0\n0\n0\n0\nout\n",
        b"org.example.A\n\n4\n0\n0\n0\n0\nerr\n",
    ]


def test_no_journal(tmp_path: Path) -> None:
    assert journal.stream("a", journal.INFO, str(tmp_path / "none")) is None
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(tmp_path / "busy"))
        busy.listen(0)
        first.connect(str(tmp_path / "busy"))
        # A journal that does not keep up is not waited for.
        assert journal.stream("a", journal.INFO, str(tmp_path / "busy")) is None


# ---- environment


def test_environment_is_not_the_units() -> None:
    ours = dict.fromkeys((b"NOTIFY_SOCKET", b"LISTEN_FDS", b"LISTEN_PID", b"PATH"), b"1")
    assert environment.inherited(ours) == {b"PATH": b"1"}


@pytest.mark.parametrize(
    ("bus_type", "more"),
    [
        (None, {}),
        ("session", {b"DBUS_SESSION_BUS_ADDRESS": b"unix:path=/a,guid=1"}),
        ("system", {b"DBUS_SYSTEM_BUS_ADDRESS": b"unix:path=/a,guid=1"}),
        ("other", {}),
    ],
)
def test_environment_says_where_the_bus_is(bus_type: str | None, more: dict[bytes, bytes]) -> None:
    base = {b"A": b"b", b"DBUS_STARTER_ADDRESS": b"old"}
    expected = base | {b"DBUS_STARTER_ADDRESS": b"unix:path=/a,guid=1"} | more
    if bus_type is not None:
        expected[b"DBUS_STARTER_BUS_TYPE"] = bus_type.encode()
    assert environment.for_service(base, "unix:path=/a,guid=1", bus_type) == expected
    assert base[b"DBUS_STARTER_ADDRESS"] == b"old"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), st.text("a=b"))
def test_every_variable_suits_execve(key: str, value: str) -> None:
    """What D-Bus lets through as a key must not keep services from starting."""
    variables: dict[bytes, bytes] = {}
    environment.update(variables, key.encode(), value.encode())
    lines = [name + b"=" + text for name, text in variables.items()]
    assert lines == ([f"{key}={value}".encode()] if not f"{key}=".startswith("=") else [])
    for name in variables:
        assert name
        assert b"=" not in name


# ---- the set-uid helper


def test_meanings_of_the_helpers_exit_codes() -> None:
    names = [helper.failure(code).name.removeprefix(PREFIX) for code in range(1, 13)]
    assert names == [
        "Spawn.ChildExited",
        "NoMemory",
        "Spawn.ConfigInvalid",
        "Spawn.FailedToSetup",
        "Spawn.ServiceNotValid",
        "Spawn.ServiceNotFound",
        "Spawn.PermissionsInvalid",
        "Spawn.PermissionsInvalid",
        "Spawn.ExecFailed",
        "InvalidArgs",
        "Spawn.ChildSignaled",
        "Spawn.ChildExited",
    ]
    assert helper.failure(12).text == "Launch helper exited with unknown return code 12"
