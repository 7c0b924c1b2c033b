"""Standard directories of service files: `<standard_session_servicedirs/>` and its system sister.

Invariant: the order is dbus-daemon's, first found wins; only the transient directory is created,
and only below a runtime directory that is ours.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Mapping

SESSION = "dbus-1/services"
SYSTEM = "dbus-1/system-services"
DATA_DIR = "/usr/share"


class Unavailable(Exception):
    """There is no place for transient services; the text says why, as dbus-daemon does."""


def transient(environ: Mapping[str, str], create: bool) -> str | None:
    """The directory for services that last as long as the login session; None if there is no
    runtime directory. Raises Unavailable if there is one that cannot be used."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime is None:
        return None
    _owned("XDG_RUNTIME_DIR", runtime, create=False)
    for below in ("dbus-1", SESSION):
        _owned("XDG_RUNTIME_DIR subdirectory", f"{runtime}/{below}", create)
    return f"{runtime}/{SESSION}"


def session(environ: Mapping[str, str]) -> list[str]:
    """Where a session bus looks for services: the XDG base directories."""
    home = environ.get("XDG_DATA_HOME")
    if home is None:
        home = _join(_home(), ".local/share")
    shared = environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share")
    return _spread(f"{home}:{shared}:{DATA_DIR}", SESSION)


def system() -> list[str]:
    """Where the system bus looks for services: what the administrator put there comes first.

    dbus-daemon 1.14 does not know /etc and /run yet, and neither does its set-uid helper, which
    starts nothing from there."""
    return _spread(f"/etc:/run:/usr/local/share:/usr/share:{DATA_DIR}:/lib", SYSTEM)


def _spread(paths: str, below: str) -> list[str]:
    stripped = (path.strip(" \t\n\r") for path in paths.split(":"))
    return [_join(path, below) for path in stripped if path]


def _join(path: str, below: str) -> str:
    return path + below if path.endswith("/") else f"{path}/{below}"


def _home() -> str:
    # As dbus-daemon: the user database, not $HOME, which is only the fallback.
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except (KeyError, OSError):
        return os.environ.get("HOME", "/")


def _owned(label: str, path: str, create: bool) -> None:
    """Checks, or makes, a directory that is ours alone to write. Guards against accidents, such as
    an environment left over by su, not against attacks: whoever sets our environment is trusted."""
    try:
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
        found = os.stat(path)
    except OSError as error:
        raise Unavailable(f'{label} "{path}" not available: {error.strerror}') from None
    if not stat.S_ISDIR(found.st_mode):
        raise Unavailable(f'{label} "{path}" is not a directory')
    if found.st_uid != os.geteuid():
        raise Unavailable(
            f'{label} "{path}" is owned by uid {found.st_uid}, not our uid {os.geteuid()}'
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unavailable(f'{label} "{path}" can be written by others (mode 0{found.st_mode:o})')
