"""Brokers are started, measured and ended, and nothing of them is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from started import EVERY, Caller, broker, gone, nothing_left
from waiting import until

from jitney.bench import brokers, proc, syscalls, wire
from jitney.bench.config import Config
from jitney.bench.running import BrokerError

NO_VERSION = "test $1 = --version && exit;"


def ping(caller: Caller, times: int) -> None:
    for _ in range(times):
        caller.call(b"GetNameOwner", b"s", wire.string(caller.name))


def shared_objects(pid: int) -> set[str]:
    """Compiled modules of jitney's in a process."""
    return set(re.findall(r"/jitney/\S+\.so", Path(f"/proc/{pid}/maps").read_text()))


@EVERY
def test_starts_answers_and_is_gone(name: str) -> None:
    chosen = broker(name)
    assert re.match(r"\d", chosen.version)
    with nothing_left():
        with chosen.start() as running:
            caller = Caller(running.path)
            ping(caller, 1)
            caller.close()
            pids = running.pids()
            assert pids[0] == running.pid
            assert 0 < running.startup_seconds < 60
            around = [*pids, *running._helpers()]
        assert gone(around)
        running.stop()


@EVERY
def test_figures_are_there_and_grow(name: str) -> None:
    with broker(name).start() as running:
        caller = Caller(running.path)
        before = running.cpu_seconds(), running.switches()
        ping(caller, 200)
        assert running.cpu_seconds() > before[0]
        assert running.switches() > before[1]
        assert 0 < running.private_kb() <= running.pss_kb() <= running.rss_kb()
        assert running.peak_kb() >= running.rss_kb() * 0.9
        running.reset_peak()
        assert running.peak_kb() > 0
        caller.close()


@EVERY
def test_two_thousand_connections_of_one_user(name: str) -> None:
    with broker(name).start() as running:
        before = running.rss_kb()
        callers = [Caller(running.path) for _ in range(2000)]
        assert len({caller.name for caller in callers}) == 2000
        assert running.rss_kb() > before
        for caller in callers:
            caller.close()


@EVERY
def test_many_rules_are_taken(name: str) -> None:
    with broker(name).start(Config(rules=6000)) as running:
        caller = Caller(running.path)
        ping(caller, 5)
        caller.close()


@EVERY
def test_is_bound_to_its_cpus(name: str) -> None:
    cpu = max(os.sched_getaffinity(0))
    with broker(name).start(cpus={cpu}) as running:
        for thread in proc.threads(running.pids()):
            assert os.sched_getaffinity(thread) == {cpu}
        everywhere = os.sched_getaffinity(0)
        running.pin(everywhere)
        for thread in proc.threads(running.pids()):
            assert os.sched_getaffinity(thread) == everywhere


@EVERY
def test_system_calls_are_counted(name: str) -> None:
    how, reason = syscalls.method()
    if not how:
        pytest.skip(reason)
    with broker(name).start() as running:
        caller = Caller(running.path)
        few, said = syscalls.syscalls(running, lambda: ping(caller, 10))
        many, _ = syscalls.syscalls(running, lambda: ping(caller, 200))
        caller.close()
    assert few is not None, said
    assert many is not None
    assert said == how
    # One at a time, each call is at least awaited, read and answered.
    assert many >= 2 * 200
    assert many > few


def test_system_calls_are_not_counted_where_nothing_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    syscalls.method.cache_clear()
    try:
        how, reason = syscalls.method()
    finally:
        syscalls.method.cache_clear()
    assert how == ""
    assert reason == "perf is not installed, strace is not installed"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1234,,raw_syscalls:sys_enter,987,100.00,,", 1234),
        ("# started\n\n<not counted>,,raw_syscalls:sys_enter,0,100.00,,", 0),
        ("<not supported>,,raw_syscalls:sys_enter,0,100.00,,", None),
    ],
)
def test_perfs_output(text: str, count: int | None) -> None:
    if count is None:
        with pytest.raises(syscalls.CountError):
            syscalls._perf_count(text)
    else:
        assert syscalls._perf_count(text) == count


def test_straces_output() -> None:
    table = (
        " 99.00 0.1 5 200 1 recvmsg\n------ -- --\n100.00    0.000192           6   229   1 total\n"
    )
    assert syscalls._strace_count(table) == 229
    assert syscalls._strace_count("") == 0


def test_time_of_ended_children_counts() -> None:
    before = proc.cpu_ns([os.getpid()])
    code = "import time; sum(range(8_000_000)); print(time.process_time_ns())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    grown = proc.cpu_ns([os.getpid()]) - before
    assert grown > int(done.stdout) / 2


def test_pure_is_pure_and_compiled_is_compiled() -> None:
    with broker("jitney-pure").start() as running:
        assert not shared_objects(running.pid)
    with broker("jitney").start() as running:
        assert shared_objects(running.pid)


def test_ends_with_an_exception() -> None:
    with nothing_left(), pytest.raises(KeyboardInterrupt), broker("jitney-pure").start():
        raise KeyboardInterrupt


def test_ends_when_we_are_killed() -> None:
    script = (
        "from jitney.bench import brokers\n"
        "running = brokers.find(['jitney-pure'])[0].start()\n"
        "print(running.pid, running.folder, flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as bench:
        assert bench.stdout is not None
        pid, folder = bench.stdout.readline().split()
        bench.kill()
    assert gone([int(pid)])
    # Nobody was left to take it away.
    for path in Path(folder).iterdir():
        path.unlink()
    Path(folder).rmdir()


def test_a_stubborn_one_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitney.bench.running.GRACE", 0.3)
    stubborn = f"{NO_VERSION} trap '' TERM; {sys.executable} -m jitney.bench.pure $*; sleep 60"
    with nothing_left():
        with brokers.find([f'stubborn=sh -c "{stubborn}" sh'])[0].start() as running:
            pids = running.pids()
            assert len(pids) == 2
        assert gone(pids)


@pytest.mark.parametrize("command", ["true", "sh -c 'echo because >&2; exit 1'"])
def test_what_ends_at_once_is_an_error(command: str) -> None:
    with nothing_left(), pytest.raises(BrokerError, match="ended while it started"):
        brokers.find([f"odd={command}"])[0].start()


def test_what_never_listens_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitney.bench.running.READY_TIMEOUT", 0.2)
    with nothing_left(), pytest.raises(BrokerError, match="answers nobody"):
        brokers.find([f'slow=sh -c "{NO_VERSION} sleep 30" sh'])[0].start()


def test_one_that_dies_is_not_alive() -> None:
    with broker("jitney-pure").start() as running:
        assert running.alive()
        os.kill(running.pid, signal.SIGKILL)
        until(lambda: not running.alive(), "it is dead")
        assert running.pids() == []


@pytest.mark.parametrize("name", ["nobody", "other=/nonexistent/program", "other="])
def test_unknown_brokers_are_refused(name: str) -> None:
    with pytest.raises(LookupError, match=name):
        brokers.find([name])


def test_any_other_by_its_command() -> None:
    given = f"mine={sys.executable} -m jitney.compat"
    (mine,) = brokers.find([given])
    assert mine.name == "mine"
    assert mine.version.startswith("D-Bus Message Bus Daemon")
    with mine.start() as running:
        Caller(running.path).close()


def test_asking_for_a_version_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitney.bench.brokers._PATIENCE", 0.2)
    with nothing_left():
        (slow,) = brokers.find(['slow=sh -c "echo 1.0; sleep 30; true"'])
    assert slow.version == "1.0"
