"""Serving: one frame of a client, from its bytes to the answer.

Invariant: a frame is served at once and whole, with the domain's lock held; nothing here waits. It
is answered exactly once, unless it asked for no answer; a synchronous SEND when its reply, its end
or the end of its socket comes. A mistake of ours costs one answer (EIO), and nobody else anything.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.metadata import PROCESS

from ..commands import admit, run
from ..request import Parsed, Request
from . import frames as f
from .caller import SocketCaller, SocketCreds, sender
from .channels import open_channel
from .lines import CommandLines, Paused
from .peer import Opened, Peer

I32 = struct.Struct("<i")
GATHERED = frozenset(("HELLO", "BUS_MAKE"))
SEND = 0x90
LINED = frozenset((SEND, 0x80, 0x00))
"""SEND, HELLO and BUS_MAKE: what tells others of the caller."""


class Call:
    """A synchronous SEND that waits."""

    __slots__ = ("flags", "peer", "serial")

    def __init__(self, peer: Peer, serial: int, flags: int) -> None:
        self.peer = peer
        self.serial = serial
        self.flags = flags


class Server:
    """What `front.Front` does with frames; its attributes are the front's."""

    tokens: dict[bytes, Opened]
    domain: Any
    lines: CommandLines
    said: Any = None
    settling: list[tuple[Peer, int, int]]

    def __init__(self) -> None:
        self.operations = {
            f.OPEN: self.op_open,
            f.ATTACH: self.op_attach,
            f.OUTBOX_OP: self.op_outbox,
            f.NUMBERS: self.op_numbers,
            f.WOKEN: self.op_woken,
            f.CANCEL: self.op_cancel,
            f.GRANT: self.op_grant,
            f.POOL: self.op_pool,
            f.CHANNEL: self.op_channel,
            f.SETTLE: self.op_settle,
        }

    def note(self, handle: Opened) -> None:
        raise NotImplementedError

    def here(self) -> bool:
        raise NotImplementedError

    def call(self, what: Any, *arguments: Any) -> None:
        raise NotImplementedError

    def pause(self, peer: Peer, paused: Paused, pid: int) -> bool:
        raise NotImplementedError

    def join(self, sock: socket.socket, handle: Opened, creds: SocketCreds) -> Peer:
        raise NotImplementedError

    def stall(self, peer: Peer) -> None:
        raise NotImplementedError

    def watch(self, fd: int, request: Request) -> None:
        raise NotImplementedError

    def unwatch(self, fd: int) -> None:
        raise NotImplementedError

    def serve(
        self, peer: Peer, view: memoryview, fds: Sequence[int], said: Any, lost_fds: bool
    ) -> None:
        """A frame whose length is right. `said`: the credentials that came with it."""
        _, op, flags, serial, frees, credit, tid = f.REQUEST.unpack_from(view)
        memory = peer.memory
        caller = peer.caller
        if caller is None or said != peer.said or tid != caller.claimed:
            caller = peer.caller = sender(peer.creds, said, tid)
            peer.said = said
        if op in LINED and self.lacks_line(peer.handle, op, caller.pid):
            paused = Paused(bytes(view), fds, said, lost_fds)
            if self.pause(peer, paused, caller.pid):
                return
        first = f.HEAD + 8 * frees
        memory.begin(view, first, fds)
        error = 0
        try:
            if not serial or flags & ~f.QUIET or frees > f.FREES_MAX or first > len(view):
                raise KdbusError(errno.EINVAL)
            if lost_fds:
                raise KdbusError(errno.EMFILE)
            handle = peer.handle
            if handle.first is None:
                raise KdbusError(errno.ECONNRESET)
            if frees:
                self.free(handle, view, frees)
            if credit and handle.conn is not None:
                self.grant(handle, credit)
            form = f.FORMS.get(op)
            if form is None:
                other = self.operations.get(op)
                if other is None:
                    raise KdbusError(errno.ENOTTY)
                self.said = said
                other(peer, view, serial, flags)
            else:
                if not caller.pid:
                    raise KdbusError(errno.EPERM)
                peer.used = True
                self.command(peer, form, view[first:], serial, flags, credit, caller)
        except KdbusError as refused:
            error = refused.errno
        except OSError as failed:
            # What the kernel does not give us (descriptors, memory), we cannot give either.
            error = failed.errno or errno.EIO
        except Exception:
            traceback.print_exc(file=sys.stderr)
            error = errno.EIO
        finally:
            memory.end()
            if fds and memory.purse.full and peer.paused is None and not peer.dead:
                self.stall(peer)
        if error:
            peer.send(f.answer(op, serial, error))

    def lacks_line(self, handle: Opened, op: int, pid: int) -> bool:
        """Whether a command line has to be read first."""
        if op == SEND and (handle.conn is None or not handle.conn.bus.wanted & c.ATTACH_CMDLINE):
            return False
        return not self.lines.known(pid)

    def free(self, handle: Opened, view: memoryview, count: int) -> None:
        admit(handle, "FREE")
        conn = handle.conn
        assert conn is not None
        wrong = False
        for offset in struct.unpack_from(f"<{count}Q", view, f.HEAD):
            try:
                conn.free(offset)
                if handle.numbers:
                    handle.numbers.pop(offset, None)
            except KdbusError:
                wrong = True
        if wrong:
            raise KdbusError(errno.ENXIO)

    def grant(self, handle: Opened, credit: int) -> None:
        if handle.fed:
            handle.credit = min(handle.credit + credit, f.CREDIT_MAX)
            self.note(handle)

    # kdbus's commands

    def command(
        self,
        peer: Peer,
        form: Any,
        head: memoryview,
        serial: int,
        flags: int,
        credit: int,
        caller: SocketCaller,
    ) -> None:
        handle = peer.handle
        memory = peer.memory
        name = form.name
        source_id, bloom_size = admit(handle, name)
        request = Request(form, memory.first)
        conn = handle.conn
        try:
            if name == "SEND":
                assert conn is not None
                bus = conn.bus
                memory.whole = bool(bus.monitors)
                if serial in peer.calls:
                    raise KdbusError(errno.EBUSY)
                wanted = bus.wanted & PROCESS
                if wanted:
                    # What was gathered belongs to one message, which may outlast the command.
                    caller = caller.again()
                    caller.gather(wanted, self.lines.get(caller.pid))
            elif name in GATHERED:
                caller = caller.again()
                caller.gather(c.ATTACH_ALL, self.lines.get(caller.pid))
            request.fetch(memory, head, source_id, bloom_size)  # type: ignore[arg-type]
            negotiates = request.negotiates
            run(handle, caller, request, self.finished, True)
        except BaseException:
            request.drop()
            raise
        if request.error is None:
            self.wait(peer, request, serial, flags)
            return
        if not request.error and conn is None and handle.conn is not None:
            self.greet(handle, credit)
        if name == "FREE" and not request.error and handle.numbers:
            assert request.command is not None
            handle.numbers.pop(request.command.u64(24), None)
        self.conclude(peer, request, serial, flags, negotiates)

    def greet(self, handle: Opened, credit: int) -> None:
        """HELLO has made it a connection."""
        if credit:
            handle.fed = True
            handle.credit = min(credit, f.CREDIT_MAX)
        self.note(handle)

    def conclude(
        self, peer: Peer, request: Request, serial: int, flags: int, negotiates: bool = False
    ) -> None:
        form = request.form
        error = request.error or 0
        received = request.received
        if flags & f.QUIET and not error:
            if received is not None:
                peer.let_go([handle for handle, _ in received.fds])
            request.drop()
            return
        body: bytes | bytearray = b""
        command = request.command
        if command is not None:
            body = self.answered(request, command, negotiates)
        handles: Sequence[Any] = ()
        if received is not None and received.fds:
            handles = self.install(peer.handle, received)
        elif form.name == "HELLO" and not error and not negotiates:
            handles = (self.pool_of(peer.handle),)
        data = f.answer(form.ioctl & 0xFF, serial, error, len(handles), body)
        if not peer.send(data, handles):
            # The kernel does not let us pass them on.
            if received is not None:
                self.uninstall(peer.handle, received)
                struct.pack_into("<Q", command.data, 56 if form.name == "RECV" else 48, 1)  # type: ignore[union-attr]
                body = command.data[: form.size]  # type: ignore[union-attr]
            peer.send(f.answer(form.ioctl & 0xFF, serial, error, 0, body))
        request.drop()

    def answered(self, request: Request, command: Parsed, negotiates: bool) -> bytearray:
        """A command as it is now: the fixed part, or all of it for who asked what there is."""
        envelope = request.envelope
        if not (
            negotiates
            or c.ITEM_NEGOTIATE in command.found
            or (envelope is not None and c.ITEM_NEGOTIATE in envelope.found)
        ):
            return command.data[: request.form.size]
        if envelope is None:
            return command.data
        return command.data + bytes(-len(command.data) % 8) + envelope.data

    def install(self, handle: Opened, received: Any) -> list[Any]:
        """Writes the places of a message's descriptors into the pool; the descriptors."""
        pool = handle.transport.pool
        assert pool is not None
        for index, (_, place) in enumerate(received.fds):
            pool.write(place, (I32.pack(index),))
        handle.numbers[received.offset] = [place for _, place in received.fds]
        return [fd for fd, _ in received.fds]

    def uninstall(self, handle: Opened, received: Any) -> None:
        pool = handle.transport.pool
        assert pool is not None
        del handle.numbers[received.offset]
        for _, place in received.fds:
            pool.write(place, (I32.pack(-1),))

    def pool_of(self, handle: Opened) -> Any:
        pool = handle.transport.pool
        if pool is None or pool.fd < 0:
            raise KdbusError(errno.EBADFD)
        return PoolFd(pool.fd)

    # Synchronous calls

    def wait(self, peer: Peer, request: Request, serial: int, flags: int) -> None:
        request.call = Call(peer, serial, flags)
        peer.calls[serial] = request
        if request.cancel_fd is not None:
            self.watch(request.cancel_fd.fd, request)

    def finished(self, request: Request) -> None:
        """The core is done with a call; with the lock held, on whatever thread that was."""
        if self.here():
            self.end_call(request)
        else:
            self.call(self.end_call, request)

    def end_call(self, request: Request) -> None:
        call: Call = request.call
        call.peer.calls.pop(call.serial, None)
        if request.cancel_fd is not None:
            self.unwatch(request.cancel_fd.fd)
        with self.domain.lock:
            self.conclude(call.peer, request, call.serial, call.flags)

    def cancel(self, request: Request, number: int) -> None:
        conn = request.call.peer.handle.conn
        if conn is not None:
            conn.bus.cancel(request.pending, number)

    # Operations beside kdbus's

    def done(self, peer: Peer, op: int, serial: int, flags: int, body: bytes = b"") -> None:
        peer.used = True
        if not flags & f.QUIET:
            peer.send(f.answer(op, serial, 0, 0, body))

    def op_open(self, peer: Peer, view: memoryview, serial: int, flags: int) -> None:
        if peer.memory.first + 8 > len(view):
            raise KdbusError(errno.EINVAL)
        version, _ = f.PAIR.unpack_from(view, peer.memory.first)
        if version < 1:
            raise KdbusError(errno.EPROTONOSUPPORT)
        handle = peer.handle
        if handle.first is None or handle.first.dead:
            raise KdbusError(errno.ECONNRESET)
        if not handle.token:
            handle.token = os.urandom(16)
            self.tokens[handle.token] = handle
        self.done(peer, f.OPEN, serial, flags, f.PAIR.pack(f.VERSION, 0) + handle.token)

    def op_attach(self, peer: Peer, view: memoryview, serial: int, flags: int) -> None:
        token = bytes(view[peer.memory.first :])
        if len(token) != 16 or peer.used:
            raise KdbusError(errno.EINVAL)
        handle = self.tokens.get(token)
        if handle is None:
            raise KdbusError(errno.EBADF)
        if handle.opener.euid != peer.creds.euid:
            raise KdbusError(errno.EPERM)
        if handle.sockets >= f.SOCKETS_MAX:
            raise KdbusError(errno.EMFILE)
        peer.handle = handle
        handle.sockets += 1
        self.done(peer, f.ATTACH, serial, flags)

    def op_outbox(self, peer: Peer, _: memoryview, serial: int, flags: int) -> None:
        peer.memory.set_outbox()
        self.done(peer, f.OUTBOX_OP, serial, flags)

    def op_numbers(self, peer: Peer, view: memoryview, serial: int, flags: int) -> None:
        handle = peer.handle
        body = view[peer.memory.first :]
        if len(body) < 8 or len(body) % 4:
            raise KdbusError(errno.EINVAL)
        offset = struct.unpack_from("<Q", body)[0]
        places = handle.numbers.get(offset)
        if places is None:
            raise KdbusError(errno.ENXIO)
        if len(body) != 8 + 4 * len(places):
            raise KdbusError(errno.EINVAL)
        pool = handle.transport.pool
        assert pool is not None
        del handle.numbers[offset]
        for index, place in enumerate(places):
            pool.write(place, (bytes(body[8 + 4 * index : 12 + 4 * index]),))
        self.done(peer, f.NUMBERS, serial, flags)

    def op_woken(self, peer: Peer, _: memoryview, __: int, ___: int) -> None:
        peer.handle.told = False
        self.note(peer.handle)

    def op_cancel(self, peer: Peer, view: memoryview, _: int, __: int) -> None:
        if peer.memory.first + 8 > len(view):
            raise KdbusError(errno.EINVAL)
        request = peer.calls.get(f.PAIR.unpack_from(view, peer.memory.first)[0])
        if request is not None:
            self.cancel(request, errno.EINTR)

    def op_grant(self, peer: Peer, _: memoryview, __: int, ___: int) -> None:
        """Its head was all there is to it."""

    def op_pool(self, peer: Peer, _: memoryview, serial: int, flags: int) -> None:
        handle = self.pool_of(peer.handle)
        if not flags & f.QUIET and not peer.send(f.answer(f.POOL, serial, 0, 1), (handle,)):
            raise KdbusError(errno.EMFILE)

    def op_channel(self, peer: Peer, _: memoryview, serial: int, __: int) -> None:
        open_channel(peer, self.said, serial, self.join)

    def op_settle(self, peer: Peer, _: memoryview, serial: int, flags: int) -> None:
        self.settling.append((peer, serial, flags))


class PoolFd:
    """A pool's descriptor on its way to the owner; it stays ours as well."""

    def __init__(self, fd: int) -> None:
        self.fd = os.dup(fd)

    def drop(self) -> None:
        os.close(self.fd)
