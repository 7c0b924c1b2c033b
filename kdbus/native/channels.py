"""Channels: more sockets to a handle, for whoever holds its first one.

A client sends one end of a pair of sockets; what comes back on the other is a socket of ours, so
that nobody else ever holds our end. Unlike ATTACH this needs no token, path or right to the node.

Invariant: the pair is only written to if the sender of the frame made it, once and without waiting.
"""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from jitney.broker.kdbus.errors import KdbusError

from . import frames as f
from .caller import UCRED, SocketCreds, connected
from .peer import Opened, Peer

_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0) | socket.MSG_DONTWAIT
_RIGHTS = socket.SCM_RIGHTS
_SOL = socket.SOL_SOCKET


def pair_of(peer: Peer, said: Any) -> tuple[socket.socket, SocketCreds]:
    """The client's end, and who made it: the sender of the frame, or EPERM."""
    fd = os.dup(peer.memory.take(0).fd)
    try:
        back = socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise KdbusError(errno.ENOTSOCK) from error
    try:
        if back.family != socket.AF_UNIX:
            raise KdbusError(errno.ENOTSOCK)
        creds = connected(back)
        # A socket could lead to somebody who takes our word for more than the client's.
        pid = UCRED.unpack(said)[0] if said is not None else 0
        if not pid or creds.process != pid:
            raise KdbusError(errno.EPERM)
    except BaseException:
        back.close()
        raise
    return back, creds


def open_channel(
    peer: Peer,
    said: Any,
    serial: int,
    join: Callable[[socket.socket, Opened, SocketCreds], Peer],
) -> None:
    """Makes one, and gives it away."""
    back, creds = pair_of(peer, said)
    with back:
        handle = peer.handle
        error = errno.EMFILE
        if handle.sockets < f.SOCKETS_MAX:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    joined = join(ours, handle, creds)
                except KdbusError as refused:
                    ours.close()
                    error = refused.errno
                else:
                    handle.channels.add(joined)
                    data = f.answer(f.CHANNEL, serial, 0, 1)
                    rights = array.array("i", [theirs.fileno()])
                    try:
                        back.sendmsg((data,), ((_SOL, _RIGHTS, rights),), _FLAGS)
                    except OSError:
                        joined.front.doom(joined)
                    return
        try:
            back.send(f.answer(f.CHANNEL, serial, error), _FLAGS)
        except OSError:
            pass
