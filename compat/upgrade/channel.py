"""Channel: what the old process and the new one say to each other.

Invariant: a packet arrives whole or not at all, with its descriptors; whatever goes wrong is
Broken. Packets are JSON objects over a SOCK_SEQPACKET pair; docs/upgrade.md says which.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from typing import Any

Packet = dict[str, Any]

MAX_FDS = 250
"""In one packet; the kernel takes 253."""
_LARGEST = 65536


class Broken(Exception):
    """The other side is gone, silent, or says what makes no sense."""


class Channel:
    """One end. It blocks, but never longer than it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(
        self, packet: Packet, fds: list[int] | tuple[int, ...] = (), timeout: float = 5.0
    ) -> None:
        data = json.dumps(packet).encode()
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.settimeout(timeout)
        try:
            self.sock.sendmsg([data], extra, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise Broken(f"cannot be written to: {error.strerror or error}") from None

    def receive(self, timeout: float | None) -> tuple[Packet, list[int]]:
        self.sock.settimeout(timeout)
        try:
            data, control, flags, _ = self.sock.recvmsg(
                _LARGEST, socket.CMSG_SPACE(MAX_FDS * 4), getattr(socket, "MSG_CMSG_CLOEXEC", 0)
            )
        except TimeoutError:
            raise Broken(f"has said nothing for {timeout:g} seconds") from None
        except OSError as error:
            raise Broken(f"cannot be read from: {error.strerror or error}") from None
        fds = array.array("i")
        for level, kind, payload in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) & ~3])
        try:
            if not data:
                raise Broken("has ended")
            if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
                raise Broken("said more than could be received")
            packet = json.loads(data)
            if not isinstance(packet, dict):
                raise ValueError
        except (Broken, ValueError) as error:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
            if isinstance(error, Broken):
                raise
            raise Broken("says what makes no sense") from None
        return packet, list(fds)

    def close(self) -> None:
        self.sock.close()


def pair() -> tuple[Channel, socket.socket]:
    """Our end, and the one to give away."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(mine), its
