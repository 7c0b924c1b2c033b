"""Quick: the requests that most requests are, without the detour over commands and calls.

Invariant: what is done here is what `ioctls` and `filesystem` would do, answers included. A request
is taken only if nothing about it is special, and before anything is done for it; what was read of
its client until then is read again. All others are left to them: those of clients that kept us
waiting before, with descriptors, signals, unusual items, anything that might be refused for its
form, and senders on buses where somebody asks for metadata of processes.

A client may keep us waiting here as well; then the leader is deposed as anywhere.
"""

from __future__ import annotations

import errno
import select
import sys
import traceback
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.metadata import PROCESS

from .. import uapi
from ..process import ProcCaller
from . import protocol as p
from .copies import scratch
from .places import Apart, Places
from .stays import MANY_SUSPECTS
from .worker import GUESS

if not cython.compiled:
    from jitney.broker.kdbus.connection import Connection
    from jitney.broker.kdbus.loads import get32, get64, set32, set64
    from jitney.broker.kdbus.message import Message

    from ..ordinary import read as read_message
    from .sysio import answer, answer_ioctl, copy_in, copy_out, gather
    from .worker import Worker

_IOCTL, _POLL = p.IOCTL, p.POLL
_SEND, _RECV, _FREE = (uapi.BY_NAME[name].ioctl for name in ("SEND", "RECV", "FREE"))
_PROCESS = PROCESS
_DROPPED = c.RECV_DROPPED_MSGS
_GUESS = GUESS
# Of less, a second copy is no more than what it takes to do without.
_PLACED_MIN = 16 * 1024
_MANY_SUSPECTS = MANY_SUSPECTS
_WRITABLE = select.POLLOUT | select.POLLWRNORM
_READABLE = select.POLLIN | select.POLLRDNORM
_EAGAIN, _EIO, _EFAULT, _EPERM = errno.EAGAIN, errno.EIO, errno.EFAULT, errno.EPERM

# Where things are in a request: the caller, what was opened, the ioctl, its command.
#   8 unique, 24 uid, 28 gid, 32 tid, 40 handle, 48 flags, 52 ioctl, 56 address, 64 and 68 sizes,
#   72 the command; of a poll 48 the kernel's handle, 56 flags


class QuickCall:
    """A SEND or RECV that is being worked on; for `Ioctls` it is what a Call is, and its Request.

    As a synchronous call's `done` it is told what came of it."""

    watching = None

    def __init__(self, quick: Any, unique: int, tid: int, handle: Any, address: int) -> None:
        self.quick = quick
        self.unique = unique
        self.tid = tid
        self.handle = handle
        self.address = address
        self.interrupted = False
        self.over = False
        self.pending: Any = None
        self.done = False
        self.number = 0
        self.offset = self.size = self.flags = 0

    @property
    def request(self) -> QuickCall:
        return self

    def set_result(self, number: int, received: Any) -> None:
        self.done = True
        self.number = number
        if received is not None:
            self.offset = received.offset
            self.size = received.size
            self.flags = received.return_flags

    def __call__(self, number: int, received: Any) -> None:
        """The core is done with it; with the lock held, on whatever thread that is."""
        if self.done:
            return
        self.set_result(number, received)
        # Otherwise it is in the midst of SEND.
        if self.pending is not None:
            self.quick.finished(self)

    def tell(self) -> None:
        """Answers it, on a thread that can be left alone with it."""
        self.quick.ioctls.timed(self.handle, lambda: self.quick.conclude_alone(self))


class Quick:
    """`serve()` is asked first about each request. `serving`: who is in the midst of SEND."""

    def __init__(self, ioctls: Any) -> None:
        fs = ioctls.filesystem
        self.ioctls = ioctls
        self.filesystem = fs
        self.crew = fs.crew
        self.lock = fs.domain.lock
        self.device = fs.device
        self.handles: dict[int, Any] = fs.handles
        self.active: dict[int, Any] = ioctls.active
        self.waiting: dict[int, Any] = ioctls.waiting
        self.stays = ioctls.stays
        self.suspected: dict[int, int] = fs.suspected_processes
        self.users: dict[int, int] = fs.suspected_uids
        self.places = Places()
        self.serving: Worker | None = None

    def serve(self, me: Worker, size: int) -> bool:
        """Whether the request in the worker's buffer was one for us, and is done."""
        try:
            return self.take(me, size)
        except Exception:
            # A mistake of ours costs the one who ran into it one command, and nobody else anything.
            traceback.print_exc(file=sys.stderr)
            answer(self.device, get64(me.buffer, 8), _EIO, me.buffer, 0, 0)
            return True

    def take(self, me: Worker, size: int) -> bool:
        buffer = me.buffer
        if size < 64:
            return False
        opcode = get32(buffer, 4)
        if opcode == _POLL:
            return self.poll(me, buffer)
        if opcode != _IOCTL or size < 72 or get32(buffer, 48) or not get32(buffer, 32):
            return False
        handle = self.handles.get(get64(buffer, 40))
        if handle is None or get64(buffer, 56) & 7:
            return False
        command = get32(buffer, 52)
        if command == _FREE and size >= 104:
            return self.free(buffer, handle)
        if command == _RECV:
            return self.recv(me, buffer, handle)
        if command == _SEND and size >= 128:
            return self.send(me, buffer, handle)
        return False

    # What never waits for a client

    def poll(self, me: Worker, buffer: bytearray) -> bool:
        handle = self.handles.get(get64(buffer, 40))
        if handle is None:
            return False
        with self.lock:
            conn = handle.conn
            if conn is None or not conn.active:
                return False
            if get32(buffer, 56) & 1:
                transport = handle.transport
                transport.polls.add(get64(buffer, 48))
            revents = _WRITABLE
            if len(conn.queue.entries) or conn.lost:
                revents |= _READABLE
        set32(me.room, 0, revents)
        set32(me.room, 4, 0)
        answer(self.device, get64(buffer, 8), 0, me.room, 0, 8)
        return True

    def free(self, buffer: bytearray, handle: Any) -> bool:
        if get64(buffer, 72) != 32 or get64(buffer, 80) or get64(buffer, 88):
            return False
        number = 0
        with self.lock:
            conn = handle.conn
            if conn is None or not conn.active or not conn.ordinary:
                return False
            try:
                conn.free(get64(buffer, 96))
            except KdbusError as error:
                number = error.errno
        answer_ioctl(self.device, get64(buffer, 8), number, buffer, 0, 0)
        return True

    # What may

    def trusts(self, handle: Any, uid: int) -> bool:
        """Whether we look into its owner's memory while we lead."""
        if not self.suspected:
            return True
        return handle.process not in self.suspected and self.users.get(uid, 0) < _MANY_SUSPECTS

    def enter(self, call: QuickCall, conn: Connection) -> int:
        """0: it has begun, 1: it is answered, 2: it is none for us."""
        with self.lock:
            if not conn.active or not conn.ordinary:
                return 2
            try:
                self.stays.begin(call.handle)
            except KdbusError:
                return 2
            self.active[call.unique] = call
        return 0

    def leave(self, call: QuickCall) -> bool:
        """The end of it, with the lock held; False where somebody else has answered it."""
        self.stays.end(call.handle)
        if call.over:
            return False
        call.over = True
        self.active.pop(call.unique, None)
        return True

    def recv(self, me: Worker, buffer: bytearray, handle: Any) -> bool:
        conn = handle.conn
        if conn is None or get32(buffer, 68) != 64 or not self.trusts(handle, get32(buffer, 24)):
            return False
        call = QuickCall(self, get64(buffer, 8), get32(buffer, 32), handle, get64(buffer, 56))
        if self.enter(call, conn):
            return False
        room = me.room
        me.away(handle)
        got = copy_in(call.tid, call.address, room, 64)
        me.back()
        fits = got == 64 and get64(room, 0) == 64 and not get64(room, 8) and not get64(room, 16)
        number = 0
        transport = handle.transport
        with self.lock:
            if not fits or not conn.active:
                return not self.leave(call)
            if call.over:
                self.leave(call)
                return True
            received, lost = conn.recv(0, 0)
            if lost:
                set64(room, 16, _DROPPED)
            set64(room, 32, lost)
            if received.return_flags < 0:
                number = _EAGAIN
                set64(room, 40, conn.pool.size)
                set64(room, 48, 0)
                set64(room, 56, 0)
            else:
                set64(room, 40, received.offset)
                set64(room, 48, received.size)
                set64(room, 56, received.return_flags)
            shown = number != 0 or not transport.pool.trusted
            if shown:
                self.leave(call)
        if not shown:
            me.away(handle)
            transport.pool.publish(received.offset, received.size)
            me.back()
            with self.lock:
                if not self.leave(call):
                    return True
        answer_ioctl(self.device, get64(buffer, 8), number, room, 0, 64)
        return True

    def send(self, me: Worker, buffer: bytearray, handle: Any) -> bool:
        conn = handle.conn
        where = get64(buffer, 96)
        if (
            conn is None or get32(buffer, 68) or get64(buffer, 72) != 56 or get64(buffer, 80) > 1
            or get64(buffer, 88) or where & 7 or conn.bus.wanted & _PROCESS
            or not self.trusts(handle, get32(buffer, 24))
        ):  # fmt: skip
            return False
        sync = get64(buffer, 80) == 1
        bus = conn.bus
        call = QuickCall(self, get64(buffer, 8), get32(buffer, 32), handle, get64(buffer, 56))
        if self.enter(call, conn):
            return False
        payload = Apart()
        me.away(handle)
        got = copy_in(call.tid, where, me.room, _GUESS)
        me.back()
        message = None
        if got >= 64:
            message = read_message(bus, conn.id, me.room, 0, got, sync, payload)
        if message is None:
            with self.lock:
                return not self.leave(call)
        receiver = None
        whole = True
        total = payload.total
        if total:
            place = None
            if total >= _PLACED_MIN:
                with self.lock:
                    creds = self.caller(handle, call.tid, buffer).creds
                    place = self.places.begin(conn, message, payload.vecs, total, creds)
            me.away(handle)
            if place is not None:
                receiver = place[0]
                whole = gather(call.tid, payload.vecs, place[1], place[2]) == total
            else:
                whole = self.fill(me, call, message, payload)
            me.back()
        waits = False
        with self.lock:
            caller = self.caller(handle, call.tid, buffer)
            fine = whole and conn.active and not call.over
            if receiver is not None:
                self.places.filling.discard(receiver)
                if fine and self.places.receiver(conn, message, caller.creds) is not receiver:
                    fine = False
            if not fine or bus.wanted & _PROCESS:
                if receiver is not None:
                    self.places.undo(conn, receiver, message)
                return not self.leave(call)
            self.serving = me
            try:
                if not sync:
                    bus.send(conn, message, caller, None)
                    call.offset = conn.pool.size
                else:
                    pending = bus.send(conn, message, caller, call)
                    if not call.done:
                        call.pending = pending
                        waits = True
                        self.stays.end(handle)
                        self.waiting[call.unique] = call
                        if call.interrupted:
                            self.ioctls.signalled(call)
            except KdbusError as error:
                call.set_result(error.errno, None)
            except OSError as error:
                call.set_result(error.errno or _EIO, None)
            except Exception:
                traceback.print_exc(file=sys.stderr)
                call.set_result(_EIO, None)
            finally:
                self.serving = None
                if receiver is not None:
                    self.places.undo(conn, receiver, message)
        try:
            if not waits:
                self.conclude(me, call)
        finally:
            if me.finished:
                self.tell_finished(me)
        return True

    def fill(self, me: Worker, call: QuickCall, message: Message, payload: Apart) -> bool:
        """Copies the payload to where it is written from into the pool."""
        if me.scratch is None:
            me.scratch = scratch().view
        vecs = payload.vecs
        if gather(call.tid, vecs, me.scratch, 0) != payload.total:
            return False
        at = 0
        parts = message.parts
        n = 1
        for i in range(len(parts)):
            part = parts[i]
            if part[0] == 1:
                size = vecs[n]
                n += 2
                parts[i] = (1, me.scratch[at : at + size])
                at += size
        return True

    def caller(self, handle: Any, tid: int, buffer: bytearray) -> ProcCaller:
        """Who sends; with the lock held."""
        uid = get32(buffer, 24)
        gid = get32(buffer, 28)
        found = handle.caller
        if found is not None and found.tid == tid:
            creds = found.creds
            if creds.euid == uid and creds.egid == gid:
                # Its groups are those of right now.
                creds.looked = False
                return found
        found = handle.caller = ProcCaller(tid, uid, gid)
        return found

    # Synchronous calls, and the end of a command

    def finished(self, call: QuickCall) -> None:
        """The core is done with a call that waited; with the lock held."""
        self.waiting.pop(call.unique, None)
        try:
            self.stays.begin(call.handle)
        except KdbusError as error:
            # It keeps too many of our threads already to be told more than that.
            self.ioctls.close(call)
            self.ioctls.answer(call.unique, error.errno, b"")
            return
        me = self.serving
        if (
            me is not None
            and not me.finished
            and me.leading
            and self.trusts(call.handle, call.handle.uid)
        ):
            me.finished.append(call)
        else:
            self.crew.later(call.tell)

    def tell_finished(self, me: Worker) -> None:
        call = me.finished.pop()
        if me.leading:
            self.conclude(me, call)
        else:
            self.crew.later(call.tell)

    def conclude_alone(self, call: QuickCall) -> None:
        self.conclude(None, call)

    def conclude(self, me: Worker | None, call: QuickCall) -> None:
        """Gives the client what came of it; may last."""
        number = call.number
        room = me.room if me is not None else bytearray(24)
        if not number:
            set64(room, 0, call.offset)
            set64(room, 8, call.size)
            set64(room, 16, call.flags)
            transport = call.handle.transport
            if me is not None:
                me.away(call.handle)
            if call.size and transport.pool.trusted:
                transport.pool.publish(call.offset, call.size)
            # Who is dead is not written to: its number may be another's soon.
            done = copy_out(call.tid, call.address + 32, room, 0, 24) if not call.over else 24
            if me is not None:
                me.back()
            if done != 24:
                number = _EPERM if done == -_EPERM else _EFAULT
        with self.lock:
            over = not self.leave(call)
        if not over:
            answer_ioctl(self.device, call.unique, number, room, 0, 0)
