"""Output of a started service as a stream to the systemd journal.

Invariant: a journal that is absent, slow or full costs the stream, never a wait: the service then
writes where the bus writes.
"""

from __future__ import annotations

import socket

SOCKET = "/run/systemd/journal/stdout"
WARNING, INFO = 4, 6
"""Syslog levels of what goes to standard error and to standard output."""


def stream(identifier: str, level: int, path: str = SOCKET) -> socket.socket | None:
    """A connected stream whose lines are logged under `identifier`, or None without a journal."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        sock.setblocking(False)
        sock.connect(path)
        sock.shutdown(socket.SHUT_RD)
        # Identifier, unit, level, "<N>" prefixes are not levels, forward to nowhere else.
        sock.send(f"{identifier}\n\n{level}\n0\n0\n0\n0\n".encode())
        sock.setblocking(True)  # a property of the open file, which the service is to find ordinary
    except OSError:
        sock.close()
        return None
    return sock
