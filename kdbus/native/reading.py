"""Reading: frames out of sockets.

Invariant: a turn of a socket is TURN frames at most, and ends where it owes something. A frame is
handed over whole, with the descriptors and the credentials that came with it; what is no frame ends
the socket. The descriptors of what is not handed over are closed.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from . import frames as f
from .peer import Peer
from .purse import Purse
from .rounds import TURN

_ROOM = socket.CMSG_SPACE(4 * f.FDS_MAX) + socket.CMSG_SPACE(12)
_RIGHTS = socket.SCM_RIGHTS
_CREDENTIALS = getattr(socket, "SCM_CREDENTIALS", -1)
_SOL = socket.SOL_SOCKET
# Plain numbers: those of `socket` are enums, which are slow to calculate with.
_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_TRUNC, _CTRUNC = int(socket.MSG_TRUNC), int(socket.MSG_CTRUNC)


class Reading:
    """What `front.Front` does to read; its attributes are the front's."""

    view: memoryview
    strangers: Purse

    def serve(
        self, peer: Peer, view: memoryview, fds: Sequence[int], said: Any, lost_fds: bool
    ) -> None:
        raise NotImplementedError

    def lose(self, peer: Peer) -> None:
        raise NotImplementedError

    def drain_stream(self, peer: Peer) -> None:
        """The same where frames have no ends of their own."""
        for _ in range(TURN):
            if peer.owed or peer.dead or peer.paused is not None or not self.read_frame(peer):
                return
            view, peer.part = memoryview(peer.part), bytearray()
            fds, peer.part_fds = peer.part_fds, []
            lost, peer.part_lost = peer.part_lost, False
            self.serve(peer, view, fds, peer.part_said, lost)

    def read_frame(self, peer: Peer) -> bool:
        """Reads what there is of a frame, and nothing beyond its end: so what comes along with its
        bytes is its own. Whether it is whole."""
        part = peer.part
        while True:
            size = f.HEAD
            if len(part) >= f.HEAD:
                size = int.from_bytes(part[:4], "little")
                if size < f.HEAD or size > f.FRAME_MAX:
                    self.lose(peer)
                    return False
                if len(part) == size:
                    return True
            try:
                data, ancillary, flags, _ = peer.sock.recvmsg(size - len(part), _ROOM, _CLOEXEC)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                data, ancillary, flags = b"", [], 0
            said = None
            for level, kind, rights in ancillary:
                if kind == _CREDENTIALS:
                    said = rights
                elif kind == _RIGHTS and level == _SOL:
                    peer.part_fds += self.numbers(rights)
            peer.part_lost = peer.part_lost or bool(flags & _CTRUNC)
            # A frame that several have a part in is nobody's.
            mixed = len(part) > 0 and said != peer.part_said
            if not data or mixed or len(peer.part_fds) > f.FDS_MAX:
                self.lose(peer)
                return False
            peer.part_said = said
            part += data

    def numbers(self, data: bytes) -> list[int]:
        return memoryview(data)[: len(data) & ~3].cast("i").tolist()

    def close_fds(self, fds: Sequence[int], peer: Peer | None = None) -> None:
        if fds:
            # The last close of somebody else's file may last.
            purse = peer.memory.purse if peer is not None else self.strangers
            purse.close_all(fds)
