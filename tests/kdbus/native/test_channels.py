"""CHANNEL and SETTLE: more ways to a handle for who holds its socket, and what a close has done."""

from __future__ import annotations

import array
import errno as e
import os
import socket
import struct

import pytest
from kdbuskit import command, item, message, u64
from nativeclient import Bus, Errno, Frame, Peer, Socket
from nativeserver import Server
from waiting import until

from jitney.broker.kdbus import constants as c


def closed(server: Server, before: int) -> None:
    """The server has let go of all: of some on a thread, a moment later."""
    until(lambda: server.descriptors() <= before, "they are closed")


def ask(peer: Socket, end: socket.socket | None = None) -> tuple[Frame | None, socket.socket]:
    """What comes on the pair's other end, None for nothing; and that end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    peer.put("CHANNEL", fds=((end or theirs).fileno(),))
    theirs.close()
    data, ancillary, _, _ = ours.recvmsg(100, socket.CMSG_SPACE(4))
    if not data:
        return None, ours
    fds = array.array("i")
    for _, _, rights in ancillary:
        fds.frombytes(rights)
    return Frame(data, fds.tolist()), ours


def channel(peer: Socket) -> Socket:
    frame, end = ask(peer)
    end.close()
    assert frame is not None
    if frame.error:
        raise Errno(frame.error)
    made = Socket.__new__(Socket)
    made.__dict__.update(peer.__dict__)
    made.sock = socket.socket(fileno=frame.fds[0])
    made.sock.settimeout(20)
    return made


def test_is_one_more_way(bus: Bus) -> None:
    peer = Peer(bus.path)
    other = channel(peer)
    info = other.do("CONN_INFO", command("CONN_INFO", 0, u64(peer.id)))
    assert info.error == 0
    assert not peer.sock.getblocking() or peer.quiet()
    third = channel(other)
    other.close()
    third.do("BYEBYE", command("BYEBYE"))
    frame = third.ask("RECV", command("RECV"))
    assert frame.error == e.ECONNRESET


def test_ends_with_its_handle(bus: Bus) -> None:
    peer = Peer(bus.path)
    other = channel(peer)
    peer.close()
    with pytest.raises(EOFError):
        other.get()


def test_end_cancels_its_calls(bus: Bus) -> None:
    a, b = Peer(bus.path), Peer(bus.path)
    other = channel(a)
    call = message(b.id, flags=c.EXPECT_REPLY, cookie=7, timeout=1 << 62)
    other.put("SEND", command("SEND", c.SEND_SYNC_REPLY, u64(80)) + call)
    b.wait()
    other.close()
    a.do("SETTLE")
    assert b.recv().cookie == 7
    assert b.say(a.id, b"late", timeout=7).error == e.EBADSLT


@pytest.mark.parametrize("kind", ["nothing", "file", "internet", "other"])
def test_pair_of_no_use(bus: Bus, kind: str, server: Server) -> None:
    """An answer on the first socket then, and nothing is written to what was sent."""
    peer = Peer(bus.path)
    before = server.descriptors()
    sent: socket.socket | int | None = None
    if kind == "file":
        sent = os.open("/dev/null", os.O_RDWR)
    elif kind == "internet":
        sent = socket.socket()
    elif kind == "other":
        # Somebody else's: made by another process.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if not pid:
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            socket.send_fds(theirs, [b"x"], [end.fileno() for end in pair])
            os._exit(0)
        _, fds, _, _ = socket.recv_fds(ours, 1, 2)
        assert os.waitpid(pid, 0)[1] == 0
        sent = fds[0]
        other = socket.socket(fileno=fds[1])
    number = sent.fileno() if isinstance(sent, socket.socket) else sent
    frame = peer.ask("CHANNEL", fds=(number,) if number is not None else ())
    wanted = {"nothing": e.EBADF, "other": e.EPERM}.get(kind, e.ENOTSOCK)
    assert frame.error == wanted, e.errorcode[frame.error]
    if kind == "other":
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(100)
    peer.do("SETTLE")
    closed(server, before)


def test_too_many(bus: Bus, server: Server) -> None:
    peer = Peer(bus.path)
    before = server.descriptors()
    channels = [channel(peer) for _ in range(255)]
    with pytest.raises(Errno) as caught:
        channel(peer)
    assert caught.value.errno == e.EMFILE
    channels.pop().close()
    peer.do("SETTLE")
    channels.append(channel(peer))
    for each in channels:
        each.close()
    peer.do("SETTLE")
    closed(server, before)


def test_nobody_takes_it(bus: Bus, server: Server) -> None:
    """Both ends are closed before there is an answer."""
    peer = Peer(bus.path)
    before = server.descriptors()
    for _ in range(10):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.close()
        peer.put("CHANNEL", fds=(theirs.fileno(),))
        theirs.close()
    peer.do("SETTLE")
    peer.do("SETTLE")
    closed(server, before)
    assert peer.quiet(), peer.pushed.popleft().__dict__


def test_settle(bus: Bus) -> None:
    """A close before it is known of after it, whoever is served first."""
    watcher = Peer(bus.path)
    rule = item(c.ITEM_ID_REMOVE, u64(c.NONE64, 0))
    watcher.do("MATCH_ADD", command("MATCH_ADD", 0, u64(1), rule))
    asking = Peer(bus.path)
    for turn in range(100):
        leaving = Peer(bus.path)
        leaving.close()
        asking.do("SETTLE")
        _, got = watcher.try_recv()
        assert got is not None, turn
        gone = struct.unpack_from("<Q", got.get(c.ITEM_ID_REMOVE) or b"")[0]
        assert gone == leaving.id
        watcher.free(watcher.offset)
