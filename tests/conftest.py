"""What all tests share: which build of jitney they run against, and a bus of their own.

Invariant: tests see jitney only as it was installed (`jitney.broker`, `jitney.compat`), never
by the names of the folders; with JITNEY_EXPECT=compiled or =pure, nothing runs unless that is
what was installed; JITNEY_TESTS=system leaves out what is not near the system. This folder itself
is importable (`pythonpath` in pyproject.toml).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import buses
import hypothesis
import leftout
import nearby
import pytest
from rawclient import RawClient
from waiting import comes

# A busy machine fails nothing.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

LOOSE = ("/dev/null", "/dev/shm/", "/memfd:", "anon_inode:[pidfd]")


def _installed() -> tuple[str, str]:
    """ "compiled" or "pure", and the file that says so."""
    file = importlib.import_module("jitney.broker.mem").__file__ or ""
    return ("compiled" if file.endswith(tuple(EXTENSION_SUFFIXES)) else "pure"), file


def pytest_configure() -> None:
    # A shell has what it runs in the background ignore them, and all that is started from there.
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if default else signal.SIG_DFL)
    leftout.ask_for_memfds()
    expected = os.environ.get("JITNEY_EXPECT")
    kind, file = _installed()
    if expected and expected != kind:
        raise pytest.UsageError(f"JITNEY_EXPECT={expected}, but {file} is {kind}")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    chosen = os.environ.get("JITNEY_TESTS", "all")
    if chosen not in ("all", "system"):
        raise pytest.UsageError(f"JITNEY_TESTS={chosen} is neither all nor system")
    if chosen == "system" and collection_path.match("test_*.py"):
        return None if nearby.is_near(collection_path) else True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leftout.leave_out(items)


def pytest_report_header() -> str:
    return "jitney: {}, {}".format(*_installed())


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """Descriptors without an object that owns them (they came with messages, or a client under
    test was given them) do not add up over thousands of tests: select() ends at 1024."""
    before = _descriptors(os.getpid()).keys()
    yield
    gc.collect()
    for fd, kind in _descriptors(os.getpid()).items():
        if fd not in before and kind.startswith(LOOSE):
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.fixture
def daemon() -> Iterator[buses.Daemon]:
    """A session bus of jitney's, which must end the test with no more descriptors than before.

    JITNEY_DAEMON in the environment puts another daemon in its place."""
    with buses.running(buses.jitney_command()) as bus:
        # What a first connection opens for good (name service, logs) is no leak.
        with RawClient(bus.address) as client:
            client.hello()
            with RawClient(bus.address) as second:
                second.hello()
                second.reply_to(second.driver(b"GetId"))
                both = _descriptors(bus.pid)
        without = len(both) - 2
        comes(lambda: len(_descriptors(bus.pid)) <= without)
        before = set(_descriptors(bus.pid))
        yield bus
        left = _left_over(bus.pid, before)
        assert not left, f"the daemon still holds {left}"


def _descriptors(pid: int) -> dict[int, str]:
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
        except FileNotFoundError:
            continue
    return found


def _left_over(pid: int, before: set[int]) -> dict[int, str]:
    """The descriptors beyond `before` that stay open."""
    comes(lambda: not _descriptors(pid).keys() - before)
    now = _descriptors(pid)
    return {fd: now[fd] for fd in now.keys() - before}
