"""Loader: files, the files they include, and what comes of all of them together.

Invariant: each file is opened and read once, also where its path is a one-time thing such as
/proc/self/fd/5; what is read is what is checked. `load()` either returns a whole configuration or
raises ConfigError; broken files in an `<includedir>` alone are skipped, with a warning, so that
one bad package does not keep the machine from booting (dbus-daemon's choice).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from . import dirs, xml
from .draft import Draft
from .errors import ConfigError
from .model import Config, ServiceDir
from .reader import FileReader, join
from .users import UserDatabase

# A chain of includes longer than this is a circle in disguise.
MAX_DEPTH = 50
MAX_INCLUDED = 2000
"""How many files one configuration may include, each as often as it does."""


def load(
    path: str,
    *,
    environ: Mapping[str, str] | None = None,
    create_dirs: bool = True,
    whole: bool = True,
) -> Config:
    """The configuration in the file `path` and all that it includes. Raises ConfigError.

    `environ` (the process's own by default) says where the standard session directories are.
    `create_dirs`: make the one for transient services if it is asked for and missing.
    `whole`: no bus could run with it if it has no address to listen at."""
    loader = Loader(os.environ if environ is None else environ, create_dirs)
    draft = loader.read(path, line=0, by=path)
    if whole and not draft.listen:
        raise ConfigError(
            path, 0, "Configuration file needs one or more <listen> elements giving addresses"
        )
    return draft.finish()


class Loader:
    """One run of `load()`: what does not depend on the file."""

    def __init__(self, environ: Mapping[str, str], create_dirs: bool) -> None:
        self.environ = environ
        self.create_dirs = create_dirs
        self.users = UserDatabase()
        # The included files that are being read, outermost first; the main file is not among them.
        self.stack: list[str] = []
        self.included = 0

    def read(self, path: str, line: int, by: str) -> Draft:
        """Reads one file, which `by` names in its line `line`."""
        data = read_file(path, line, by)
        draft = Draft()
        draft.files.append(path)
        xml.parse(data, path, FileReader(path, draft, self))
        return draft

    def include(self, path: str, into: Draft, line: int, by: str, *, missing_ok: bool) -> None:
        entry = directory_entry(path)
        if entry in self.stack or len(self.stack) >= MAX_DEPTH:
            raise ConfigError(by, line, f"Circular inclusion of file '{path}'")
        # Directories whose files include each other's are no circle, and have n! ways through them.
        self.included += 1
        if self.included > MAX_INCLUDED:
            raise ConfigError(by, line, f"More than {MAX_INCLUDED} files are included")
        self.stack.append(entry)
        try:
            into.take_over(self.read(path, line, by))
        except ConfigError as error:
            if not (missing_ok and error.missing):
                raise
            if (error.file, error.line) != (by, line):
                # Something that this file includes is missing. dbus-daemon does without the file.
                into.warn(error.file, error.line, f"{error.text}, so '{path}' is ignored")
        finally:
            self.stack.pop()

    def include_dir(self, path: str, into: Draft, line: int, by: str) -> None:
        try:
            names = os.listdir(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(
                by, line, f'Failed to read directory "{path}": {error.strerror}'
            ) from None
        # dbus-daemon takes them as the file system gives them; a fixed order is one of those.
        for name in sorted(names):
            if not name.endswith(".conf"):
                continue
            file = join(path, name)
            try:
                self.include(file, into, line, by, missing_ok=True)
            except ConfigError as error:
                into.warn(
                    error.file,
                    error.line,
                    f"Encountered error '{error.text}' while parsing '{file}'",
                )
        into.include_dirs.append(path)

    def add_session_dirs(self, into: Draft, line: int, by: str) -> None:
        try:
            transient = dirs.transient(self.environ, self.create_dirs)
        except dirs.Unavailable as reason:
            transient = None
            into.warn(by, line, f"Unable to set up transient service directory: {reason}")
        if transient is not None:
            into.add_service_dir(
                ServiceDir(path=transient, watched=False, strict=True, file=by, line=line)
            )
        for path in dirs.session(self.environ):
            into.add_service_dir(ServiceDir(path=path, file=by, line=line))


def directory_entry(path: str) -> str:
    """What a path names, however it is spelled. The file itself may be a link: then relative paths
    in it mean something else each time, so it is not the same."""
    directory, name = os.path.split(path)
    return os.path.join(os.path.realpath(directory), name)


def read_file(path: str, line: int, by: str) -> bytes:
    """The bytes of a configuration file. Only regular files, and none beyond `xml.MAX_SIZE`."""
    try:
        # O_NONBLOCK: a FIFO in an included directory must not hang the bus.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else errno.EINVAL
        reason = os.strerror(number or errno.EIO)
        raise ConfigError(
            by, line, f'Failed to open "{path}": {reason}', missing=number == errno.ENOENT
        ) from None
    try:
        status = os.fstat(fd)
        if status.st_size > xml.MAX_SIZE:
            raise ConfigError(by, line, f'File size {status.st_size} of "{path}" is too large.')
        if not stat.S_ISREG(status.st_mode):
            if status.st_size:
                raise ConfigError(by, line, f'"{path}" is not a regular file')
            return b""  # as dbus-daemon: a pipe or device counts as an empty file
        data = bytearray()
        while len(data) < status.st_size:
            piece = os.read(fd, status.st_size - len(data))
            if not piece:
                raise ConfigError(by, line, f'Error reading "{path}": it became shorter meanwhile')
            data += piece
        return bytes(data)
    except OSError as error:
        raise ConfigError(by, line, f'Error reading "{path}": {error.strerror}') from None
    finally:
        os.close(fd)
