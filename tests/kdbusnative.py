"""The kit of kdbuskit.py over sockets: the same tests, with a native front between client and bus.

Invariant: the front serves in a thread of this process, so that a test can look at the bus as it
does without a front; but each command is a frame, and each descriptor a real one.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import os
import platform
import shutil
import socket
import struct
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from kdbuskit import BASE, Client, FakeMemory, World
from nativeclient import OPS, OUTBOX, Frame, Socket, request
from unnamed import unnamed
from waiting import until

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.domain import Domain
from jitney.broker.kdbus.metadata import Creds
from jitney.kdbus import uapi
from jitney.kdbus.native.front import Front

_syscall = ctypes.CDLL(None, use_errno=True).syscall
# setresuid, setresgid, setgroups: by number, for libc's change all threads.
_NUMBERS = {"x86_64": (117, 119, 116), "aarch64": (147, 149, 159)}
FRAME_MAX = 1 << 16


def why_not() -> str:
    """Why there is no front to try; empty if there is."""
    if os.geteuid() != 0:
        return "users are only made up as root"
    if platform.machine() not in _NUMBERS:
        return "system calls have other numbers here"
    return ""


class AsUser:
    """This thread's ids, for as long as it lasts; root stays the saved one."""

    def __init__(self, uid: int, groups: tuple[int, ...]) -> None:
        self.uid = uid
        self.groups = groups

    def become(self, uid: int, groups: tuple[int, ...]) -> None:
        set_uid, set_gid, set_groups = _NUMBERS[platform.machine()]
        if not uid:
            _syscall(set_uid, 0, 0, -1)
        _syscall(set_groups, len(groups), (ctypes.c_uint32 * len(groups))(*groups))
        _syscall(set_gid, uid, uid, -1)
        if uid:
            _syscall(set_uid, uid, uid, -1)

    def __enter__(self) -> None:
        self.before = tuple(os.getgroups())
        if self.uid or self.groups:
            self.become(self.uid, self.groups)

    def __exit__(self, *_: object) -> None:
        if self.uid or self.groups:
            self.become(0, self.before)


class Waiting:
    """A synchronous SEND that was not answered at once."""

    def __init__(self, address: int, serial: int, call: Any) -> None:
        self.address = address
        self.serial = serial
        self.pending = call.pending


class NativeClient(Client):
    """An open node, over a socket. What it sends is marshalled from memory that is made up."""

    def __init__(
        self, world: Any, endpoint: Any, uid: int = 0, groups: tuple[int, ...] = (), **more: Any
    ) -> None:
        if more.pop("installs", True) is False:
            pytest.skip("descriptors are always given over a socket")
        if more.pop("privileged", uid == 0) != (uid == 0):
            pytest.skip("over a socket, root is privileged and nobody else")
        assert not more
        path = world.root / "control"
        if endpoint is not None:
            path = world.root / os.fsdecode(endpoint.bus.name) / os.fsdecode(endpoint.name)
        self.creds = Creds(uid, uid, uid, groups)
        self.world = world
        self.memory = FakeMemory()
        self._answers: list[int] = []
        self.id = 0
        self.map: mmap.mmap | None = None
        self.outbox = -1
        self.received: list[int] = []
        self.pending: dict[int, Waiting] = {}
        with AsUser(uid, groups):
            self.socket = Socket(path)
        said = struct.pack("=iII", os.getpid(), uid, uid)
        self.said = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, said)]
        self.open = True
        token = self.ask("OPEN", struct.pack("<II", 1, 0)).body[8:]
        with world.domain.lock:
            self.handle = world.front.tokens[token]

    # Frames

    def ask(self, name: str, body: bytes, fds: list[int] | None = None) -> Frame:
        serial = self.put(name, body, fds)
        while True:
            frame = self.get()
            if frame.serial == serial:
                return frame

    def put(self, name: str, body: bytes, fds: list[int] | None = None) -> int:
        self.socket.serial += 1
        data = request(OPS[name], body, self.socket.serial)
        rights = []
        if fds:
            packed = struct.pack(f"={len(fds)}i", *fds)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)]
        try:
            self.socket.sock.sendmsg([data], [*self.said, *rights])
        except BrokenPipeError:
            pass  # it is over, which the next read tells
        return self.socket.serial

    def get(self) -> Frame:
        """The next answer to a request; what was answered later is noted."""
        while True:
            frame = self.socket.get()
            self.received += frame.fds
            if frame.serial in self.pending:
                self.answered(self.pending.pop(frame.serial), frame)
            elif frame.serial:
                return frame

    def answered(self, waiting: Waiting, frame: Frame) -> None:
        self.memory.write(waiting.address, frame.body)
        self._answers.append(frame.error)

    @property
    def answers(self) -> list[int]:
        """What came of calls that waited, up to now."""
        if self.pending:
            self.world.settle()
            try:
                self.ask("OPEN", struct.pack("<II", 1, 0))
            except EOFError:
                pass
        return self._answers

    # Commands

    def ioctl(self, name: str, data: bytes, address: int | None = None) -> tuple[int, bytes]:
        if address is None:
            where = self.memory.put(data)
        else:
            where = address
            at = where - BASE
            if where % 8 or not 0 <= at < len(self.memory.data):
                return errno.EFAULT, b""
            data = bytes(self.memory.data[at:])
        body, fds, place = self.marshal(name, data)
        serial = self.put(name, body, fds)
        waits = name == "SEND" and struct.unpack_from("<Q", data, 8)[0] == c.SEND_SYNC_REPLY
        if waits:
            frame = self.first_of(serial, where)
            if frame is None:
                return -1, data
        else:
            try:
                frame = self.get()
            except (EOFError, ConnectionResetError):
                return errno.ECONNRESET, data
            assert frame.serial == serial
            if fds:
                # Descriptors are let go of behind the answer, some by threads.
                self.ask("OPEN", struct.pack("<II", 1, 0))
                purses = self.world.front.purses
                until(lambda: not any(purse.at_it for purse in list(purses.values())))
        if name == "HELLO" and frame.fds:
            (fd,) = frame.fds
            self.received.remove(fd)
            self.map = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
            os.close(fd)
        if place and len(frame.body) > place[0]:
            self.memory.write(place[1], frame.body[place[0] :])
        done = frame.body[: len(data)]
        data = done + data[len(done) :]
        self.memory.write(where, data)
        return frame.error, data

    def first_of(self, serial: int, where: int) -> Frame | None:
        """The answer, if it comes before that to another request does: then it does not wait."""
        probe = self.put("OPEN", struct.pack("<II", 1, 0))
        found = None
        while True:
            frame = self.get()
            if frame.serial == probe:
                break
            found = frame
        if found is None:
            assert self.handle.first is not None
            self.waiting = Waiting(where, serial, self.handle.first.calls[serial])
            self.pending[serial] = self.waiting
        return found

    def marshal(self, name: str, data: bytes) -> tuple[bytes, list[int], tuple[int, int] | None]:
        """(the frame's body, descriptors, (where the message is in an answer, its address))."""
        fds: list[int] = []
        if name != "SEND" or len(data) < 56:
            return data, fds, None
        body = bytearray(data)
        address = struct.unpack_from("<Q", data, 24)[0]
        at = address - BASE
        if not 0 <= at < len(self.memory.data) or address % 8:
            return bytes(body), fds, None
        body += bytes(-len(body) % 8)
        size = struct.unpack_from("<Q", self.memory.data, at)[0]
        message = bytearray(self.memory.data[at : at + size])
        place = len(body)
        struct.pack_into("<Q", body, 24, 24 + place)
        extra = bytearray()
        for kind, where, length in uapi.walk(bytes(message), 64):
            if kind == c.ITEM_PAYLOAD_VEC:
                n, source = struct.unpack_from("<QQ", message, where)
                if 0 <= source - BASE <= len(self.memory.data) - n:
                    payload = self.memory.read(source, n)
                    there = 24 + place + len(message) + len(extra)
                    if there + n <= FRAME_MAX:
                        extra += payload
                    else:
                        there = OUTBOX + self.deposit(payload)
                    struct.pack_into("<Q", message, where + 8, there)
            elif kind == c.ITEM_PAYLOAD_MEMFD:
                self.place(message, where + 16, fds)
            elif kind == c.ITEM_FDS:
                for i in range(0, length, 4):
                    self.place(message, where + i, fds)
        return bytes(body + message + extra), fds, (place, address)

    def place(self, data: bytearray, at: int, fds: list[int]) -> None:
        number = struct.unpack_from("<i", data, at)[0]
        found = self.memory.fds.get(number)
        if found is not None:
            struct.pack_into("<i", data, at, len(fds))
            fds.append(found.number())
        elif number >= 0:
            struct.pack_into("<i", data, at, 1000)

    def deposit(self, payload: bytes) -> int:
        if self.outbox < 0:
            self.outbox = unnamed()
            assert self.ask("OUTBOX", b"", [self.outbox]).error == 0
        os.pwrite(self.outbox, payload, 4096)
        return 4096

    def slice(self, offset: int, size: int) -> bytes:
        assert self.map is not None
        return self.map[offset : offset + size]

    def close(self) -> None:
        """Its handle is closed when this returns."""
        if not self.open:
            return
        self.open = False
        self.socket.close()
        while self.handle.first is not None:
            pass
        # The round in which that was seen is over.
        with self.handle.domain.lock:
            pass
        self.release()

    def release(self) -> None:
        self.socket.close()
        for fd in self.received:
            os.close(fd)
        self.received = []
        if self.outbox >= 0:
            os.close(self.outbox)
            self.outbox = -1
        if self.map is not None:
            self.map.close()
            self.map = None


class NativeWorld(World):
    """A domain with a bus of uid 0 in it, behind sockets."""

    def __init__(self) -> None:
        self.domain = Domain()
        self.folder = Path(tempfile.mkdtemp(prefix="jitney-native-"))
        self.folder.chmod(0o755)
        self.root = self.folder / "bus"
        self.front = Front(self.domain, str(self.root))
        self.clients: list[NativeClient] = []
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()

        def run() -> None:
            self.front.start(self.loop)
            self.loop.call_soon(ready.set)
            self.loop.run_forever()
            self.front.close()
            self.loop.close()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert ready.wait(20)
        self.begin()

    def at(self, endpoint: Any, **more: Any) -> Any:
        client = NativeClient(self, endpoint, **more)
        self.clients.append(client)
        return client

    def settle(self) -> None:
        """What this thread has brought about is done when this returns."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(done.set)
        assert done.wait(20)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)
        assert not self.thread.is_alive()
        for client in self.clients:
            client.release()
        shutil.rmtree(self.folder)
