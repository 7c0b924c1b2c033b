"""Whatever a system call says, the bus goes on and its accounts are right.

The compiled transport calls the C library itself, so that the failures can be made up only for
the plain twin; the hub above is the same source in both builds."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kernel
import pytest
from rawclient import RawClient
from waiting import PATIENCE

from jitney.broker import mem
from jitney.compat import sysio, ways
from jitney.compat.assembly import BusService
from jitney.compat.auth import Offer
from jitney.compat.cli import Options
from jitney.compat.config import load
from jitney.compat.listen import Listener
from jitney.compat.log import Log
from jitney.compat.loop import BusLoop

pytestmark = pytest.mark.skipif(mem.COMPILED, reason="compiled system calls cannot be replaced")

CONFIG = """<busconfig><type>session</type><listen>unix:tmpdir=/tmp</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/><allow own="*"/><allow user="*"/></policy></busconfig>"""


class FaultySocket:
    """A socket whose calls fail with the errno values that a test puts in `faults`, once each."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.faults: dict[str, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.sock, name)

        def call(*args: Any) -> Any:
            waiting = self.faults.get(name)
            if waiting:
                code = waiting.pop(0)
                raise OSError(code, os.strerror(code))
            return real(*args)

        return call


class World:
    """A whole bus on a loop of the test's, and clients on socket pairs."""

    def __init__(self, directory: Path) -> None:
        file = directory / "bus.conf"
        file.write_text(CONFIG)
        # Without epoll there is no set within a set.
        self.loop = asyncio.new_event_loop() if ways.LINUX else BusLoop()
        self.offer = Offer("0" * 32, ["EXTERNAL"])
        daemon = SimpleNamespace(
            config=load(str(file)),
            options=Options(),
            metrics=[],
            log=Log(stderr=False),
            fd_limit=None,
            address="",
            guid="",
            places=None,
            listeners=[],
            reload_soon=lambda: None,
        )
        self.service = BusService(daemon, self.loop)  # type: ignore[arg-type]
        self.hub, self.bus = self.service.hub, self.service.bus
        self.clients: list[RawClient] = []

    def connect(self, faults: dict[str, list[int]] | None = None) -> tuple[RawClient, FaultySocket]:
        """A client that has said Hello, and the bus's end of it."""
        ours, theirs = socket.socketpair()
        faulty = FaultySocket(ours)
        faulty.faults = faults or {}
        listener = SimpleNamespace(kind="unix", nonce=b"", offer=self.offer, endpoint=None)
        self.hub.admit(sysio.attach(faulty), listener)  # type: ignore[arg-type]
        client = RawClient.__new__(RawClient)
        client.timeout, client.serial, client.closed = PATIENCE, 0, False
        client.sock, client._unread, client._fds = theirs, b"", []
        identity = str(os.getuid()).encode().hex().encode()
        client.send(b"\0AUTH EXTERNAL " + identity + b"\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n")
        serial = client.driver(b"Hello")
        self.turn()
        client._expect(b"OK ")
        client._expect(b"AGREE_UNIX_FD")
        client.unique_name = client.reply_to(serial).body[0]
        self.clients.append(client)
        return client, faulty

    def turn(self) -> None:
        """Lets the loop do what is ready, and what that made ready."""
        for _ in range(10):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def turn_until(self, true: Any) -> None:
        """Runs the loop until something is so (timers, too)."""
        end = self.loop.time() + PATIENCE
        while not true():
            assert self.loop.time() < end
            self.loop.run_until_complete(asyncio.sleep(0.01))

    def alive(self, client: RawClient) -> None:
        serial = client.driver(b"GetId")
        self.turn()
        assert client.reply_to(serial).signature == "s"

    def balanced(self) -> None:
        """What users are charged is what is queued."""
        size = fds = 0
        for conn in self.bus.connections.values():
            size += sum(entry[0] for entry in conn.queue.charges_list())
            fds += conn.queue.n_fds
        users = self.bus.accounts.users
        assert sum(user.bytes for user in users) == size
        assert sum(user.fds for user in users) == fds
        assert sum(user.connections for user in users) == len(self.bus.connections)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.turn()
        self.balanced()
        assert self.hub.n_peers == 0
        self.service.close()
        self.loop.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


PASSING = [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM]
FINAL = [errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESRCH, errno.EMFILE, errno.EIO]


def call(client: RawClient, dest: RawClient, fds: list[int] | None = None) -> int:
    fds = fds or []
    return client.message(
        destination=dest.unique_name.encode(), path=b"/", member=b"M",
        signature="h" * len(fds), values=list(range(len(fds))), fds=fds, flags=1,
    )  # fmt: skip


@pytest.mark.parametrize("with_fd", [False, True], ids=["bytes", "fd"])
@pytest.mark.parametrize("code", PASSING, ids=errno.errorcode.get)
def test_sends_that_may_succeed_later(world: World, code: int, with_fd: bool) -> None:
    a, _ = world.connect()
    b, ours = world.connect()
    r, w = os.pipe()
    ours.faults = {"send": [code] * 2, "sendmsg": [code] * 2}
    call(a, b, [r] if with_fd else None)
    call(a, b)
    world.turn()
    world.balanced()
    world.alive(a)
    world.turn_until(lambda: not sum(user.bytes for user in world.bus.accounts.users))
    arrived = []
    while len(arrived) < 2:
        message = b.receive()
        assert message is not None
        if message.member == "M":
            arrived.append(message.n_fds)
            message.close_fds()
    assert arrived == [int(with_fd), 0]
    os.close(r)
    os.close(w)


def test_a_pause_is_a_pause(world: World) -> None:
    """ENOBUFS right after the socket was full: one attempt, then none until time has passed."""
    a, _ = world.connect()
    b, ours = world.connect()
    shortage = [errno.ENOBUFS] * 100
    ours.faults = {"send": [errno.EAGAIN, *shortage]}
    call(a, b)
    for _ in range(20):
        world.turn()
    assert len(ours.faults["send"]) >= 98
    world.alive(a)
    ours.faults.clear()
    world.turn_until(lambda: not sum(user.bytes for user in world.bus.accounts.users))
    while (message := b.receive()) is not None and message.member != "M":
        pass
    assert message is not None


@pytest.mark.parametrize("code", FINAL, ids=errno.errorcode.get)
@pytest.mark.parametrize("which", ["send", "sendmsg", "recvmsg_into"])
@pytest.mark.weakness("dbus-broker#427")
def test_what_ends_a_peer_ends_only_that(world: World, which: str, code: int) -> None:
    a, _ = world.connect()
    b, ours = world.connect()
    r, w = os.pipe()
    ours.faults = {which: [code]}
    call(a, b, [r] if which == "sendmsg" else None)
    if which == "recvmsg_into":
        b.driver(b"GetId")
    world.turn()
    world.balanced()
    os.close(r)
    os.close(w)
    while b.receive() is not None:
        pass
    assert b.closed
    world.alive(a)
    assert world.bus.lookup(b.unique_name.encode()) is None


@pytest.mark.weakness("CVE-2014-3532")
def test_too_many_references(world: World) -> None:
    """The message goes, not its receiver (CVE-2014-3532)."""
    a, _ = world.connect()
    b, ours = world.connect()
    r, w = os.pipe()
    ours.faults = {"sendmsg": [errno.ETOOMANYREFS]}
    call(a, b, [r, w])
    call(a, b)
    world.turn()
    world.balanced()
    os.close(r)
    os.close(w)
    while True:
        message = b.receive()
        assert message is not None
        if message.member == "M":
            assert message.n_fds == 0
            break
    world.alive(b)


@pytest.mark.parametrize(
    "code", [errno.ENOPROTOOPT, errno.EMFILE, errno.ESRCH, errno.ENOTCONN, errno.EINVAL]
)
@pytest.mark.weakness("dbus-broker#427")
def test_credentials_that_cannot_be_had(world: World, code: int) -> None:
    a, _ = world.connect()
    b, ours = world.connect()
    ours.faults = {"getsockopt": [code] * 20}
    name = b.unique_name
    for member in (b"GetConnectionCredentials", b"GetConnectionUnixUser"):
        serial = a.driver(member, "s", name)
        world.turn()
        assert a.reply_to(serial).signature in ("a{sv}", "u")
    world.alive(b)


@kernel.needs_linux_ways
def test_a_peer_whose_credentials_fail_at_once_is_refused(world: World) -> None:
    a, _ = world.connect()
    with pytest.raises(ConnectionError):
        world.connect({"getsockopt": [errno.ENOPROTOOPT]})
    world.alive(a)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
@pytest.mark.weakness("dbus-broker#427", "dbus-broker#462")
def test_accept_fails(world: World, tmp_path: Path, code: int) -> None:
    a, _ = world.connect()
    path = str(tmp_path / "socket")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    server.setblocking(False)
    faulty = FaultySocket(server)
    faulty.faults = {"accept": [code, code]}
    listener = Listener(faulty, "", "0" * 32, "unix", b"")  # type: ignore[arg-type]
    listener.offer = world.offer
    fd = sysio.attach(faulty)  # type: ignore[arg-type]
    world.hub.acceptor.listeners[fd] = listener
    world.hub.listen(fd, True)
    late = socket.socket(socket.AF_UNIX)
    late.connect(path)
    late.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
    world.turn()
    world.alive(a)
    before = world.hub.n_peers
    world.turn_until(lambda: world.hub.n_peers > before)
    world.turn()
    late.settimeout(PATIENCE)
    assert late.recv(100).startswith(b"OK ")
    late.close()
    world.turn()
    world.hub.listen(fd, False)
    del world.hub.acceptor.listeners[fd]
    sysio.close_socket(fd)


def test_a_bug_costs_one_peer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw: an exception while sending, or while routing."""
    a, _ = world.connect()
    b, _ = world.connect()
    c, _ = world.connect()
    conn = world.bus.lookup(b.unique_name.encode())
    monkeypatch.setattr(type(conn.queue), "sent", raise_once(type(conn.queue).sent, conn.queue))
    call(a, b)
    world.turn()
    while b.receive() is not None:
        pass
    world.alive(a)
    world.balanced()
    monkeypatch.setattr(world.bus, "find_dest", raise_once(world.bus.find_dest))
    call(a, c)
    world.turn()
    while a.receive() is not None:
        pass
    world.alive(c)
    world.balanced()


def test_a_bug_at_the_end_of_a_peer_keeps_no_socket(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = world.connect()
    b, _ = world.connect()
    monkeypatch.setattr(world.bus, "disconnect", raise_once(world.bus.disconnect))
    before = world.hub.n_peers
    conn = world.bus.lookup(b.unique_name.encode())
    b.sock.shutdown(socket.SHUT_WR)
    world.turn()
    assert world.hub.n_peers == before - 1
    while b.receive() is not None:
        pass
    world.alive(a)
    world.bus.disconnect(conn)


def test_descriptors_of_an_interrupted_read_go_to_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception between receiving descriptors and handing them to their peer."""
    a, _ = world.connect()
    b, _ = world.connect()
    r, w = os.pipe()
    monkeypatch.setattr(world.hub, "take_fds", raise_once(world.hub.take_fds))
    call(a, b, [w])
    os.close(w)
    world.turn()
    assert os.read(r, 1) == b"", "somebody still holds the other end"
    os.close(r)
    while a.receive() is not None:
        pass
    r, w = os.pipe()
    call(b, b, [r])
    os.close(r)
    os.write(w, b"mine")
    os.close(w)
    world.turn()
    while (message := b.receive()) is not None and message.member != "M":
        pass
    assert message is not None
    assert [os.read(fd, 9) for fd in message.fds] == [b"mine"]
    message.close_fds()


def test_no_room_in_the_poller(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = world.connect()
    monkeypatch.setattr(world.hub.poller, "add", lambda fd: -1)
    with pytest.raises(ConnectionError):
        world.connect()
    monkeypatch.undo()
    world.connect()
    world.alive(a)


def raise_once(real: Any, only: Any = None) -> Any:
    """`real`, but for its first call (with `only` as its first argument)."""
    raised: list[bool] = []

    def stand_in(*args: Any) -> Any:
        if not raised and (only is None or args[0] is only):
            raised.append(True)
            raise MemoryError
        return real(*args)

    return stand_in


def test_a_bug_in_the_first_read_keeps_no_socket(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = world.connect()
    before = world.hub.n_peers
    monkeypatch.setattr(world.hub, "read_auth", raise_once(world.hub.read_auth))
    ours, theirs = socket.socketpair()
    listener = SimpleNamespace(kind="unix", nonce=b"", offer=world.offer, endpoint=None)
    world.hub.admit(sysio.attach(ours), listener)  # type: ignore[arg-type]
    assert world.hub.n_peers == before
    assert not world.hub.incomplete
    theirs.settimeout(PATIENCE)
    assert theirs.recv(1) == b""
    theirs.close()
    world.alive(a)


def test_no_room_to_watch_a_listener(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    a, _ = world.connect()
    acceptor = world.hub.acceptor
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("")
        server.listen()
        fd = server.fileno()
        acceptor.listeners[fd] = SimpleNamespace(sock=server)
        monkeypatch.setattr(world.hub.poller, "add", lambda number: -1)
        acceptor.watch(fd)
        assert fd in acceptor.resting
        monkeypatch.undo()
        world.turn_until(lambda: fd not in acceptor.resting)
        world.hub.listen(fd, False)
        del acceptor.listeners[fd]
    world.alive(a)
