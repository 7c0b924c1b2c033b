"""Passed: the socket of an endpoint, made and bound by who asks for the endpoint.

Invariant: the bus listens on a descriptor of its own, which it closes with the endpoint; the file
that the socket is bound to is that of who made it, and stays. What cannot be listened on is refused
before anything has changed.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from ..address import escape
from ..errors import INVALID_ARGS, DBusError
from ..listen import Server
from ..process import from_errno

if TYPE_CHECKING:
    from jitney.broker.message import Message


def server_of(msg: Message, place: Any) -> Server:
    """A server on the descriptor that is number `place` (an `h`) of a message. Raises DBusError."""
    passed = list(msg.fds) if msg.fds is not None else []
    if not isinstance(place, int) or place >= len(passed):
        raise DBusError(INVALID_ARGS, "There is no such file descriptor in the message")
    try:
        # The message's own is closed with the message.
        fd = os.dup(passed[place])
    except OSError as error:
        raise from_errno(error, "The passed socket cannot be kept") from error
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise DBusError(INVALID_ARGS, "What was passed is not a socket") from None
    try:
        return Server([sock], f"unix:{_bound(sock)}")
    except OSError as error:
        sock.close()
        raise DBusError(INVALID_ARGS, f"The passed socket is no good: {error.strerror}") from None
    except DBusError:
        sock.close()
        raise


def _bound(sock: socket.socket) -> str:
    """Where clients find it. From there a kernel tells who they are, which is no matter of where
    the socket was bound: a launcher's mount namespace need not be ours."""
    # The kinds first: whether others are listened on is not asked everywhere.
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise DBusError(INVALID_ARGS, "The passed socket is not a unix stream socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise DBusError(INVALID_ARGS, "Nobody listens on the passed socket")
    sock.setblocking(False)
    sock.set_inheritable(False)
    name = sock.getsockname()
    if isinstance(name, bytes):  # Python's way to give an abstract name
        return f"abstract={escape(os.fsdecode(name[1:]))}"
    return f"path={escape(name)}"
