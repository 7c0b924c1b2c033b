"""Filesystem: what is answered to each request of the kernel.

Invariant: the domain is only looked at or changed with its lock held, and nothing that a client
can draw out is done meanwhile. Each request is answered exactly once; a synchronous SEND when its
reply, its end or a deadly signal for the caller comes.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any

from jitney.broker.kdbus.domain import Domain
from jitney.broker.kdbus.endpoint import Endpoint
from jitney.broker.kdbus.errors import KdbusError

from ..commands import Handle
from ..process import ProcCaller, opener
from . import protocol as p
from .crew import Crew, Worker
from .nodes import CONTROL, Node, Nodes
from .pools import Backing, Store
from .transport import FuseTransport

READABLE = select.POLLIN | select.POLLRDNORM
WRITABLE = select.POLLOUT | select.POLLWRNORM
OVER = select.POLLERR | select.POLLHUP

OPENED_MAX = 2048
"""So many nodes one user may have open; with a backing file each costs us a descriptor."""


class Opened(Handle):
    """A handle that FUSE knows by number. `suspected`: its owner made us wait before; `caller`: who
    sent last."""

    def __init__(self, domain: Domain, endpoint: Endpoint | None, creds: Any, number: int) -> None:
        super().__init__(domain, endpoint, creds)
        self.number = number
        self.uid = creds.euid
        self.process = creds.process
        self.suspected = False
        self.away = 0
        self.caller: ProcCaller | None = None


class Filesystem:
    """Answers requests on a mounted /dev/fuse. `ioctl` is set by whoever does the commands."""

    def __init__(self, device: int, domain: Domain, uid: int, gid: int) -> None:
        self.device = device
        self.domain = domain
        self.nodes = Nodes(domain, uid, gid)
        self.handles: dict[int, Opened] = {}
        self.opened: dict[int, int] = {}
        self.last_handle = 0
        self.passthrough = False
        self.crew = Crew(device, self.handle, self.suspect)
        self.suspected_uids: dict[int, int] = {}
        self.suspected_processes: dict[int, int] = {}
        self.ioctl: Callable[[Worker, int, int, int, int, memoryview], None] | None = None
        self.interrupt: Callable[[int], None] = lambda unique: None
        self.handlers: dict[int, Callable[[int, int, tuple[int, int, int], memoryview], Any]] = {
            p.LOOKUP: self.lookup,
            p.GETATTR: self.getattr,
            p.OPEN: self.open,
            p.OPENDIR: self.opendir,
            p.READ: self.read,
            p.READDIR: self.readdir,
            p.RELEASE: self.release,
            p.RELEASEDIR: lambda *_: b"",
            p.STATFS: lambda *_: p.STATFS_OUT.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0, *([0] * 6)),
            p.POLL: self.poll,
            p.SETATTR: self.denied,
            p.WRITE: self.denied,
        }

    # Requests and answers

    def handle(self, worker: Worker, size: int) -> None:
        """One request, in the worker's buffer."""
        view = worker.view
        _, opcode, unique, node, uid, gid, pid, _, _ = p.IN_HEADER.unpack_from(view)
        body = view[p.IN_HEADER.size : size]
        try:
            if opcode == p.IOCTL:
                assert self.ioctl is not None
                self.ioctl(worker, unique, uid, gid, pid, body)
            elif opcode == p.FORGET:
                with self.domain.lock:
                    self.nodes.forget(node, p.U64.unpack_from(body)[0])
            elif opcode == p.BATCH_FORGET:
                with self.domain.lock:
                    for at in range(8, 8 + 16 * struct.unpack_from("=I", body)[0], 16):
                        self.nodes.forget(*p.FORGET_ONE.unpack_from(body, at))
            elif opcode == p.INTERRUPT:
                self.interrupt(p.U64.unpack_from(body)[0])
            elif opcode == p.DESTROY:
                self.reply(unique, b"")
            else:
                handler = self.handlers.get(opcode)
                if handler is None:
                    self.fail(unique, errno.ENOSYS)
                    return
                with self.domain.lock:
                    answer = handler(unique, node, (uid, gid, pid), body)
                if isinstance(answer, int):
                    self.fail(unique, answer)
                else:
                    self.reply(unique, answer)
        except KdbusError as error:
            self.fail(unique, error.errno)
        except OSError as error:
            # What the kernel does not give us (descriptors, memory), we cannot give either.
            self.fail(unique, error.errno or errno.EIO)
        except Exception:
            # A mistake of ours costs the one who ran into it one command, and nobody else anything.
            traceback.print_exc(file=sys.stderr)
            self.fail(unique, errno.EIO)

    def reply(self, unique: int, data: bytes) -> None:
        head = p.OUT_HEADER.pack(p.OUT_HEADER.size + len(data), 0, unique)
        try:
            os.writev(self.device, (head, data))
        except OSError:
            pass  # it was interrupted, or the mount is gone

    def fail(self, unique: int, number: int) -> None:
        try:
            os.write(self.device, p.OUT_HEADER.pack(p.OUT_HEADER.size, -number, unique))
        except OSError:
            pass

    def suspect(self, what: Any) -> None:
        """The leader was kept by what is done for this handle."""
        if not isinstance(what, Opened):
            return
        with self.domain.lock:
            if not what.suspected and what.number in self.handles:
                what.suspected = True
                self.count_suspect(what, 1)

    def count_suspect(self, handle: Opened, change: int) -> None:
        for counts, key in (
            (self.suspected_uids, handle.uid),
            (self.suspected_processes, handle.process),
        ):
            left = counts.get(key, 0) + change
            if left:
                counts[key] = left
            else:
                del counts[key]

    # The tree

    def find(self, number: int) -> Node:
        node = self.nodes.get(number)
        if node is None:
            raise KdbusError(errno.ENOENT)
        return node

    def lookup(self, _: int, number: int, __: Any, body: memoryview) -> Any:
        name = bytes(body[:-1])
        node = self.nodes.lookup(self.find(number), name)
        if node is None:
            return errno.ENOENT
        # An endpoint's size changes once, at HELLO.
        valid = 0 if isinstance(node.what, Endpoint) else 1
        return p.ENTRY.pack(node.number, 0, 0, valid, 0, 0) + self.nodes.attributes(node)

    def getattr(self, _: int, number: int, __: Any, ___: memoryview) -> Any:
        node = self.find(number)
        valid = 0 if isinstance(node.what, Endpoint) and not node.size else 1
        return p.ATTR_HEAD.pack(valid, 0, 0) + self.nodes.attributes(node)

    def opendir(self, _: int, number: int, __: Any, ___: memoryview) -> Any:
        if not self.nodes.is_directory(self.find(number)):
            return errno.ENOTDIR
        return p.OPEN_OUT.pack(0, 0, 0)

    def readdir(self, _: int, number: int, __: Any, body: memoryview) -> Any:
        _, offset, size, _ = p.READ_IN.unpack_from(body)
        out = b""
        listing = self.nodes.listing(self.find(number))
        for index in range(offset, len(listing)):
            name, ino, kind = listing[index]
            entry = p.DIRENT.pack(ino, index + 1, len(name), kind) + name
            entry += bytes(-len(entry) & 7)
            if len(out) + len(entry) > size:
                break
            out += entry
        return out

    def denied(self, *_: Any) -> int:
        return errno.EPERM

    # Open nodes

    def open(self, _: int, number: int, who: tuple[int, int, int], __: memoryview) -> Any:
        node = self.find(number)
        uid, gid, tid = who
        endpoint = node.what if isinstance(node.what, Endpoint) else None
        if endpoint is not None:
            endpoint.need_active()
        elif node.what != CONTROL:
            return errno.EISDIR
        if self.opened.get(uid, 0) >= OPENED_MAX:
            return errno.EMFILE
        self.last_handle += 1
        handle = Opened(self.domain, endpoint, opener(tid, uid, gid), self.last_handle)
        flags, backing = p.OPEN_NOFLUSH | p.OPEN_KEEP_CACHE, 0
        if endpoint is not None:
            pool: Backing | Store
            if self.passthrough:
                pool = Backing(self.device)
                flags, backing = p.OPEN_NOFLUSH | p.OPEN_PASSTHROUGH, pool.id
            else:
                pool = Store(self.device, number)
            handle.transport = FuseTransport(self.device, node, pool)
        self.handles[handle.number] = handle
        self.opened[uid] = self.opened.get(uid, 0) + 1
        return p.OPEN_OUT.pack(handle.number, flags, backing)

    def release(self, _: int, __: int, ___: Any, body: memoryview) -> Any:
        handle = self.handles.pop(p.U64.unpack_from(body)[0], None)
        if handle is not None:
            self.opened[handle.uid] -= 1
            handle.close()
            if isinstance(handle.transport, FuseTransport):
                handle.transport.pool.release()
            if handle.suspected:
                self.count_suspect(handle, -1)
        return b""

    def read(self, _: int, __: int, ___: Any, body: memoryview) -> Any:
        """A page of a pool that is not in the client's page cache, or read(2) on the node."""
        number, offset, size, _ = p.READ_IN.unpack_from(body)
        handle = self.handles.get(number)
        if handle is None or not isinstance(handle.transport, FuseTransport):
            return errno.EINVAL
        return handle.transport.pool.read(offset, size)

    def poll(self, _: int, __: int, ___: Any, body: memoryview) -> Any:
        number, kernel_handle, flags, _ = p.POLL_IN.unpack_from(body)
        handle = self.handles.get(number)
        conn = handle.conn if handle is not None else None
        if handle is None or conn is None or not conn.active:
            return p.POLL_OUT.pack(OVER, 0)
        if flags & p.POLL_SCHEDULE_NOTIFY and isinstance(handle.transport, FuseTransport):
            handle.transport.polls.add(kernel_handle)
        return p.POLL_OUT.pack(WRITABLE | (READABLE if conn.readable else 0), 0)

    # The beginning

    def greet(self, want_passthrough: bool) -> None:
        """Answers INIT, the first request on a fresh mount."""
        buffer = bytearray(p.BUFFER)
        os.readv(self.device, (buffer,))
        _, opcode, unique, *_ = p.IN_HEADER.unpack_from(buffer)
        if opcode != p.INIT:
            raise OSError(errno.EPROTO, "the kernel did not begin with INIT")
        major, minor, readahead, flags = p.INIT_IN.unpack_from(buffer, p.IN_HEADER.size)
        flags2 = struct.unpack_from("=I", buffer, p.IN_HEADER.size + 16)[0] if minor >= 36 else 0
        if major != p.MAJOR or minor < 12:
            raise OSError(errno.EPROTO, f"FUSE {major}.{minor} is too old")
        out = flags & p.ASYNC_READ
        out2 = depth = 0
        if want_passthrough and flags & p.INIT_EXT and flags2 & p.PASSTHROUGH2:
            out |= p.INIT_EXT
            out2, depth = p.PASSTHROUGH2, 1
        answer = p.INIT_OUT.pack(
            p.MAJOR, p.MINOR, readahead, out, 12, 9, 4096, 1, 0, 0, out2, depth, *([0] * 6)
        )
        self.reply(unique, answer[: 24 if minor < 23 else 64])
        self.passthrough = bool(out2)
