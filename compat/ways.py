"""Ways: what only Linux has, and what is done without it.

Invariant: this is the only place that asks which system this is. Each facility has one name here,
with Linux's way where there is one and a portable way beside it; who uses it knows one of them.

JITNEY_WAYS=posix takes the portable ways on Linux as well, so that they can be tested. They are
for plain Python: what is compiled of the transport (`sysio.pyx`) is Linux's way itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import selectors
import sys
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from typing import Any

IN, OUT, ERROR, HANG_UP = 1, 4, 8, 16
"""poll()'s bits, which are epoll's as well, on all systems known."""
LOOK = 0.2
"""Seconds between looks at those of whom only the end is of interest, on another's loop."""


def _is_linux() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    if os.environ.get("JITNEY_WAYS") != "posix":
        return True
    found = find_spec("jitney.compat.sysio")
    return bool(found and found.origin and found.origin.endswith(tuple(EXTENSION_SUFFIXES)))


LINUX = _is_linux()
ABSTRACT_SOCKETS = LINUX
INOTIFY = LINUX
PEER_PIDS = LINUX or sys.platform == "darwin"
"""Whether the system tells which process has connected."""
KQUEUE = not LINUX and hasattr(select, "kqueue")


# Waiting for many descriptors


class PollSet:
    """poll(), in the form of `select.epoll`.

    A descriptor is to be unregistered before it is closed; poll() does not see it go."""

    def __init__(self, poll: Any = None) -> None:
        self._poll = poll if poll is not None else select.poll()
        self._have: dict[int, int] = {}
        self._first = 0
        self._loop: Any = None
        self._ready: Any = None
        self._look: Any = None

    def register(self, fd: int, events: int) -> None:
        self._poll.register(fd, events)
        self._has(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._poll.modify(fd, events)
        self._has(fd, events)

    def unregister(self, fd: int) -> None:
        try:
            self._poll.unregister(fd)
        except KeyError as error:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
        self._have.pop(fd, None)
        if self._loop is not None:
            self._watch(fd, 0)

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        """(descriptor, bits) of at most `most` ready within `timeout` seconds (-1: for ever)."""
        found: list[tuple[int, int]] = self._poll.poll(-1 if timeout < 0 else timeout * 1000)
        if len(found) > most:
            # The next time it is the turn of others.
            self._first = (self._first + most) % len(found)
            found = found[self._first :] + found[: self._first]
        return found[:most]

    def close(self) -> None:
        """Nothing of the kernel's was held."""

    def watch(self, loop: Any, ready: Callable[[], object]) -> None:
        """The loop watches what the set has, each by itself, for the same events."""
        self._loop, self._ready = loop, ready
        for fd, events in self._have.items():
            self._has(fd, events)

    def unwatch(self) -> None:
        for fd in self._have:
            self._watch(fd, 0)
        if self._look is not None:
            self._look.cancel()
        self._loop = self._ready = self._look = None

    def _has(self, fd: int, events: int) -> None:
        self._have[fd] = events
        if self._loop is not None:
            self._watch(fd, events)
            if not events and self._look is None:
                self._look_later()

    def _watch(self, fd: int, events: int) -> None:
        if events & IN:
            self._loop.add_reader(fd, self._ready)
        else:
            self._loop.remove_reader(fd)
        if events & OUT:
            self._loop.add_writer(fd, self._ready)
        else:
            self._loop.remove_writer(fd)

    def _look_later(self) -> None:
        # No loop can watch for the end alone.
        self._look = self._loop.call_later(LOOK, self._look_now)

    def _look_now(self) -> None:
        self._look = None
        if 0 in self._have.values():
            self._look_later()
            self._ready()


class KqueueSet:
    """kqueue, in the form of `select.epoll`."""

    def __init__(self, kqueue: Any = None) -> None:
        self.own = kqueue is None
        self._kqueue = select.kqueue() if kqueue is None else kqueue  # type: ignore[attr-defined]
        self._have: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        self._change(fd, 0, events)

    def modify(self, fd: int, events: int) -> None:
        self._change(fd, self._have.get(fd, 0), events)

    def unregister(self, fd: int) -> None:
        if fd not in self._have:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._change(fd, self._have[fd], 0)
        del self._have[fd]

    def _change(self, fd: int, old: int, new: int) -> None:
        changes = []
        for bit, number in (
            (IN, select.KQ_FILTER_READ),  # type: ignore[attr-defined]
            (OUT, select.KQ_FILTER_WRITE),  # type: ignore[attr-defined]
        ):
            if (old ^ new) & bit:
                action = select.KQ_EV_ADD if new & bit else select.KQ_EV_DELETE  # type: ignore[attr-defined]
                changes.append(select.kevent(fd, number, action))  # type: ignore[attr-defined]
        if changes:
            self._kqueue.control(changes, 0, 0)
        self._have[fd] = new

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        found: dict[int, int] = {}
        for event in self._kqueue.control(None, most, None if timeout < 0 else timeout):
            bits = OUT if event.filter == select.KQ_FILTER_WRITE else IN  # type: ignore[attr-defined]
            # What is left may still be read, so the end alone is no hang-up, as with epoll.
            if event.flags & select.KQ_EV_EOF and bits == OUT:  # type: ignore[attr-defined]
                bits |= HANG_UP
            found[event.ident] = found.get(event.ident, 0) | bits
        return list(found.items())

    def fileno(self) -> int:
        """For a loop that watches the set as one descriptor."""
        return int(self._kqueue.fileno())

    def close(self) -> None:
        if self.own:
            self._kqueue.close()


Selector: type[selectors.BaseSelector] = (
    selectors.EpollSelector
    if LINUX
    else selectors.KqueueSelector  # type: ignore[attr-defined]
    if KQUEUE
    else selectors.PollSelector
)
"""What asyncio's loop waits with."""


def poll_set(shared: Any = None) -> Any:
    """A set of descriptors to wait for, level-triggered: one's own, or that which `shared`, what
    `share()` gave, is."""
    if LINUX:
        return select.epoll() if shared is None else select.epoll.fromfd(os.dup(shared))
    return KqueueSet(shared) if KQUEUE else PollSet(shared)


def watch(held: Any, loop: Any, ready: Callable[[], object]) -> None:
    """Has a loop of any kind call `ready()` when something in a set of one's own is. A set of the
    kernel's is one descriptor to a loop; poll() is none."""
    if isinstance(held, PollSet):
        held.watch(loop, ready)
    else:
        loop.add_reader(held.fileno(), ready)


def unwatch(held: Any, loop: Any) -> None:
    """The loop has nothing to do with the set any more."""
    if isinstance(held, PollSet):
        held.unwatch()
    else:
        loop.remove_reader(held.fileno())


def share(selector: Any) -> Any:
    """What others need to put descriptors of theirs into a selector's set."""
    return selector.fileno() if LINUX else selector._selector


# Who is at the other end


def peer_ids(fd: int) -> tuple[int, int, int] | None:
    """(pid or 0, uid, gid) of the process that connected, without Linux's SO_PEERCRED."""
    function = _getpeereid()
    if function is None:
        return None
    uid, gid = ctypes.c_uint32(), ctypes.c_uint32()
    if function(fd, ctypes.byref(uid), ctypes.byref(gid)) != 0:
        return None
    return _peer_pid(fd), uid.value, gid.value


def _getpeereid() -> Any:
    # On Linux it is in a library of its own, which stands in for tests.
    for library in (None, "libbsd.so.0"):
        try:
            return ctypes.CDLL(library).getpeereid
        except (OSError, AttributeError):
            continue
    return None


_SOL_LOCAL, _LOCAL_PEERPID = 0, 2


def _peer_pid(fd: int) -> int:
    """Only macOS tells it apart from Linux."""
    if sys.platform != "darwin":
        return 0
    pid, size = ctypes.c_int(), ctypes.c_uint(4)
    failed = ctypes.CDLL(None).getsockopt(
        fd, _SOL_LOCAL, _LOCAL_PEERPID, ctypes.byref(pid), ctypes.byref(size)
    )
    return 0 if failed else pid.value


# What this process is


def is_setuid() -> bool:
    """Whether it could be somebody else, as macOS tells it: without the saved ids."""
    uids = os.getresuid() if hasattr(os, "getresuid") else (os.getuid(), os.geteuid())
    gids = os.getresgid() if hasattr(os, "getresgid") else (os.getgid(), os.getegid())
    return len({*uids}) > 1 or len({*gids}) > 1


def processors() -> int:
    """How many it may run on; elsewhere how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# What it has open


def open_fds() -> list[int] | None:
    """Numbers of the open descriptors; None where the system does not list them. The one that was
    used to list them may be among them."""
    try:
        return [int(name) for name in os.listdir("/proc/self/fd" if LINUX else "/dev/fd")]
    except (OSError, ValueError):
        return None
