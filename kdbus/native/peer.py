"""Peer: one connected socket, and Opened: the handle that it is, or is one more way to.

Invariant: a peer reads only while it owes nothing: who does not read its answers is not read from.
What goes out, goes out in order, each frame with its descriptors, which are let go of when the
kernel has taken them. An error on a socket is noted (`front.doom`) and ends it later, for it may
come up in the middle of what somebody else asked for.
"""

from __future__ import annotations

import array
import errno
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from jitney.broker.kdbus.domain import Domain
from jitney.broker.kdbus.endpoint import Endpoint

from ..commands import Handle
from ..request import Request
from .caller import SocketCaller, SocketCreds
from .lines import Paused, Stalled
from .memory import FrameMemory
from .pool import MappedPool
from .purse import Purse
from .quick import Framed
from .slots import HandleSlots, PeerSlots, Waker

OWED_MAX = 4096
"""Frames that a socket may be owed before it is given up."""

_RIGHTS = socket.SCM_RIGHTS
_SOL = socket.SOL_SOCKET
_FLAGS = int(getattr(socket, "MSG_NOSIGNAL", 0) | socket.MSG_DONTWAIT)


class NativeTransport(Waker):
    """A handle's pool, and how it hears of news."""

    def __init__(self, front: Any, handle: Opened) -> None:
        self.front = front
        self.handle = handle
        self.pool: MappedPool | None = None

    def memory(self, size: int) -> MappedPool:
        self.pool = MappedPool(size)
        return self.pool


class Opened(Handle, HandleSlots):
    """A handle with its sockets, of which it lives as long as the `first`.

    `fed`: it gets messages without asking, as many as `credit` says. `told`: WAKE was sent and not
    answered yet. `numbers`: by offset of a message, where its descriptors' numbers go. `channels`:
    its sockets that we made."""

    def __init__(self, front: Any, domain: Domain, endpoint: Endpoint | None, creds: SocketCreds):
        super().__init__(domain, endpoint, creds)
        self.transport: NativeTransport = NativeTransport(front, self)
        self.first: Peer | None = None
        self.sockets = 0
        self.channels: set[Peer] = set()
        self.token = b""
        self.fed = False
        self.credit = 0
        self.told = False
        self.noted = False
        self.numbers: dict[int, list[int]] = {}


class Peer(PeerSlots):
    """`calls`: synchronous SENDs that wait, by serial. `ending`: to be shut down when it has got
    what it is owed."""

    def __init__(
        self, front: Any, sock: socket.socket, handle: Opened, creds: SocketCreds, purse: Purse
    ) -> None:
        self.front = front
        self.sock = sock
        self.fd = sock.fileno()
        self.handle = handle
        self.creds = creds
        self.memory = FrameMemory(purse)
        self.payload = Framed(self.memory)
        self.calls: dict[int, Request] = {}
        self.owed: deque[tuple[Any, Sequence[Any]]] = deque()
        self.used = False
        self.ending = False
        self.dead = False
        # The last round in which it had its turn.
        self.turned = 0
        self.paused: Paused | Stalled | None = None
        # Of a stream: what was read of the next frame.
        self.part = bytearray()
        self.part_fds: list[int] = []
        self.part_said: Any = None
        self.part_lost = False
        # The last sender, and what the kernel said of it.
        self.caller: SocketCaller | None = None
        # The same, once it is known that there is nothing special about it.
        self.plain_caller: SocketCaller | None = None
        self.said: bytes | None = None

    @property
    def is_first(self) -> bool:
        return self.handle.first is self

    def send(self, data: Any, handles: Sequence[Any] = ()) -> bool:
        """Sends a frame, or keeps it for later; `handles` are let go of. Whether all descriptors
        went (or will go) with it."""
        if self.dead:
            self.let_go(handles)
            return True
        if self.owed:
            self.owed.append((data, handles))
            if len(self.owed) > OWED_MAX:
                self.front.doom(self)
            return True
        try:
            done = self.write(data, handles)
        except (BlockingIOError, InterruptedError):
            self.owed.append((data, handles))
            self.front.rearm(self)
            return True
        except OSError as error:
            self.let_go(handles)
            if handles and error.errno in (errno.ETOOMANYREFS, errno.EMFILE, errno.ENOMEM):
                return False
            self.front.doom(self)
            return True
        self.let_go(handles)
        if done < len(data):
            self.owed.append((memoryview(data)[done:], ()))
            self.front.rearm(self)
        return True

    def write(self, data: Any, handles: Sequence[Any]) -> int:
        if not handles:
            return self.sock.send(data, _FLAGS)
        fds = array.array("i", [handle.fd for handle in handles])
        return self.sock.sendmsg((data,), ((_SOL, _RIGHTS, fds),), _FLAGS)

    def let_go(self, handles: Sequence[Any]) -> None:
        for handle in handles:
            handle.drop()

    def flush(self) -> bool:
        """Sends what is owed; whether that is all."""
        owed = self.owed
        while owed:
            data, handles = owed[0]
            try:
                done = self.write(data, handles)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                self.front.doom(self)
                return False
            owed.popleft()
            self.let_go(handles)
            if done < len(data):
                owed.appendleft((data[done:], ()))
        return True

    def close(self) -> None:
        self.dead = True
        while self.owed:
            self.let_go(self.owed.popleft()[1])
        outbox = self.memory.outbox
        if outbox is not None:
            self.memory.outbox = None
            outbox.drop()
        self.sock.close()
