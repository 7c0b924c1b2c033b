"""A plain client of docs/native.md, written after that page alone: blocking sockets, no threads.

Invariant: nothing of our own server is imported here; what it shares with the format is the page.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
from collections import deque
from pathlib import Path
from typing import Any

from kdbuskit import Errno, Got, command, item, message, text, u64

from jitney.broker.kdbus import constants as c

HEAD = struct.Struct("<IHHIIII")
OPS = {
    "BUS_MAKE": 0x00, "ENDPOINT_MAKE": 0x10, "ENDPOINT_UPDATE": 0x11, "HELLO": 0x80, "UPDATE": 0x81,
    "BYEBYE": 0x82, "FREE": 0x83, "CONN_INFO": 0x84, "BUS_CREATOR_INFO": 0x85, "LIST": 0x86,
    "SEND": 0x90, "RECV": 0x91, "NAME_ACQUIRE": 0xA0, "NAME_RELEASE": 0xA1, "MATCH_ADD": 0xB0,
    "MATCH_REMOVE": 0xB1, "OPEN": 0x100, "ATTACH": 0x101, "OUTBOX": 0x102, "NUMBERS": 0x103,
    "WOKEN": 0x104, "CANCEL": 0x105, "GRANT": 0x106, "POOL": 0x107, "CHANNEL": 0x108,
    "SETTLE": 0x109,
}  # fmt: skip
WAKE, MESSAGE = 0x8200, 0x8201
OUTBOX = 1 << 63
POOL = 1 << 20
QUIET = 1


class Frame:
    """What came from the bus."""

    def __init__(self, data: bytes, fds: list[int]) -> None:
        (
            self.length, self.op, self.flags, self.serial, self.error, self.n_fds, self.zero
        ) = HEAD.unpack_from(data)  # fmt: skip
        self.body = data[24:]
        self.fds = fds
        assert self.length == len(data)
        assert self.flags == self.zero == 0
        assert self.n_fds == len(fds)


def request(
    op: int,
    body: bytes = b"",
    serial: int = 1,
    flags: int = 0,
    frees: tuple[int, ...] = (),
    credit: int = 0,
    tid: int = 0,
) -> bytes:
    length = 24 + 8 * len(frees) + len(body)
    head = HEAD.pack(length, op, flags, serial, len(frees), credit, tid)
    return head + u64(*frees) + body


class Socket:
    """One socket to a node. `pushed`: frames that nobody asked for and nobody has read yet."""

    def __init__(self, path: Path, kind: int = socket.SOCK_SEQPACKET, wait: float = 20.0) -> None:
        self.sock = socket.socket(socket.AF_UNIX, kind)
        self.stream = kind == socket.SOCK_STREAM
        self.sock.settimeout(wait)
        self.sock.connect(str(path))
        self.serial = 0
        self.pushed: deque[Frame] = deque()

    def raw(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], rights)

    def put(self, name: str, body: bytes = b"", fds: tuple[int, ...] = (), **more: Any) -> int:
        """Sends a request; its serial."""
        self.serial += 1
        self.raw(request(OPS[name], body, self.serial, **more), fds)
        return self.serial

    def get(self) -> Frame:
        """The next frame. EOFError at the end."""
        room = socket.CMSG_SPACE(4 * 253)
        data, ancillary, flags, _ = self.sock.recvmsg(24 if self.stream else 1 << 16, room)
        if not data:
            raise EOFError
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        fds = array.array("i")
        for _, _, rights in ancillary:
            fds.frombytes(rights)
        if self.stream:
            while len(data) < 24 or len(data) < struct.unpack_from("<I", data)[0]:
                want = struct.unpack_from("<I", data)[0] if len(data) >= 24 else 24
                more = self.sock.recv(want - len(data))
                if not more:
                    raise EOFError
                data += more
        return Frame(data, fds.tolist())

    def answer(self, serial: int) -> Frame:
        """The answer to this request; what was pushed before it is kept."""
        while True:
            frame = self.get()
            if frame.serial == serial and frame.op not in (WAKE, MESSAGE):
                return frame
            self.pushed.append(frame)

    def ask(self, name: str, body: bytes = b"", fds: tuple[int, ...] = (), **more: Any) -> Frame:
        return self.answer(self.put(name, body, fds, **more))

    def do(self, name: str, body: bytes = b"", fds: tuple[int, ...] = (), **more: Any) -> Frame:
        """A request that must succeed."""
        frame = self.ask(name, body, fds, **more)
        if frame.error:
            raise Errno(frame.error)
        assert frame.op == OPS[name] | 0x8000
        return frame

    def push(self) -> Frame:
        """The next frame that nobody asked for."""
        return self.pushed.popleft() if self.pushed else self.get()

    def quiet(self, seconds: float = 0.05) -> bool:
        """Whether nothing comes. Behind an answered request it is no matter of time."""
        before = self.sock.gettimeout()
        self.sock.settimeout(seconds)
        try:
            self.pushed.append(self.get())
        except TimeoutError:
            pass
        finally:
            self.sock.settimeout(before)
        return not self.pushed

    def close(self) -> None:
        self.sock.close()


class Bus:
    """A bus, as long as it is open."""

    def __init__(self, root: Path, name: str = "test", flags: int = c.ACCESS_WORLD) -> None:
        self.control = Socket(root / "control")
        full = f"{os.geteuid()}-{name}"
        items = text(c.ITEM_MAKE_NAME, full.encode()) + item(c.ITEM_BLOOM_PARAMETER, u64(64, 1))
        self.control.do("BUS_MAKE", command("BUS_MAKE", flags, items=items))
        self.path = root / full / "bus"

    def close(self) -> None:
        self.control.close()


class Peer(Socket):
    """A connection with its pool mapped."""

    def __init__(
        self,
        path: Path,
        flags: int = c.HELLO_ACCEPT_FD,
        items: bytes = b"",
        pool: int = POOL,
        attach: int = 0,
        **more: Any,
    ) -> None:
        kind = more.pop("kind", socket.SOCK_SEQPACKET)
        super().__init__(path, kind)
        fields = u64(c.ATTACH_ALL, attach, 0, 0, pool)
        frame = self.do("HELLO", command("HELLO", flags, fields, items), **more)
        self.id = struct.unpack_from("<Q", frame.body, 48)[0]
        offset = struct.unpack_from("<Q", frame.body, 64)[0]
        (fd,) = frame.fds
        self.map = mmap.mmap(fd, pool, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(fd)
        if not flags & c.HELLO_POLICY_HOLDER:
            self.free(offset)

    def free(self, offset: int) -> None:
        self.do("FREE", command("FREE", 0, u64(offset)))

    def send(
        self, data: bytes, extra: bytes = b"", fds: tuple[int, ...] = (), flags: int = 0
    ) -> Frame:
        """SEND of this message; `extra` is put before it in the frame, at place 80."""
        extra += bytes(-len(extra) & 7)
        body = command("SEND", flags, u64(80 + len(extra))) + extra + data
        return self.ask("SEND", body, fds)

    def say(self, to: int, payload: bytes, **fields: Any) -> Frame:
        vec = item(c.ITEM_PAYLOAD_VEC, u64(len(payload), 80))
        return self.send(message(to, vec, **fields), payload)

    def try_recv(self, flags: int = 0) -> tuple[Frame, Got | None]:
        frame = self.ask("RECV", command("RECV", flags))
        self.return_flags, _, self.lost, offset, size, self.msg_flags = struct.unpack_from(
            "<QqQQQQ", frame.body, 16
        )
        if frame.error:
            return frame, None
        self.offset = offset
        return frame, self.at(offset, size)

    def at(self, offset: int, size: int) -> Got:
        return Got(self.map[offset : offset + size])

    def recv(self, flags: int = 0) -> Got:
        """The next message, which is there; its slice is given back."""
        frame, got = self.try_recv(flags)
        if got is None:
            raise Errno(frame.error)
        self.free(self.offset)
        for fd in frame.fds:
            os.close(fd)
        return got

    def wait(self) -> None:
        """As docs/native.md has it: WAKE, and WOKEN after it was taken."""
        while self.push().op != WAKE:
            pass
        self.put("WOKEN")

    def close(self) -> None:
        self.map.close()
        super().close()


def answered(path: Path) -> bool:
    """Whether two others can talk to each other on this bus."""
    a, b = Peer(path), Peer(path)
    a.say(b.id, b"are you there", cookie=5, flags=c.EXPECT_REPLY, timeout=1 << 62)
    b.wait()
    b.recv()
    b.say(a.id, b"I am", timeout=5)
    a.wait()
    right = a.recv().payload == b"I am"
    a.close()
    b.close()
    return right
