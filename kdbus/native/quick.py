"""Quick: the SENDs that most SENDs are, without the detour over commands and requests.

Invariant: what is done here is what `serve` would do, answers included. A frame is taken only if
nothing about it is special, and before anything is done for it; all others are left to `serve`:
those with descriptors, signals, unusual items, anything that might be refused for its form, senders
that somebody asks metadata of, and buses with monitors.
"""

from __future__ import annotations

import errno
import sys
import traceback
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.metadata import PROCESS
from jitney.broker.kdbus.reply import Awaiting

from ..ordinary import Payload
from .frames import OUTBOX

if not cython.compiled:
    from jitney.broker.kdbus.loads import get32, get64, set32, set64
    from jitney.broker.kdbus.message import Message

    from ..ordinary import read as read_message
    from .sysio import send as socket_send

_SEND = 0x90
_ANSWER = 0x90 + 0x8000
_FED = 0x8201
_PROCESS = PROCESS
_CREDIT_MAX = 1024
_OUTBOX = OUTBOX
_NO_FDS = ()


class Framed(Payload):
    """Payload in the frame (`buffer[first:end]`) or in the outbox of `memory`. None of it is copied
    here, so that it is only good for the call that the frame asks for."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.buffer = bytearray()
        self.first = 0
        self.end = 0

    def take(self, message: Message, where: int, size: int) -> bool:
        if where < _OUTBOX:
            if where < self.first or size > self.end or where > self.end - size:
                return False
            message.lend(self.buffer, where, size)
            return True
        try:
            message.add_data(self.memory.lend(where - _OUTBOX, size))
        except KdbusError:
            return False
        return True


class QuickCall(Awaiting):
    """A synchronous SEND that waits; in `peer.calls` it is what a Request is for others. It keeps
    the command's struct, field by field."""

    server: Any
    peer: Any
    serial: int
    flags: int
    address: int
    reply_offset: int
    reply_size: int
    reply_flags: int
    pending: Any
    over: bool
    cancel_fd = None

    @property
    def call(self) -> QuickCall:
        return self

    def tell(self, number: int, received: Any) -> None:
        """The core is done with it; with the lock held, on whatever thread that is."""
        if self.over:
            return
        self.over = True
        # In a round the lock is ours, and nobody else is told anything.
        if self.server.serving or self.server.here():
            self.end(number, received)
        else:
            self.server.call(self.end, number, received)

    def end(self, number: int, received: Any) -> None:
        self.peer.calls.pop(self.serial, None)
        self.answer(number, received)

    def answer(self, number: int, received: Any) -> None:
        server = self.server
        peer = self.peer
        handles = _NO_FDS
        if received is not None:
            self.reply_offset = received.offset
            self.reply_size = received.size
            self.reply_flags = received.return_flags
            if received.fds:
                handles = server.install(peer.handle, received)
        out = server.out
        set32(out, 0, 80)
        set32(out, 4, _ANSWER)
        set32(out, 8, self.serial)
        set32(out, 12, number)
        set32(out, 16, len(handles))
        set32(out, 20, 0)
        set64(out, 24, 56)
        set64(out, 32, self.flags)
        set64(out, 40, 0)
        set64(out, 48, self.address)
        set64(out, 56, self.reply_offset)
        set64(out, 64, self.reply_size)
        set64(out, 72, self.reply_flags)
        if not put(peer, out, 80, handles):
            # The kernel does not let us pass them on.
            server.uninstall(peer.handle, received)
            set32(out, 16, 0)
            set64(out, 72, 1)
            peer.send(bytes(out[:80]))


def new_call(server: Any, peer: Any, serial: int, buffer: bytearray, first: int) -> QuickCall:
    """`buffer` has the command's struct at `first`."""
    made = QuickCall.__new__(QuickCall)
    made.server = server
    made.peer = peer
    made.serial = serial
    made.flags = get64(buffer, first + 8)
    made.address = get64(buffer, first + 24)
    made.reply_offset = get64(buffer, first + 32)
    made.reply_size = get64(buffer, first + 40)
    made.reply_flags = get64(buffer, first + 48)
    made.pending = None
    made.over = False
    return made


def put(peer: Any, out: bytearray, size: int, handles: Any) -> bool:
    """Peer.send() of the first bytes of `out`, without a detour where the socket takes them."""
    if not handles and not peer.owed and not peer.dead:
        sent = socket_send(peer.sock, peer.fd, out, size)
        if sent == size:
            return True
        if sent > 0:
            return bool(peer.send(bytes(out[sent:size])))
    return bool(peer.send(bytes(out[:size]), handles))


def plain(peer: Any) -> bool:
    """Whether all is known of a frame's sender that `serve` would have to find out."""
    caller = peer.caller
    if caller is None or caller.claimed or not caller.pid:
        return False
    peer.plain_caller = caller
    return True


def send(server: Any, peer: Any, buffer: bytearray, n: int, said: Any) -> bool:
    """Whether it was a SEND for us, and is done; without descriptors. `buffer[:n]` is the frame."""
    if n < 144 or get32(buffer, 4) & 0xFFFF != _SEND:
        return False
    flags = get32(buffer, 4) >> 16
    serial = get32(buffer, 8)
    frees = get32(buffer, 12)
    credit = get32(buffer, 16)
    handle = peer.handle
    conn = handle.conn
    if (
        conn is None or flags > 1 or not serial or frees > 1024 or get32(buffer, 20)
        or (said is not peer.said and said != peer.said)
        or ((peer.plain_caller is None or peer.plain_caller is not peer.caller) and not plain(peer))
    ):  # fmt: skip
        return False
    bus = conn.bus
    first = 24 + 8 * frees
    if (
        not conn.active or not conn.ordinary or handle.first is None or bus.monitors
        or bus.wanted & _PROCESS or (peer.calls and serial in peer.calls) or first + 120 > n
        or get64(buffer, first) != 56 or get64(buffer, first + 8) > 1 or get64(buffer, first + 16)
        or (frees and handle.numbers)
    ):  # fmt: skip
        return False
    sync = get64(buffer, first + 8) == 1
    if flags and sync:
        return False
    at = get64(buffer, first + 24)
    if at & 7 or at < first + 56 or at > n - 64:
        return False
    payload = peer.payload
    payload.buffer = buffer
    payload.first = first
    payload.end = n
    message = read_message(bus, conn.id, buffer, at, n - at, sync, payload)
    if message is None:
        return False
    if bus.foreign is not None:
        message.unfold()
    peer.used = True
    error = 0
    call = None
    try:
        for freed in range(24, first, 8):
            try:
                conn.free(get64(buffer, freed))
            except KdbusError:
                error = errno.ENXIO
        if error:
            # As for all commands: what was not done at all has no more of an answer.
            peer.send(bare(serial, error))
            return True
        if credit and handle.fed:
            handle.credit = min(handle.credit + credit, _CREDIT_MAX)
            server.note(handle)
        if not sync:
            bus.send(conn, message, peer.caller, None)
            if flags:
                return True
            call = new_call(server, peer, serial, buffer, first)
            call.reply_offset = conn.pool.size
            call.reply_size = call.reply_flags = 0
            call.answer(0, None)
            return True
        call = new_call(server, peer, serial, buffer, first)
        # Where the answer is there at once, it takes the call out again.
        peer.calls[serial] = call
        call.pending = bus.send(conn, message, peer.caller, call)
        return True
    except KdbusError as refused:
        error = refused.errno
    except OSError as failed:
        error = failed.errno or errno.EIO
    except Exception:
        traceback.print_exc(file=sys.stderr)
        error = errno.EIO
    if call is None:
        call = new_call(server, peer, serial, buffer, first)
    elif call.over:
        return True
    call.over = True
    if sync:
        peer.calls.pop(serial, None)
    call.answer(error, None)
    return True


def bare(serial: int, error: int) -> bytes:
    head = bytearray(24)
    set32(head, 0, 24)
    set32(head, 4, _ANSWER)
    set32(head, 8, serial)
    set32(head, 12, error)
    return bytes(head)


def feed(server: Any, handle: Any, first: Any) -> None:
    """Hands over what is queued, as far as the credit goes."""
    conn = handle.conn
    while handle.credit > 0 and not first.owed and len(conn.queue):
        lost, conn.lost = conn.lost, 0
        received = conn.next()
        handle.credit -= 1
        handles = server.install(handle, received) if received.fds else _NO_FDS
        out = server.out
        set32(out, 0, 56)
        set32(out, 4, _FED)
        set64(out, 8, 0)
        set32(out, 16, len(handles))
        set32(out, 20, 0)
        set64(out, 24, received.offset)
        set64(out, 32, received.size)
        set64(out, 40, received.return_flags)
        set64(out, 48, lost)
        if not put(first, out, 56, handles):
            server.uninstall(handle, received)
            set32(out, 16, 0)
            set64(out, 40, received.return_flags | 1)
            first.send(bytes(out[:56]))
