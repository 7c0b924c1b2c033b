"""Front: the sockets of a domain, on somebody's event loop.

Invariant: all of it happens on the loop's thread; only what the domain tells (`note`, `finished`,
deadlines) may come from other threads, and is handed over. Nothing waits for a client. Each turn
of a socket is bounded, and what a peer did wrong ends that peer, after the turn.

One set (`ways.poll_set()`) holds all sockets, and the loop watches that; a wake-up serves whatever
is ready.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import sys
import threading
import traceback
from functools import partial
from typing import Any

from jitney.broker.kdbus.domain import Domain
from jitney.broker.kdbus.errors import KdbusError
from jitney.compat import ways

from ..deadlines import Deadlines
from ..jobs import Jobs
from ..request import Request
from . import frames as f
from . import quick, rounds
from .caller import SocketCreds, connected
from .lines import PATIENCE, CommandLines, Paused, Stalled
from .peer import Opened, Peer
from .purse import Purse
from .reading import TURN, Reading
from .root import Root
from .serve import Server
from .slots import FrontSlots
from .sysio import Poll, Reader
from .tree import Node, Tree

ACCEPT_MAX = 64
ACCEPT_REST = 0.1
USER_SOCKETS_MAX = 4096
OUT = 128

_READ = ways.IN


class Front(Server, Reading, FrontSlots):
    """`directory`: where the sockets are; `stream`: SOCK_STREAM instead of SOCK_SEQPACKET."""

    def __init__(self, domain: Domain, directory: str | Root, stream: bool = False) -> None:
        super().__init__()
        self.domain = domain
        self.directory = directory
        # Who may make buses: all users, where we serve all.
        self.control_mode = 0o666 if os.geteuid() == 0 else 0o600
        self.stream = stream
        self.jobs = Jobs()
        self.tokens: dict[bytes, Opened] = {}
        self.peers: dict[int, Any] = {}
        self.user_sockets: dict[int, int] = {}
        self.purses: dict[int, Purse] = {}
        self.room = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # For descriptors that came with what is no frame.
        self.strangers = Purse(self.jobs.later, self.recovered, 0)
        self.news: list[Opened] = []
        self.doomed: list[Peer] = []
        self.resting: list[Node] = []
        self.settling: list[tuple[Peer, int, int]] = []
        # What was ready in a round and is none of ours.
        self.others: list[tuple[int, int]] = []
        # In a round of ours, with the lock: what comes up is told at the end of a turn.
        self.serving = False
        self.number = 0
        self.whole = False
        self.reader = Reader(bytearray(f.FRAME_MAX))
        self.view = memoryview(self.reader.buffer)
        # Where frames are made that are sent at once.
        self.out = bytearray(OUT)
        self.lines = CommandLines(self.jobs.later, self.call)
        self.turn = self.drain_stream if stream else partial(rounds.drain, self)

    def start(self, loop: Any, waits: bool = False) -> None:
        """Serves from now on; OSError if that cannot be. `waits`: it does a BusLoop's waiting."""
        self.loop = loop
        self.thread = threading.get_ident()
        self.waits = waits
        if waits:
            waiter = rounds.Waiter(self)
            self.poll = ways.poll_set(loop.adopt(waiter))
        else:
            self.poll = ways.poll_set()
        self.ready = Poll(self.poll)
        kind = socket.SOCK_STREAM if self.stream else socket.SOCK_SEQPACKET
        domain = self.domain
        try:
            self.show(kind)
        except BaseException:
            if waits:
                loop.release()
            self.poll.close()
            raise
        self.deadlines = Deadlines(domain, loop)
        self.before = (domain.changed, domain.made, domain.removed)
        domain.changed = self.deadline_changed
        domain.made = self.tree.made
        domain.removed = self.tree.removed
        if not waits:
            ways.watch(self.poll, loop, self.round)

    def show(self, kind: int) -> None:
        """Makes all nodes that there are to be."""
        root = self.directory
        if not isinstance(root, Root):
            root = Root(root, kind)
        try:
            self.tree = Tree(root, self.opened, self.closed, self.control_mode)
            for bus in list(self.domain.buses.values()):
                self.tree.made(bus, None)
                for endpoint in list(bus.endpoints.values()):
                    if endpoint.custom:
                        self.tree.made(bus, endpoint)
        except KdbusError as error:
            root.close()
            raise OSError(error.errno, os.strerror(error.errno), root.path) from error
        except BaseException:
            root.close()
            raise

    def close(self) -> None:
        """Ends all clients, and takes the sockets away."""
        if self.waits:
            self.loop.release()
        else:
            ways.unwatch(self.poll, self.loop)
        with self.domain.lock:
            for peer in list(self.peers.values()):
                if isinstance(peer, Peer):
                    self.lose(peer)
            self.domain.changed, self.domain.made, self.domain.removed = self.before
            self.tree.close()
        self.deadlines.close()
        self.ready.close()
        self.poll.close()
        self.jobs.close()

    # What the domain tells

    def here(self) -> bool:
        return threading.get_ident() == self.thread

    def call(self, what: Any, *arguments: Any) -> None:
        """On the loop's thread, soon."""
        try:
            if self.here():
                self.loop.call_soon(what, *arguments)
            else:
                self.loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            pass  # the loop has ended

    def deadline_changed(self, deadline: int) -> None:
        if self.before[0] is not None:
            self.before[0](deadline)
        if self.here():
            self.deadlines.arm(deadline)
        else:
            self.call(self.deadlines.arm, deadline)

    def note(self, handle: Opened) -> None:
        if not handle.noted:
            handle.noted = True
            self.news.append(handle)
            if not self.serving:
                self.call(self.tell_later)

    def tell_later(self) -> None:
        with self.domain.lock:
            self.tell_all()

    # Sockets

    def opened(self, node: Node) -> None:
        self.peers[node.fd] = node
        self.poll.register(node.fd, _READ)

    def closed(self, node: Node) -> None:
        del self.peers[node.fd]
        if node in self.resting:
            self.resting.remove(node)
        else:
            self.poll.unregister(node.fd)

    def accept(self, node: Node) -> None:
        for _ in range(ACCEPT_MAX):
            try:
                sock, _ = node.sock.accept()
            except (BlockingIOError, ConnectionError, InterruptedError):
                return
            except OSError:
                # No descriptors are left. Until there are, this node is not looked at.
                self.poll.unregister(node.fd)
                self.resting.append(node)
                if len(self.resting) == 1:
                    self.loop.call_later(ACCEPT_REST, self.rested)
                return
            try:
                self.take(sock, node)
            except OSError:
                sock.close()

    def rested(self) -> None:
        nodes, self.resting = self.resting, []
        for node in nodes:
            self.poll.register(node.fd, _READ)

    def take(self, sock: socket.socket, node: Node) -> None:
        creds = connected(sock)
        handle = Opened(self, self.domain, node.endpoint, creds)
        try:
            handle.first = self.join(sock, handle, creds)
        except KdbusError:
            sock.close()

    def join(self, sock: socket.socket, handle: Opened, creds: SocketCreds) -> Peer:
        """One more socket of a handle; EMFILE."""
        sock.setblocking(False)
        if hasattr(socket, "SO_PASSCRED"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        uid = creds.euid
        most = self.share(uid)
        if self.user_sockets.get(uid, 0) >= min(USER_SOCKETS_MAX, most):
            raise KdbusError(errno.EMFILE)
        purse = self.purses.get(uid)
        if purse is None:
            purse = self.purses[uid] = Purse(self.jobs.later, self.recovered, most)
        peer = Peer(self, sock, handle, creds, purse)
        self.poll.register(peer.fd, _READ)
        self.peers[peer.fd] = peer
        self.user_sockets[uid] = self.user_sockets.get(uid, 0) + 1
        handle.sockets += 1
        if purse.full:
            self.stall(peer)
        return peer

    def share(self, uid: int) -> int:
        """So many descriptors of ours one user may have as sockets, and as many in queues."""
        # Where the server is a user's own, there are no others to keep out.
        return self.room // (3 if uid == os.geteuid() else 16)

    def stall(self, peer: Peer) -> None:
        """Nothing is read from it until its user's descriptors are closed."""
        peer.paused = Stalled()
        purse = peer.memory.purse
        purse.stalled.append(peer)
        self.rearm(peer)
        if not purse.full:
            # It has become so just now, on its thread.
            self.recovered(purse)

    def recovered(self, purse: Purse) -> None:
        self.call(self.go_on_all, purse)

    def go_on_all(self, purse: Purse) -> None:
        stalled, purse.stalled = purse.stalled, []
        with self.domain.lock:
            for peer in stalled:
                peer.paused = None
                self.rearm(peer)
            self.tell_all()

    def rearm(self, peer: Peer) -> None:
        """It reads while it owes nothing."""
        if not peer.dead:
            events = ways.OUT if peer.owed else 0 if peer.paused is not None else _READ
            self.poll.modify(peer.fd, events)

    def doom(self, peer: Peer) -> None:
        self.doomed.append(peer)
        if not self.serving:
            self.call(self.tell_later)

    def lose(self, peer: Peer) -> None:
        """Its socket is of no use any more."""
        if peer.dead:
            return
        del self.peers[peer.fd]
        self.poll.unregister(peer.fd)
        peer.close()
        self.close_fds(peer.part_fds, peer)
        if peer.paused is not None:
            self.close_fds(peer.paused.fds, peer)
        uid = peer.creds.euid
        self.user_sockets[uid] -= 1
        if not self.user_sockets[uid]:
            del self.user_sockets[uid]
        handle = peer.handle
        handle.sockets -= 1
        if handle.first is peer:
            if not peer.ending:
                self.finish(handle)
        else:
            handle.channels.discard(peer)
            for request in list(peer.calls.values()):
                self.cancel(request, errno.EINTR)

    def finish(self, handle: Opened) -> None:
        """Nobody is there any more who has it open."""
        handle.first = None
        self.tokens.pop(handle.token, None)
        handle.close()
        for peer in handle.channels:
            self.doom(peer)

    # Cancel descriptors

    def watch(self, fd: int, request: Request) -> None:
        try:
            self.poll.register(fd, _READ)
            self.peers[fd] = request
        except OSError:
            pass  # out of memory: it cannot be cancelled this way

    def cancelled(self, fd: int, request: Request) -> None:
        # In the same round its number may have been another one's.
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if poll.poll(0):
            self.cancel(request, errno.ECANCELED)

    def unwatch(self, fd: int) -> None:
        if self.peers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    # Rounds

    def round(self) -> None:
        try:
            rounds.serve(self, 0)
            self.others.clear()
            if self.settling:
                self.loop.call_soon(self.round)
        except Exception:
            # What goes wrong here must not end the loop, which has others to serve.
            traceback.print_exc(file=sys.stderr)

    def settled(self, peer: Peer, serial: int, flags: int) -> None:
        self.done(peer, f.SETTLE, serial, flags)

    def take_turn(self, fd: int, peer: Any) -> None:
        if type(peer) is Peer:
            self.turn(peer)
        elif type(peer) is Node:
            self.accept(peer)
        else:
            self.cancelled(fd, peer)

    def pay(self, peer: Peer) -> None:
        """It can be told more of what it is owed."""
        if not peer.flush():
            return
        if peer.ending:
            self.end(peer)
            return
        self.rearm(peer)
        if peer.is_first:
            self.note(peer.handle)

    # Command lines

    def pause(self, peer: Peer, paused: Paused, pid: int) -> bool:
        """Whether the frame waits: until the sender's command line is known, or for a moment."""

        def go_on() -> None:
            if peer.paused is paused:
                self.go_on(peer, paused)

        def give_up() -> None:
            self.lines.keep(pid, None)
            go_on()

        if not self.lines.ask(pid, peer.creds.uid, go_on):
            return False
        peer.paused = paused
        paused.timer = self.loop.call_later(PATIENCE, give_up)
        self.rearm(peer)
        return True

    def go_on(self, peer: Peer, paused: Paused) -> None:
        paused.timer.cancel()
        if peer.dead:
            return
        with self.domain.lock:
            peer.paused = None
            self.rearm(peer)
            self.serve(peer, memoryview(paused.frame), paused.fds, paused.said, paused.lost_fds)
            self.tell_all()

    # News

    def tell_all(self) -> None:
        """What came up while somebody was served."""
        while self.news or self.doomed:
            while self.doomed:
                self.lose(self.doomed.pop())
            if self.news:
                handle = self.news.pop()
                handle.noted = False
                self.tell(handle)

    def tell(self, handle: Opened) -> None:
        conn = handle.conn
        first = handle.first
        if conn is None or first is None or first.dead:
            return
        if not conn.active:
            first.ending = True
            if not first.owed:
                self.end(first)
        elif handle.fed:
            quick.feed(self, handle, first)
        elif conn.readable and not handle.told:
            handle.told = True
            first.send(f.WAKE_FRAME)

    def end(self, peer: Peer) -> None:
        """A connection is over, and its first socket has got all that it was owed."""
        peer.ending = True
        try:
            peer.sock.shutdown(socket.SHUT_RDWR)
            # Nothing may be left unread, for then the client would be told of an error instead.
            for _ in range(TURN):
                if not peer.sock.recv(1):
                    break
        except OSError:
            pass
        handle = peer.handle
        self.lose(peer)
        # Other sockets go on, and are told that it is over.
        self.tokens.pop(handle.token, None)
        handle.close()
