"""Ioctls: a client's commands, from the kernel's request to its answer.

Invariant: a command goes through the same three steps, each of which can fail with an errno: its
bytes are fetched (the client may keep us waiting), the core does it (with the lock, at once), and
what came of it goes back (the client may keep us waiting again). Who keeps too many of our threads
waiting gets EBUSY, see `stays`.

Ioctls of a plain file come in FUSE's restricted form: the kernel copies a command's fixed part for
us where the ioctl number says that the client writes it, and our answer where that it reads.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.metadata import PROCESS

from .. import uapi
from ..commands import admit, run
from ..descriptors import FdHandle, close
from ..process import ProcCaller, fatal_pending
from ..request import Request
from . import protocol as p
from .copies import ProcessMemory
from .crew import PATIENCE, Worker
from .filesystem import Filesystem, Opened
from .pools import Store
from .quick import Quick, QuickCall
from .stays import MANY_SUSPECTS, Stays
from .transport import FuseTransport

PUBLISHED = {
    "HELLO": 64, "CONN_INFO": 40, "BUS_CREATOR_INFO": 40, "LIST": 24, "RECV": 40, "SEND": 32,
}  # fmt: skip
"""Where a command's answer says which slice of the pool is the client's now."""


class Call:
    """One ioctl that is being worked on."""

    def __init__(
        self, unique: int, tid: int, handle: Opened, request: Request, out_size: int
    ) -> None:
        self.unique = unique
        self.tid = tid
        self.handle = handle
        self.request = request
        self.out_size = out_size
        self.memory: ProcessMemory | None = None
        self.interrupted = False
        # Answered, or about to be: nobody else does it.
        self.over = False
        # For whom it counts among those who may keep a thread.
        self.stays: object = None
        self.watching: FdHandle | None = None


class Ioctls:
    """`watch(fd, callback)` tells when a descriptor is readable, on some thread, until
    `unwatch(handle)`, which lets go of the handle as well; `check_later()` asks for
    `check_signals()` to be called soon."""

    def __init__(self, filesystem: Filesystem, own_device: int) -> None:
        self.filesystem = filesystem
        self.domain = filesystem.domain
        self.crew = filesystem.crew
        self.own_device = own_device
        self.active: dict[int, Call | QuickCall] = {}
        self.waiting: dict[int, Call | QuickCall] = {}
        self.stays = Stays(filesystem.suspected_processes)
        self.watch: Callable[[int, Callable[[], None]], None] = lambda fd, callback: None
        self.unwatch: Callable[[FdHandle], None] = lambda handle: handle.drop()
        self.check_later: Callable[[], None] = lambda: None
        filesystem.ioctl = self.ioctl
        filesystem.interrupt = self.interrupt
        # On other machines numbers are not as the short way reads them.
        if sys.byteorder == "little":
            self.crew.quick = Quick(self)

    def close_fd(self, fd: int) -> None:
        # The last close of somebody else's file may last.
        self.crew.later(lambda: close(fd))

    def ioctl(
        self, me: Worker, unique: int, uid: int, gid: int, tid: int, body: memoryview
    ) -> None:
        number, flags, command, address, in_size, out_size = p.IOCTL_IN.unpack_from(body)
        head = bytes(body[p.IOCTL_IN.size : p.IOCTL_IN.size + in_size])
        form = uapi.BY_IOCTL.get(command)
        handle = self.filesystem.handles.get(number)
        if form is None or handle is None or flags & p.IOCTL_DIR:
            self.answer(unique, errno.ENOTTY, b"")
            return
        if tid == 0:
            # From a pid namespace that is not ours or below ours: its memory is out of reach.
            self.answer(unique, errno.EPERM, b"")
            return
        call = Call(unique, tid, handle, Request(form, address), out_size)
        with self.domain.lock:
            try:
                source_id, bloom_size = admit(handle, form.name)
                self.begin(call, me)
            except KdbusError as error:
                self.answer(unique, error.errno, b"")
                return
            self.active[unique] = call
        try:
            fs = self.filesystem
            if (
                handle.process in fs.suspected_processes
                or fs.suspected_uids.get(uid, 0) >= MANY_SUSPECTS
            ):
                self.crew.step_down(me)
            self.do(me, call, ProcCaller(tid, uid, gid), head, source_id, bloom_size)
        except BaseException:
            with self.domain.lock:
                self.close(call)
            raise
        finally:
            with self.domain.lock:
                self.end(call, me)

    def begin(self, call: Call, who: object) -> None:
        """Somebody is about to look into the client's memory; with the lock held, as `end()`."""
        self.stays.begin(call.handle)
        call.stays = who

    def end(self, call: Call, who: object) -> None:
        if call.stays is who:
            call.stays = None
            self.stays.end(call.handle)

    def do(
        self, me: Worker, call: Call, caller: ProcCaller, head: bytes, source_id: int, bloom: int
    ) -> None:
        request = call.request
        memory = call.memory = ProcessMemory(
            call.tid, self.own_device, self.close_fd, self.passes(call.handle)
        )
        me.away(call.handle)
        try:
            request.fetch(memory, head, source_id, bloom)
            if request.error == 0:
                self.gather(call, caller)
        finally:
            me.back()
        with self.domain.lock:
            if call.over:
                # The client died meanwhile: nothing is done in its name any more.
                request.drop()
                return
            run(call.handle, caller, request, self.finished)
            if request.error is None:
                self.end(call, me)
                self.wait(call)
                return
        me.away(call.handle)
        try:
            self.conclude(call)
        finally:
            me.back()

    def passes(self, handle: Opened) -> bool:
        return handle.conn is not None and handle.conn.bus.installers > 0

    def gather(self, call: Call, caller: ProcCaller) -> None:
        """Looks up what somebody may ask about the caller."""
        name = call.request.form.name
        if name == "SEND":
            conn = call.handle.conn
            wanted = conn.bus.wanted & PROCESS if conn is not None else 0
            if wanted:
                caller.gather(wanted)
        elif name in ("HELLO", "BUS_MAKE"):
            caller.gather(c.ATTACH_ALL)

    # The end of a command

    def conclude(self, call: Call) -> None:
        """Gives the client what came of it; may last."""
        request = call.request
        number = request.error or 0
        data = b""
        command = request.command
        memory = call.memory
        assert memory is not None
        if command is not None:
            if not number:
                self.publish(call)
            if call.out_size:
                data = bytes(command.data[: call.out_size])
            try:
                for address, changed in request.written():
                    if call.over:
                        break  # it is dead, and its number may be another's soon
                    end = address + len(changed)
                    if not request.address <= address <= end <= request.address + call.out_size:
                        memory.write(address, changed)
            except KdbusError as error:
                number = error.errno
        with self.domain.lock:
            request.drop()
            if call.over:
                return
            self.close(call)
            # Before it is answered: the next command may be here before we get any further.
            if call.stays is not None:
                self.end(call, call.stays)
        self.answer(call.unique, number, data)

    def close(self, call: Call | QuickCall) -> None:
        """It is answered now; with the lock held."""
        call.over = True
        self.active.pop(call.unique, None)

    def publish(self, call: Call) -> None:
        at = PUBLISHED.get(call.request.form.name)
        transport = call.handle.transport
        if at is None or not isinstance(transport, FuseTransport):
            return
        pool = transport.pool
        command = call.request.command
        if isinstance(pool, Store) and command is not None and not command.negotiates:
            if call.request.form.name == "HELLO":
                # So that the file is as long as the pool, wherever the client looks first.
                pool.publish(pool.size - 8, 8)
            offset, size = command.u64(at), command.u64(at + 8)
            if size and offset < pool.size:
                pool.publish(offset, size)

    def answer(self, unique: int, number: int, data: bytes) -> None:
        self.filesystem.reply(unique, p.IOCTL_OUT.pack(-number, 0, 0, 0) + data)

    # Synchronous calls

    def wait(self, call: Call) -> None:
        """The answer comes later; with the lock held."""
        self.waiting[call.unique] = call
        call.request.call = call
        cancel = call.request.cancel_fd
        if cancel is not None:
            call.watching = cancel.hold()
            self.watch(cancel.fd, lambda: self.cancel(call, errno.ECANCELED))
        if call.interrupted:
            self.signalled(call)

    def finished(self, request: Request) -> None:
        """The core is done with a call; with the lock held, on whatever thread that was."""
        call: Call = request.call
        self.waiting.pop(call.unique, None)
        if call.watching is not None:
            self.unwatch(call.watching)
            call.watching = None
        try:
            self.begin(call, call)
        except KdbusError as error:
            # It keeps too many of our threads already to be told more than that.
            request.drop()
            self.close(call)
            self.answer(call.unique, error.errno, b"")
            return
        self.crew.later(lambda: self.tell(call))

    def tell(self, call: Call) -> None:
        try:
            self.timed(call.handle, lambda: self.conclude(call))
        finally:
            with self.domain.lock:
                self.end(call, call)

    def timed(self, handle: Opened, job: Callable[[], None]) -> None:
        """Does what may last; who made it last is not trusted any more."""
        began = time.monotonic()
        try:
            job()
        finally:
            if time.monotonic() - began > PATIENCE:
                self.filesystem.suspect(handle)

    def cancel(self, call: Call | QuickCall, number: int) -> None:
        with self.domain.lock:
            conn = call.handle.conn
            if call.unique in self.waiting and conn is not None:
                conn.bus.cancel(call.request.pending, number)

    # Signals

    def interrupt(self, unique: int) -> None:
        """A signal for a client that waits for us."""
        with self.domain.lock:
            call = self.active.get(unique)
            if call is not None:
                self.signalled(call)

    def signalled(self, call: Call | QuickCall) -> None:
        # The kernel's module would have the call begun again after the handler has run; from here
        # that cannot be asked for. So a caught signal waits for the call's end, as it may be short.
        if fatal_pending(call.tid):
            self.abandon(call)
        else:
            # A second signal is not reported, so we have to look for it.
            call.interrupted = True
            self.check_later()

    def abandon(self, call: Call | QuickCall) -> None:
        """The client is to die. If one of our threads waits for its memory, that memory goes only
        when the client does, and the client only when it is answered."""
        if call.unique in self.waiting:
            self.cancel(call, errno.EINTR)
        else:
            self.close(call)
            self.answer(call.unique, errno.EINTR, b"")

    def check_signals(self) -> bool:
        """Whether it is to be called again."""
        with self.domain.lock:
            calls = [call for call in self.active.values() if call.interrupted]
            for call in calls:
                if fatal_pending(call.tid):
                    self.abandon(call)
            return bool(calls)
