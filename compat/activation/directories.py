"""Which names the service files in the configured directories provide.

Invariant: `Services.names` has one entry for a name, that of the first directory in order that
provides it and, inside a directory, of the file called after the name before all others. A file
that cannot be read or makes no sense provides nothing and disturbs nobody.

Like dbus-daemon, a look-up looks at the disk again: a known name's file must still be what it was,
and an unknown name means reading the directories once more. Directories that inotify watches (see
`watch`) are spared most of that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from .desktop import DesktopFileError, ServiceFile, load

SUFFIX = ".service"
SETTLED_NS = 2_000_000_000
"""A directory changed less than this long before it was read may change again unnoticed: the
clock of its modification time is that coarse on some file systems."""

Log = Callable[[str, str], None]
Stamp = tuple[int, int, int]


class ServiceDir(Protocol):
    """A place for service files, as configured (`config.model.ServiceDir` is one).

    `strict`: a file must be called `NAME.service`; `watched`: its changes make the bus read its
    configuration again (a transient directory's do not, it is only looked at when asked for).
    """

    @property
    def path(self) -> str: ...
    @property
    def strict(self) -> bool: ...
    @property
    def watched(self) -> bool: ...


class Watch(Protocol):
    """Something that notices changes in directories: `watch.DirectoryWatch`."""

    @property
    def watched(self) -> Container[str]: ...

    def pending(self) -> bool:
        """Whether something happened that nobody acted upon yet."""


@dataclass(frozen=True, slots=True)
class Service:
    """A name that can be started: what its file says, and which file that was."""

    file: ServiceFile
    path: str
    stamp: Stamp

    @property
    def name(self) -> bytes:
        return self.file.name


@dataclass(slots=True)
class _Directory:
    place: ServiceDir
    files: dict[str, Service | None] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    stamp: Stamp | None = None  # of the directory itself, once it has settled


def _stamp(info: os.stat_result) -> Stamp:
    return info.st_mtime_ns, info.st_size, info.st_ino


def _shown(path: str) -> str:
    return os.fsencode(path).decode(errors="replace")


class Services:
    """The names that service files provide.

    `names`: name -> Service, brought up to date by `find()` and `refresh()`; `helper`: a set-uid
    helper starts the services, which finds a file by its name only; `watch`: spares reading the
    directories that it watches, may be None.
    """

    def __init__(
        self,
        dirs: Iterable[ServiceDir],
        log: Log,
        helper: bool = False,
        watch: Watch | None = None,
    ) -> None:
        self.log = log
        self.helper = helper
        self.watch = watch
        self.directories = [_Directory(place) for place in dirs]
        self.names: dict[bytes, Service] = {}
        self.refresh()

    def find(self, name: bytes) -> Service | None:
        """The service that provides `name` now, or None."""
        service = self.names.get(name)
        if service is not None:
            try:
                if _stamp(os.stat(service.path)) == service.stamp:
                    return service
            except OSError:
                pass
            # The file is gone or another one.
            self._distrust()
        self.refresh()
        return self.names.get(name)

    def refresh(self) -> None:
        """Reads every directory that may have changed."""
        if self.watch is not None and self.watch.pending():
            self._distrust()
        changed = False
        for directory in self.directories:
            changed = self._scan(directory) or changed
        if not changed:
            return
        self.names = {}
        for directory in self.directories:
            found = [service for service in directory.files.values() if service is not None]
            found.sort(key=lambda service: not _called_after(service.path, service.name))
            for service in found:
                self.names.setdefault(service.name, service)

    def _distrust(self) -> None:
        for directory in self.directories:
            directory.stamp = None

    def _scan(self, directory: _Directory) -> bool:
        """Reads one directory; whether what it provides may be something else now."""
        path = directory.place.path
        before = time.time_ns()
        try:
            own = _stamp(os.stat(path))
            if own == directory.stamp and self.watch is not None and path in self.watch.watched:
                return False
            with os.scandir(path) as entries:
                names = sorted(entry.name for entry in entries if entry.name.endswith(SUFFIX))
        except OSError:
            # Not every service directory needs to exist.
            own = (0, 0, 0)
            names = []
        changed = False
        stamps = {}
        files = {}
        for name in names:
            full = f"{path}/{name}"
            try:
                now = _stamp(os.stat(full))
            except OSError:
                continue  # gone in the meantime, or a dangling link
            stamps[name] = now
            if now == directory.stamps.get(name):
                files[name] = directory.files[name]
            else:
                changed = True
                files[name] = self._load(directory.place, full, now)
        changed = changed or len(files) != len(directory.files)
        directory.files = files
        directory.stamps = stamps
        directory.stamp = own if own[0] < before - SETTLED_NS else None
        return changed

    def _load(self, place: ServiceDir, path: str, stamp: Stamp) -> Service | None:
        """Reads a new or changed file; its complaints are made once for each such change."""
        try:
            service = Service(load(path), path, stamp)
        except (OSError, DesktopFileError) as error:
            self.log("info", f'Ignoring service file "{_shown(path)}": {str(error).rstrip()}')
            return None
        if not _called_after(path, service.name):
            wanted = service.name.decode() + SUFFIX
            complaint = f'Service file "{_shown(path)}" should have been named "{wanted}"'
            if place.strict:
                self.log("warning", f"{complaint}: not loading it")
                return None
            if self.helper:
                self.log("warning", f"{complaint} and will not work with system bus activation")
        return service


def _called_after(path: str, name: bytes) -> bool:
    return os.fsencode(os.path.basename(path)) == name + SUFFIX.encode()
