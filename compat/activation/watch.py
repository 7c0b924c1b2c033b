"""Tells the bus that something changed in a directory: by inotify, or by looking now and then.

Invariant: a directory that cannot be watched costs a warning at most, never more; and however many
files a package upgrade touches, `changed()` is called at once for the first and then at most once
every QUIET seconds.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable, Iterable

from .. import ways

IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_DELETE = 0x200
IN_Q_OVERFLOW = 0x4000
EVENTS = IN_CLOSE_WRITE | IN_DELETE | IN_MOVED_TO | IN_MOVED_FROM

_EVENT = struct.Struct("iIII")  # descriptor, mask, cookie, bytes of the name that follows

QUIET = 0.1
"""Seconds during which further changes are only noted."""

PERIOD = 2.0
"""Seconds between two looks where nobody tells us."""

LOOKED_AT = (".service", ".conf")
"""What directories are read for. Another file, a log of ours perhaps, may change all the time."""

_Look = frozenset[tuple[str, int, int, int]] | None


class DirectoryWatch:
    """inotify's way. Watches directories on an event loop.

    `watched`: path -> watch descriptor of those that really are watched; directories that do not
    exist are left out without a word.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        changed: Callable[[], None],
        log: Callable[[str, str], None],
    ) -> None:
        self.loop = loop
        self.changed = changed
        self.log = log
        self.watched: dict[str, int] = {}
        self.fd = -1
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer: asyncio.TimerHandle | None = None
        self._again = False

    def watch(self, paths: Iterable[str]) -> None:
        """Watches exactly these directories from now on."""
        wanted = dict.fromkeys(paths)
        if self.fd < 0 and not self._open():
            return
        for path in [path for path in self.watched if path not in wanted]:
            self._forget(self.watched.pop(path))
        for path in wanted:
            # Also for those watched already: a directory may have been replaced by another.
            old = self.watched.pop(path, -1)
            number = self._libc.inotify_add_watch(self.fd, os.fsencode(path), EVENTS)
            code = ctypes.get_errno()
            if number >= 0:
                self.watched[path] = number
            if number != old and old >= 0:
                self._forget(old)
            if number >= 0:
                continue
            if code != errno.ENOENT:
                reason = os.strerror(code)
                self.log("warning", f"Cannot setup inotify for '{path}'; error '{reason}'")

    def pending(self) -> bool:
        """Whether something happened that `changed()` was not called for yet."""
        if self._again:
            return True
        if self.fd < 0:
            return False
        size = bytearray(4)
        try:
            fcntl.ioctl(self.fd, termios.FIONREAD, size)
        except OSError:
            return True  # then who asks had better look for himself
        return any(size)

    def close(self) -> None:
        """Stops; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.fd >= 0:
            self.loop.remove_reader(self.fd)
            os.close(self.fd)
            self.fd = -1
        self.watched.clear()

    def _open(self) -> bool:
        fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            reason = os.strerror(ctypes.get_errno())
            self.log("warning", f"Cannot initialize inotify: {reason}")
            return False
        try:
            self.loop.add_reader(fd, self._read)
        except OSError as error:
            os.close(fd)
            self.log("warning", f"Cannot watch inotify: {os.strerror(error.errno or 0)}")
            return False
        self.fd = fd
        return True

    def _forget(self, number: int) -> None:
        # Two paths may be one directory, which has one descriptor.
        if number not in self.watched.values():
            self._libc.inotify_rm_watch(self.fd, number)

    def _read(self) -> None:
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return
        # Which file it was does not matter: everything is read again, as dbus-daemon does.
        pos = 0
        seen = 0
        while pos < len(data):
            _, mask, _, size = _EVENT.unpack_from(data, pos)
            seen |= mask
            pos += _EVENT.size + size
        if not seen & (EVENTS | IN_Q_OVERFLOW):
            return  # only that a watch has ended
        if self._timer is not None:
            self._again = True
        else:
            self._report()

    def _report(self) -> None:
        self._timer = self.loop.call_later(QUIET, self._quiet)
        self.changed()

    def _quiet(self) -> None:
        self._timer = None
        if self._again:
            self._again = False
            self._report()


class LookingWatch:
    """The same without inotify: looks every PERIOD seconds, and when it is asked."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        changed: Callable[[], None],
        log: Callable[[str, str], None],
    ) -> None:
        self.loop = loop
        self.changed = changed
        self.watched: dict[str, _Look] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, paths: Iterable[str]) -> None:
        """Watches exactly these directories from now on."""
        looks = {}
        for path in paths:
            # As it was seen last: it may have changed while all was read again.
            look = self.watched.get(path)
            looks[path] = look if look is not None else _look(path)
        self.watched = {path: look for path, look in looks.items() if look is not None}
        self._wait()

    def pending(self) -> bool:
        """Whether something happened that `changed()` was not called for yet."""
        return any(_look(path) != look for path, look in self.watched.items())

    def close(self) -> None:
        """Stops; may be called twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.watched.clear()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(PERIOD, self._again) if self.watched else None

    def _again(self) -> None:
        self._timer = None
        if self.pending():
            for path in self.watched:
                self.watched[path] = _look(path)
            self.changed()
        self._wait()


def _look(path: str) -> _Look:
    """Names in a directory, and what changes when a file is written; None if it is gone."""
    try:
        with os.scandir(path) as entries:
            seen = []
            for entry in entries:
                if not entry.name.endswith(LOOKED_AT):
                    continue
                info = entry.stat()
                seen.append((entry.name, info.st_ino, info.st_mtime_ns, info.st_size))
    except OSError:
        return None
    return frozenset(seen)


def directory_watch(
    loop: asyncio.AbstractEventLoop,
    changed: Callable[[], None],
    log: Callable[[str, str], None],
) -> DirectoryWatch | LookingWatch:
    """Whichever of the two this system can have."""
    return (DirectoryWatch if ways.INOTIFY else LookingWatch)(loop, changed, log)
