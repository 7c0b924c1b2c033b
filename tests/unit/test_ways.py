"""The portable ways do what Linux's do."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import buses
import pytest
from rawclient import RawClient
from upgrading import upgrade
from waiting import until_async

from jitney.broker import mem
from jitney.compat import ways
from jitney.compat.activation.watch import LookingWatch


class FakeKqueue:
    """As much of kqueue as is used, made of poll()."""

    def __init__(self) -> None:
        self.filters: set[tuple[int, int]] = set()

    def control(self, changes: Any, most: int, timeout: float | None) -> list[Any]:
        for event in changes or ():
            key = (event.ident, event.filter)
            if event.flags == 1:
                self.filters.add(key)
            elif key in self.filters:
                self.filters.remove(key)
            else:
                raise FileNotFoundError(2, "")
        found = []
        for fd, number in sorted(self.filters):
            poll = select.poll()
            poll.register(fd, select.POLLIN if number == -1 else select.POLLOUT)
            for _, bits in poll.poll(0):
                end = bits & (select.POLLHUP | select.POLLERR)
                found.append(SimpleNamespace(ident=fd, filter=number, flags=0x8000 if end else 0))
        return found[:most] if most else []

    def close(self) -> None:
        pass


@pytest.fixture
def _kqueue(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {
        "kqueue": FakeKqueue, "KQ_FILTER_READ": -1, "KQ_FILTER_WRITE": -2, "KQ_EV_ADD": 1,
        "KQ_EV_DELETE": 2, "KQ_EV_EOF": 0x8000,
        "kevent": lambda ident, filter, flags: SimpleNamespace(
            ident=ident, filter=filter, flags=flags
        ),
    }  # fmt: skip
    for name, value in numbers.items():
        monkeypatch.setattr(select, name, value, raising=False)


@pytest.fixture(params=["poll", "kqueue"])
def portable(request: pytest.FixtureRequest, _kqueue: None) -> Iterator[Any]:
    made = ways.PollSet() if request.param == "poll" else ways.KqueueSet()
    yield made
    made.close()


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="compared with epoll")
def test_sets_are_like_epoll(portable: Any) -> None:
    epoll = select.epoll()
    both = (epoll, portable)
    one, two = socket.socketpair()
    reading, writing = os.pipe()

    def same(change: str, *arguments: int) -> None:
        for each in both:
            getattr(each, change)(*arguments)
        theirs, ours = (sorted(each.poll(0, 256)) for each in both)
        assert ours == theirs

    same("register", one.fileno(), ways.IN)
    same("register", reading, ways.IN)
    two.send(b"x")
    same("modify", one.fileno(), ways.IN | ways.OUT)
    same("modify", one.fileno(), ways.OUT)
    same("modify", one.fileno(), 0)
    os.write(writing, b"x")
    same("modify", one.fileno(), ways.IN)
    os.read(reading, 1)
    same("unregister", one.fileno())
    assert [fd for fd, _ in portable.poll(0, 256)] == []
    for each in both:
        with pytest.raises(FileNotFoundError):
            each.unregister(writing)
    for fd in (reading, writing):
        os.close(fd)
    one.close()
    two.close()
    epoll.close()


def test_who_connected() -> None:
    if ways._getpeereid() is None:
        pytest.skip("no getpeereid() here (Debian: libbsd0)")
    one, two = socket.socketpair()
    with one, two:
        ids = ways.peer_ids(one.fileno())
        assert ids is not None
        assert ids[1:] == (os.geteuid(), os.getegid())
    assert ways.peer_ids(-1) is None


def test_open_descriptors() -> None:
    reading, writing = os.pipe()
    assert {reading, writing} <= set(ways.open_fds() or ())
    os.close(reading)
    os.close(writing)


def looking(changes: list[int]) -> LookingWatch:
    return LookingWatch(asyncio.get_running_loop(), lambda: changes.append(1), lambda *_: None)


@pytest.mark.parametrize("change", ["new", "written", "gone", "renamed", "folder", "another"])
async def test_changes_are_seen_by_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr("jitney.compat.activation.watch.PERIOD", 0.01)
    folder = tmp_path / "watched"
    folder.mkdir()
    old = folder / "old.service"
    old.write_text("a")
    changes: list[int] = []
    watch = looking(changes)
    watch.watch([str(folder), str(tmp_path / "missing")])
    assert list(watch.watched) == [str(folder)]
    await asyncio.sleep(0.05)
    assert not changes
    assert not watch.pending()
    match change:
        case "new":
            (folder / "new.conf").write_text("")
        case "written":
            old.write_text("another")
        case "gone":
            old.unlink()
        case "renamed":
            old.rename(folder / "young")
        case "folder":
            folder.rename(tmp_path / "elsewhere")
        case "another":
            # As a bus's log, which gets a line for each change that is seen.
            (folder / "log").write_text("")
            assert not watch.pending()
            old.write_text("another")
    assert watch.pending()
    await until_async(lambda: changes, "it is seen")
    assert not watch.pending()
    watch.close()
    watch.close()
    assert changes == [1]


async def test_a_change_while_all_is_read_again_is_seen(tmp_path: Path) -> None:
    watch = looking([])
    watch.watch([str(tmp_path)])
    (tmp_path / "new.conf").write_text("")
    watch.watch([str(tmp_path)])
    assert watch.pending()
    watch.close()


@pytest.fixture(params=["epoll", "poll"])
def own_set(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = ways.PollSet() if request.param == "poll" else select.epoll()
    yield made
    made.close()


async def test_a_loop_watches_what_a_set_has(own_set: Any) -> None:
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    found: list[tuple[int, int]] = []

    def ready() -> None:
        found[:] = own_set.poll(0, 256)
        if found:
            came.set()

    async def next_one() -> list[tuple[int, int]]:
        came.clear()
        await asyncio.wait_for(came.wait(), 10)
        return found

    one, two = socket.socketpair()
    three, four = socket.socketpair()
    with one, two, three, four:
        own_set.register(one.fileno(), ways.IN)
        ways.watch(own_set, loop, ready)
        own_set.register(three.fileno(), ways.IN)
        two.send(b"x")
        assert await next_one() == [(one.fileno(), ways.IN)]
        own_set.modify(one.fileno(), ways.OUT)
        assert await next_one() == [(one.fileno(), ways.OUT)]
        # Read from it no more, but for its end.
        own_set.modify(one.fileno(), 0)
        four.send(b"x")
        assert await next_one() == [(three.fileno(), ways.IN)]
        own_set.unregister(three.fileno())
        two.close()
        ((fd, bits),) = await next_one()
        assert (fd, bits & ways.HANG_UP) == (one.fileno(), ways.HANG_UP)
        own_set.modify(one.fileno(), ways.IN)
        ways.unwatch(own_set, loop)
        came.clear()
        await asyncio.sleep(0.05)
        assert not came.is_set()
        own_set.unregister(one.fileno())


def test_all_have_a_turn(own_set: Any) -> None:
    pairs = [socket.socketpair() for _ in range(7)]
    for one, two in pairs:
        own_set.register(one.fileno(), ways.IN)
        two.send(b"x")
    turns = [fd for _ in range(7) for fd, _ in own_set.poll(0, 2)]
    # Nobody reads: all are ready all the time.
    assert {turns.count(one.fileno()) for one, _ in pairs} == {2}
    for one, two in pairs:
        one.close()
        two.close()


def sleeps(pid: int) -> bool:
    """Whether it has nothing to do for a moment, within ten seconds: who is busy waits for the
    processor, and never for anything else."""
    deadline = time.monotonic() + 10
    asleep = 0
    while asleep < 10 and time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0
        time.sleep(0.01)
    return asleep == 10


BARE = """
import importlib
# In this order: later ones look at those before.
for module, gone in {
    "os": ("eventfd", "getrandom", "getres", "memfd_create", "pidfd_open", "pipe2", "posix_fadvise",
           "sched_", "setres", "splice", "EFD_", "MFD_", "O_PATH", "O_TMPFILE", "P_PIDFD"),
    "select": ("epoll", "EPOLL"),
    "fcntl": ("F_ADD_SEALS", "F_GET_SEALS", "F_SEAL_"),
    "signal": ("pidfd_",),
    "socket": ("MSG_CMSG_CLOEXEC", "SCM_CREDENTIALS", "SO_DOMAIN", "SO_PASS", "SO_PEER",
               "SO_PROTOCOL", "SOCK_CLOEXEC", "SOCK_NONBLOCK"),
}.items():
    module = importlib.import_module(module)
    for name in list(vars(module)):
        if name.startswith(gone):
            delattr(module, name)
"""
"""What Python has on Linux and not everywhere."""


@pytest.mark.skipif(mem.COMPILED, reason="what is compiled is Linux's way")
@pytest.mark.parametrize("loop", ["own", "asyncio"])
def test_a_bus_on_a_python_that_has_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loop: str
) -> None:
    """Services, reloads, upgrades, kdbus's clients: none of it needs what is not there."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("JITNEY_WAYS", "posix")
    monkeypatch.setenv("JITNEY_LOOP", "" if loop == "own" else loop)
    probe = "import os, select; print(hasattr(os, 'pipe2'), hasattr(select, 'epoll'))"
    said = subprocess.check_output([sys.executable, "-c", probe], text=True)
    if said != "False False\n":
        pytest.skip("this Python has a sitecustomize of its own")
    with buses.running(buses.jitney_command()) as bus, RawClient(bus.address) as client:
        client.hello()
        file = bus.directory / "services" / "a.service"
        file.write_text("[D-BUS Service]\nName=a.b\nExec=/bin/false\n")
        assert client.reply_to(client.driver(b"ReloadConfig")).error_name is None
        started = client.reply_to(client.driver(b"StartServiceByName", "su", "a.b", 0))
        assert str(started.error_name).endswith(".Spawn.ChildExited")
        assert upgrade(client)["upgrades"] == 1
        assert client.reply_to(client.driver(b"ListQueuedOwners", "s", "a.c")).error_name
    sockets = f"--kdbus-sockets={tmp_path}/kdbus"
    with buses.running([*buses.jitney_command(), sockets]) as bus, RawClient(bus.address) as client:
        assert client.hello()
        assert "control" in os.listdir(tmp_path / "kdbus")


@pytest.mark.skipif(mem.COMPILED, reason="what is compiled is Linux's way")
def test_a_bus_without_linux_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITNEY_WAYS", "posix")
    with (
        buses.running(buses.jitney_command()) as bus,
        RawClient(bus.address) as one,
        RawClient(bus.address) as two,
    ):
        name = one.hello()
        two.hello()
        known = two.reply_to(two.driver(b"GetConnectionCredentials", "s", name)).body[0]
        assert known.get("UnixUserID", ("u", os.geteuid())) == ("u", os.geteuid())
        if not sys.platform.startswith("linux"):
            return
        folder = f"/proc/{bus.pid}/fd"
        kinds = {os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)}
        assert not {"anon_inode:[eventpoll]", "anon_inode:inotify"} & kinds
        assert "ProcessID" not in known
        # To poll() a closed descriptor is ready all the time.
        two.close()
        one.reply_to(one.driver(b"GetId"))
        assert sleeps(bus.pid)
