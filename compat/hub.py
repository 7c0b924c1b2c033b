# cython: infer_types=True
"""Hub: moves bytes between sockets and the core.

Invariant: one call of `turn()` reads once from each socket that is ready, routes every whole
message found there, and then makes one send for each receiver that got something. No
receiver waits for another: what a full socket does not take stays in its queue until the
socket is writable. No failure of a peer or of the kernel leaves this file as an exception;
it costs that peer its connection, or a pause, and nothing else.

The event loop watches the poller, and nothing else of ours. Small messages are parsed in the one
receive buffer; a message that does not fit gets a buffer of its announced size of its own.
"""

from __future__ import annotations

import errno
import traceback
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.bus import Bus
from jitney.broker.fds import FdSet
from jitney.broker.mem import Buffer
from jitney.broker.message import Message
from jitney.broker.queue import Payload

from .accept import BREATHER, Acceptor
from .auth import Auth
from .creds import Credentials
from .front import Front
from .loop import BusLoop
from .peer import CLOSED, OPEN, RECEIVE, Peer
from .sysio import HUNG_UP, WRITABLE, Intake, Outlet, Poller, close_socket
from .throttle import Throttle
from .undeliverable import forsake, undeliverable

if not cython.compiled:
    from jitney.broker.mem import copy, of_bytes, pooled, take, trim, view
    from jitney.broker.message import frame_size

    from .gather import gather
    from .sysio import now, send_one, widen

LARGE = 32768
"""From this size in bytes on a message that did not come whole gets a buffer of its own."""

MAX_MESSAGE = 134217728
UNUSED = 1.0
"""Seconds after which buffers that nobody uses any more go back to the system."""
KEEP = 262144
"""Bytes in unused buffers that are not worth a timer."""

# Copies that are C integers when compiled.
_EAGAIN = errno.EAGAIN
_RECEIVE, _OPEN, _CLOSED, _WRITABLE, _HUNG_UP = RECEIVE, OPEN, CLOSED, WRITABLE, HUNG_UP
_SHORT = frozenset({errno.ENOBUFS, errno.ENOMEM})


class Hub:
    """All sockets of a bus. `front` lets peers in (`admit`) and hears of their end (`gone`)."""

    def __init__(self, bus: Bus, front: Front) -> None:
        self.bus = bus
        self.front = front
        self.loop: Any = None
        self.poller = Poller()
        self.intake = Intake()
        self.outlet = Outlet()
        self.buffer = Buffer()
        self.msg = Message()
        self.peers: list[Peer | None] = []
        self.n_peers = 0
        self.incomplete: dict[Peer, float] = {}
        self.fd_waits: dict[Peer, float] = {}
        self.loans: list[Payload] = []
        self.released = bus.accounts.released
        self.acceptor = Acceptor(self)
        self.throttle = Throttle(bus.accounts)
        self.foreign: list[tuple[int, int]] = []
        self.stirred = False
        self.timer: Any = None
        self.timer_at = 0.0
        self.trimmer: Any = None
        self.busy_poll = 0
        self.gap = 0
        self.max_message = MAX_MESSAGE
        self.max_message_fds = 0
        self.set_limits()

    def set_limits(self) -> None:
        """Takes over the bus's limits; called again after a reload."""
        limits = self.bus.limits
        self.max_message = min(limits.max_message_size, MAX_MESSAGE)
        self.max_message_fds = limits.max_message_unix_fds
        self.throttle.set_limits(limits)

    # Life

    def start(self, loop: Any, listeners: list[Any]) -> None:
        """Begins to serve; for the listeners see `listen.Listener`."""
        self.loop = loop
        if isinstance(loop, BusLoop):
            self.poller = Poller(loop.adopt(self))
        else:
            self.poller.watch(loop, self.turn)
        self.acceptor.start(loop, listeners)

    def stop(self) -> None:
        """Ends every connection and stops watching; sockets of listeners are their owner's."""
        self.acceptor.stop()
        for peer in self.peers:
            if peer is not None:
                self.drop(peer)
        for timer in (self.timer, self.trimmer):
            if timer is not None:
                timer.cancel()
        if isinstance(self.loop, BusLoop):
            self.loop.release()
        else:
            self.poller.unwatch(self.loop)
        self.poller.close()

    def listen(self, fd: int, yes: bool) -> bool:
        """Watches a listening socket, or no longer does; False if the kernel has no room."""
        return (self.poller.add(fd) if yes else self.poller.remove(fd)) >= 0

    def admit(self, fd: int, listener: Any) -> None:
        """Takes over an accepted socket, which is closed if there is no room for it."""
        peer = Peer(fd, listener)
        peer.nonce = listener.nonce
        peer.creds = Credentials(fd)
        peer.with_fds = listener.kind == "unix"
        peer.auth = Auth(listener.offer, peer.creds.uid, peer.with_fds)
        while len(self.peers) <= fd:
            self.peers.append(None)
        if self.poller.add(fd) < 0:
            close_socket(fd)
            return
        self.peers[fd] = peer
        self.n_peers += 1
        # Whoever connects speaks first, and most have done so by now.
        try:
            self.read_auth(peer)
        except Exception:
            self.broken(peer)
        if peer.state != _CLOSED and (peer.conn is None or peer.conn.id == 0):
            when = self.bus.clock() + self.bus.limits.auth_timeout / 1000
            self.incomplete[peer] = when
            self.alarm(when)

    def completed(self, peer: Peer) -> None:
        """The peer said Hello, or is gone: it does not count as unfinished any more."""
        if self.incomplete.pop(peer, None) is not None and self.acceptor.resting:
            self.acceptor.wake()

    # Time

    def alarm(self, when: float) -> None:
        """Makes sure that `tick()` runs at `when` (bus clock) or earlier."""
        if self.timer is not None:
            if self.timer_at <= when:
                return
            self.timer.cancel()
        self.timer_at = when
        self.timer = self.loop.call_later(max(0.0, when - self.bus.clock()), self.tick)

    def tick(self) -> None:
        """Ends what has lasted too long."""
        self.timer = None
        now = self.bus.clock()
        following = []
        for waits, why in (
            (self.incomplete, "did not authenticate in time"),
            (self.fd_waits, "sent file descriptors without a message"),
        ):
            for peer, when in list(waits.items()):
                if when > now:
                    # Both are in order of time: one timeout for all.
                    following.append(when)
                    break
                text = f"Connection {peer.label} {why}; closing it"
                self.front.log("info", text, "closed", conn=peer.conn, reason=why)
                self.drop(peer)
        when = self.bus.expire()
        if when > 0:
            following.append(when)
        if following:
            self.alarm(min(following))
        self.flush()

    def tidy(self) -> None:
        """Memory that a burst left in the pool goes back when it has not been used for a while."""
        self.trimmer = self.loop.call_later(UNUSED, self.tidy) if trim() else None

    # Reading

    def turn(self) -> None:
        """Some sockets are ready: one round, for a loop that watches the poller."""
        n = self.poller.wait(0)
        if n > 0:
            self.foreign.clear()
            self.serve(n)

    def wait(self, timeout: int) -> list[tuple[int, int]]:
        """Rounds without end, for a loop whose poller this is.

        Returns what became ready that is none of ours, as (descriptor, events); or nothing, when
        `timeout` milliseconds (-1: none) are over, a signal came, or the loop has work."""
        foreign = self.foreign
        foreign.clear()
        self.stirred = False
        deadline = 0.0
        if timeout > 0:
            deadline = self.bus.clock() + timeout / 1000
        while True:
            n = self.doze(timeout) if self.busy_poll else self.poller.wait(timeout)
            if n <= 0:
                return foreign
            self.serve(n)
            if foreign or self.stirred or timeout == 0:
                return foreign
            if timeout > 0:
                left = (deadline - self.bus.clock()) * 1000
                if left <= 0:
                    return foreign
                timeout = int(left) + 1

    def doze(self, timeout: int) -> int:
        """poller.wait(), but looks for a while before it sleeps, if the last sleep was so short
        that looking would have been enough."""
        n = 0
        start = now()
        if self.gap <= self.busy_poll and timeout:
            n = self.poller.spin(self.busy_poll)
        if n == 0:
            n = self.poller.wait(timeout)
        self.gap = now() - start
        return n

    def serve(self, n: int) -> None:
        """Reads from the `n` sockets that are ready, routes, sends."""
        poller = self.poller
        n_slots = len(self.peers)
        self.bus.flushing = True
        if self.bus.metered:
            self.bus.accounts.moment = now()
        for i in range(n):
            fd = poller.fd_at(i)
            peer = self.peers[fd] if fd < n_slots else None
            events = poller.events_at(i)
            if peer is None:
                if fd not in self.acceptor.listeners:
                    self.foreign.append((fd, events))
                    continue
                self.acceptor.accept(fd)
                self.settle()
                continue
            # An event may be about a socket that had this number before.
            if events & _WRITABLE and peer.state == _OPEN:
                self.send(peer)
                if events == _WRITABLE or peer.state == _CLOSED:
                    continue
            try:
                if peer.state == _OPEN:
                    if self.throttle.must_wait(peer) and not events & _HUNG_UP:
                        self.throttle.hold(peer, poller)
                        continue
                    since = now()
                    self.read(peer)
                    self.throttle.spent(peer, now() - since)
                else:
                    self.read_auth(peer)
            except Exception:
                self.broken(peer)
            self.settle()
        self.flush()

    def read_auth(self, peer: Peer) -> None:
        buffer = self.buffer
        buffer.head = buffer.end = 0
        buffer.reserve(_RECEIVE)
        got = self.intake.recv(peer.fd, buffer.p, 0, _RECEIVE, peer.with_fds, buffer.p, 0)
        if got <= 0:
            if got != -_EAGAIN:
                self.drop(peer)
            return
        if not self.take_fds(peer):
            return
        data = take(buffer.p, 0, got)
        if peer.nonce:
            n = min(len(peer.nonce), len(data))
            if data[:n] != peer.nonce[:n]:
                self.drop(peer)
                return
            peer.nonce = peer.nonce[n:]
            data = data[n:]
        auth = peer.auth
        reply = auth.feed(data)
        if reply and not self.say(peer, reply):
            return
        if auth.failed:
            self.drop(peer)
        elif auth.done:
            self.open(peer)
        else:
            # Only what comes behind BEGIN can belong to a message.
            peer.discard_fds()

    def say(self, peer: Peer, reply: bytes) -> bool:
        # An empty socket takes a few hundred bytes; one that does not is not worth waiting for.
        done = sent = 0
        while done < len(reply) and sent >= 0:
            sent = send_one(peer.fd, of_bytes(reply), done, len(reply) - done)
            done += sent
        if sent < 0:
            self.drop(peer)
        return sent >= 0

    def open(self, peer: Peer) -> None:
        """The conversation is over and the peer is who it says it is."""
        auth = peer.auth
        conn = self.front.admit(peer, auth)
        if conn is None:
            self.drop(peer)
            return
        peer.auth = None
        peer.conn = conn
        peer.with_fds = auth.unix_fds
        peer.state = _OPEN
        if not peer.with_fds:
            peer.discard_fds()
        leftover = auth.leftover
        if leftover:
            buffer = self.buffer
            buffer.head = buffer.end = 0
            buffer.add(leftover)
            self.consume(peer, buffer)
        if peer.fds_in:
            self.await_message(peer)

    def read(self, peer: Peer) -> None:
        """Takes what the socket has and routes every whole message."""
        self.settle()
        buffer = self.buffer
        buffer.head = buffer.end = 0
        buffer.reserve(_RECEIVE)
        turn = peer.turn
        partial = peer.partial
        intake = self.intake
        if partial is None:
            got = intake.recv(peer.fd, buffer.p, 0, turn, peer.with_fds, buffer.p, 0)
            if got > 0:
                buffer.end = got
        else:
            have = partial.end - partial.head
            want = peer.wanted - have
            if peer.wanted > LARGE:
                # A large message fills a buffer of its own; what follows lands in the shared one.
                got = intake.recv(
                    peer.fd, partial.p, partial.end, want, peer.with_fds, buffer.p, turn
                )
                if got > 0:
                    if got < want:
                        partial.end += got
                    else:
                        partial.end += want
                        buffer.end = got - want
            else:
                copy(buffer.p, 0, partial.p, partial.head, have)
                turn = min(turn, _RECEIVE - have)
                got = intake.recv(peer.fd, buffer.p, have, turn, peer.with_fds, buffer.p, 0)
                if got > 0:
                    buffer.end = have + got
                    peer.partial = partial = None
        if got <= 0:
            if got != -_EAGAIN:
                self.drop(peer)
            return
        if peer.with_fds and not self.take_fds(peer):
            return
        if partial is None:
            self.consume(peer, buffer)
        elif partial.end - partial.head >= peer.wanted:
            peer.partial = None
            if self.route(peer, partial, peer.wanted):
                self.consume(peer, buffer)
        if peer.fds_in:
            self.await_message(peer)

    def take_fds(self, peer: Peer) -> bool:
        """Hands descriptors that came with the last read to the peer's account."""
        intake = self.intake
        if intake.fds:
            peer.fds_in.extend(intake.fds)
            intake.fds.clear()
        if intake.truncated:
            # The kernel had to drop some: whose they were is lost.
            intake.truncated = False
            self.drop(peer)
            return False
        return True

    def await_message(self, peer: Peer) -> None:
        """Some descriptors are left when all that has come was routed."""
        if len(peer.fds_in) > self.max_message_fds:
            self.drop(peer)
        elif peer not in self.fd_waits:
            when = self.bus.clock() + self.bus.limits.pending_fd_timeout / 1000
            self.fd_waits[peer] = when
            self.alarm(when)

    def consume(self, peer: Peer, buffer: Buffer) -> None:
        """Routes the whole messages in the shared buffer, keeps what is left of the next one."""
        while True:
            have = buffer.end - buffer.head
            if have < 16:
                peer.wanted = 16
                break
            size = frame_size(buffer.p, buffer.head, have, self.max_message)
            if size < 0:
                self.drop(peer)
                return
            if size > have:
                peer.wanted = size
                break
            if not self.route(peer, buffer, size):
                return
            buffer.head += size
        if have:
            partial = Buffer()
            partial.reserve(peer.wanted if peer.wanted > LARGE else have)
            partial.append(buffer.p, buffer.head, have)
            peer.partial = partial

    def route(self, peer: Peer, buffer: Buffer, size: int) -> bool:
        """One whole message at the buffer's head; False if the peer is gone afterwards."""
        msg = self.msg
        if not msg.parse(view(buffer.p, buffer.head, size), size):
            self.drop(peer)
            return False
        if msg.n_fds:
            if msg.n_fds > len(peer.fds_in) or msg.n_fds > self.max_message_fds:
                self.drop(peer)
                return False
            msg.fds = FdSet(peer.fds_in[: msg.n_fds])
            del peer.fds_in[: msg.n_fds]
        if self.fd_waits:
            self.fd_waits.pop(peer, None)
        try:
            self.bus.dispatch(peer.conn, msg)
        finally:
            msg.fds = None
            payload = msg.payload
            if payload is not None:
                msg.payload = None
                if payload.loaned and payload.holders:
                    if buffer is self.buffer:
                        self.loans.append(payload)
                    else:
                        payload.owner = buffer
                        payload.loaned = False
        return peer.state == _OPEN

    def settle(self) -> None:
        """The shared buffer will be used again: send what refers to it, copy what is left."""
        if not self.loans:
            return
        self.flush()
        self.bus.flushing = True
        for payload in self.loans:
            if payload.holders and not payload.pin():
                forsake(self, payload)
        self.loans.clear()

    # Writing

    def wake(self) -> None:
        """Something was queued while no round was under way: have one."""
        self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Sends to everyone who got something."""
        bus = self.bus
        bus.flushing = True
        dirty = bus.dirty
        i = 0
        # Ending a peer here may make others dirty: the list grows while we go.
        while i < len(dirty):
            conn = dirty[i]
            i += 1
            conn.queue.dirty = False
            peer = conn.transport
            if peer is not None and not peer.blocked and peer.state == _OPEN:
                self.send(peer)
        if self.trimmer is None and pooled() > KEEP:
            self.trimmer = self.loop.call_later(UNUSED, self.tidy)
        dirty.clear()
        if self.released:
            self.throttle.release(self.poller)
        bus.flushing = False

    def send(self, peer: Peer) -> None:
        """Sends what is queued for the peer, as far as its socket takes it."""
        try:
            self.send_queue(peer)
        except Exception:
            self.broken(peer)

    def broken(self, peer: Peer) -> None:
        # A bug of ours, or no memory: it costs the peer that it happened with, not the bus.
        self.front.log("warning", "Closing a connection: " + traceback.format_exc())
        # What a read did not get to hand over must not be taken for the next peer's.
        peer.fds_in.extend(self.intake.fds)
        self.intake.fds.clear()
        self.drop(peer)

    def send_queue(self, peer: Peer) -> None:
        queue = peer.conn.queue
        while queue.size:
            if queue.segments or queue.tail_fds is not None:
                want = gather(self.outlet, queue)
                sent = self.outlet.send(peer.fd)
            else:
                tail = queue.tail
                want = tail.end - tail.head
                sent = send_one(peer.fd, tail.p, tail.head, want)
            if sent >= 0:
                queue.sent(sent)
            elif sent != -_EAGAIN:
                self.unsent(peer, -sent)
                return
            if sent < want:
                if peer.wide:
                    self.block(peer)
                    return
                # It fell behind for the first time: more in the kernel is fewer turns each way.
                peer.wide = True
                widen(peer.fd)
        if peer.blocked:
            peer.blocked = False
            peer.watch(self.poller, False)

    def unsent(self, peer: Peer, code: int) -> None:
        """A send failed with this errno, not for want of room."""
        if code in _SHORT:
            # The kernel is short of memory, not the peer of room: no event will tell, so try again.
            if not peer.blocked:
                self.front.log("warning", "Failed to send: out of memory in the kernel")
            peer.blocked = True
            peer.watch(self.poller, False)
            self.loop.call_later(BREATHER, self.retry, peer)
        elif code == errno.ETOOMANYREFS and peer.conn.queue.begins_with_fds():
            undeliverable(self.bus, peer.conn)
            self.send(peer)
        else:
            self.drop(peer)

    def retry(self, peer: Peer) -> None:
        if peer.state == _OPEN:
            peer.watch(self.poller, True)

    def block(self, peer: Peer) -> None:
        """The socket is full: wait for it to be writable."""
        if not peer.blocked:
            peer.blocked = True
            peer.watch(self.poller, True)

    # The end

    def drop(self, peer: Peer) -> None:
        """Ends a peer's connection, whatever state it is in."""
        if peer.state == _CLOSED:
            return
        peer.state = _CLOSED
        fd = peer.fd
        self.peers[fd] = None
        self.n_peers -= 1
        peer.auth = None
        peer.partial = None
        self.fd_waits.pop(peer, None)
        peer.discard_fds()
        conn = peer.conn
        if conn is not None:
            try:
                self.front.gone(conn)
                self.bus.disconnect(conn)
            except Exception:
                self.front.log("warning", "Closing a connection: " + traceback.format_exc())
        self.completed(peer)
        self.poller.shut(fd)
        peer.creds.close()
        if conn is not None:
            conn.transport = None
        peer.conn = None
