"""Places where metrics can be read, as the command line names them, and their sockets.

Invariant: metrics leave the machine nowhere: a socket in the file system for its owner alone, TCP
on loopback, or a file. Nothing here needs the event loop.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import Any

from . import errors
from .errors import DBusError

READERS = 8
"""So many may read at a time."""
_LOOPBACK = ("127.0.0.1", "[::1]")


def check(place: str) -> None:
    """Raises ValueError unless this is a place for metrics: `unix:PATH`, `textfile:PATH` or, on
    loopback alone, `tcp:127.0.0.1:PORT`."""
    kind, _, rest = place.partition(":")
    if kind in ("unix", "textfile"):
        if not os.path.isabs(rest):
            raise ValueError(f'"{place}": the path must be absolute')
    elif kind == "tcp":
        host, _, port = rest.rpartition(":")
        if host not in _LOOPBACK:
            raise ValueError(f'"{place}": only {" and ".join(_LOOPBACK)} are served by TCP')
        if not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65536):
            raise ValueError(f'"{place}": "{port}" is no port')
    else:
        raise ValueError(f'"{place}" is none of unix:PATH, tcp:127.0.0.1:PORT, textfile:PATH')


def listen(place: str) -> socket.socket | None:
    """The socket to serve; None for a text file. To be called while we may still bind everywhere.
    Raises DBusError."""
    kind, _, rest = place.partition(":")
    if kind == "textfile":
        return None
    family = socket.AF_UNIX
    address: Any = rest
    if kind == "tcp":
        host, _, port = rest.rpartition(":")
        family = socket.AF_INET if "." in host else socket.AF_INET6
        address = (host.strip("[]"), int(port))
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if kind == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.lstat(rest).st_mode):
                    os.unlink(rest)
        # What others do on the bus is not for everybody.
        before = os.umask(0o177)
        try:
            sock.bind(address)
        finally:
            os.umask(before)
        sock.listen(READERS)
    except OSError as error:
        sock.close()
        text = f"Failed to serve metrics at {place}: {error.strerror or error}"
        raise DBusError(errors.FAILED, text) from None
    sock.setblocking(False)
    return sock


def forget(place: str) -> None:
    """Takes a socket's name away, if it is still ours to take."""
    kind, _, path = place.partition(":")
    if kind == "unix":
        with contextlib.suppress(OSError):
            os.unlink(path)
