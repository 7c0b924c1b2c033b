"""docs/native.md: several sockets of one handle, cancelling, and who is told what of a sender."""

from __future__ import annotations

import errno as e
import os
import socket
import struct
import subprocess
import sys
import threading
from typing import Any

import pytest
from kdbuskit import Got, command, item, message, text, u64
from kdbusnative import AsUser, why_not
from nativeclient import Bus, Errno, Peer, Socket

from jitney.broker.kdbus import constants as c

VERSION = struct.pack("<II", 1, 0)
CALL = {"flags": c.EXPECT_REPLY, "timeout": 1 << 62}
as_root = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


def refused(function: Any, *words: Any, **more: Any) -> str:
    with pytest.raises(Errno) as caught:
        function(*words, **more)
    return e.errorcode[caught.value.errno]


def token_of(peer: Socket) -> bytes:
    body = peer.do("OPEN", VERSION).body
    assert struct.unpack_from("<II", body) == (1, 0)
    assert len(body) == 24
    return body[8:]


def attached(bus: Bus, token: bytes) -> Socket:
    more = Socket(bus.path)
    more.do("ATTACH", token)
    return more


def test_versions(bus: Bus) -> None:
    peer = Socket(bus.path)
    assert refused(peer.do, "OPEN", struct.pack("<II", 0, 0)) == "EPROTONOSUPPORT"
    assert refused(peer.do, "OPEN", b"") == "EINVAL"
    # It tells the highest that it knows; what the client knows beyond that does not matter.
    assert struct.unpack_from("<I", peer.do("OPEN", struct.pack("<II", 77, 0)).body)[0] == 1


def test_more_sockets_of_a_handle(bus: Bus) -> None:
    peer, other = Peer(bus.path), Peer(bus.path)
    token = token_of(peer)
    assert token_of(peer) == token
    more = attached(bus, token)
    frame = more.do("NAME_ACQUIRE", command("NAME_ACQUIRE", items=text(c.ITEM_NAME, b"a.b")))
    assert len(frame.body) == 24
    # Either of them is the same connection.
    assert peer.do("NAME_RELEASE", command("NAME_RELEASE", items=text(c.ITEM_NAME, b"a.b")))
    other.say(peer.id, b"to the handle")
    frame = more.do("RECV", command("RECV"))
    offset, size = struct.unpack_from("<QQ", frame.body, 40)
    assert peer.at(offset, size).payload == b"to the handle"


def test_what_cannot_be_attached(bus: Bus, server: Any) -> None:
    token = token_of(Peer(bus.path))
    peer = Peer(bus.path)
    token = token_of(peer)
    assert refused(Peer(bus.path).do, "ATTACH", token) == "EINVAL"
    fresh = Socket(bus.path)
    assert refused(fresh.do, "ATTACH", token[:15]) == "EINVAL"
    assert refused(fresh.do, "ATTACH", bytes(16)) == "EBADF"
    # From whatever node it comes.
    control = Socket(server.path / "control")
    control.do("ATTACH", token)
    assert control.do("LIST", command("LIST"))


@as_root
def test_another_users_handle(bus: Bus) -> None:
    token = token_of(Peer(bus.path))
    peer = Peer(bus.path)
    token = token_of(peer)
    with AsUser(1000, ()):
        stranger = Socket(bus.path)
    assert refused(stranger.do, "ATTACH", token) == "EPERM"


def test_limit_of_sockets(bus: Bus) -> None:
    peer = Peer(bus.path)
    token = token_of(peer)
    more = [attached(bus, token) for _ in range(255)]
    last = Socket(bus.path)
    assert refused(last.do, "ATTACH", token) == "EMFILE"
    more.pop().close()
    while last.ask("ATTACH", token).error:
        pass
    for one in more:
        one.close()


def test_a_handle_lives_as_long_as_its_first_socket(bus: Bus) -> None:
    peer, watcher = Peer(bus.path), Peer(bus.path)
    gone = item(c.ITEM_ID_REMOVE, u64(peer.id, 0))
    watcher.do("MATCH_ADD", command("MATCH_ADD", 0, u64(1), gone))
    more = attached(bus, token_of(peer))
    copy = peer.sock.dup()
    peer.close()
    assert more.do("LIST", command("LIST"))  # it has another descriptor yet
    copy.close()
    watcher.wait()
    assert watcher.recv().items[0].kind == c.ITEM_ID_REMOVE
    for name in ("LIST", "HELLO"):
        assert refused(more.do, name, command(name)) == "ECONNRESET"


def test_a_handle_in_another_process(bus: Bus) -> None:
    """A child has it as its parent has."""
    peer = Peer(bus.path)
    code = (
        "import socket, sys; sys.path[:0] = sys.argv[2:];"
        "from nativeclient import *; from kdbuskit import *;"
        "sock = Socket.__new__(Socket); sock.stream = False; sock.serial = 70;"
        "sock.pushed = deque();"
        "sock.sock = socket.socket(fileno=int(sys.argv[1])); sock.sock.setblocking(True);"
        "name = text(c.ITEM_NAME, b'a.child');"
        "sock.do('NAME_ACQUIRE', command('NAME_ACQUIRE', items=name)); print('done')"
    )
    fd = peer.sock.fileno()
    done = subprocess.run(
        [sys.executable, "-c", code, str(fd), *sys.path],
        pass_fds=[fd], check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert done.stdout == b"done\n"
    assert peer.do("NAME_RELEASE", command("NAME_RELEASE", items=text(c.ITEM_NAME, b"a.child")))


def sync_call(peer: Socket, to: int) -> int:
    body = command("SEND", c.SEND_SYNC_REPLY, u64(80)) + message(to, cookie=7, **CALL)
    return peer.put("SEND", body)


def test_cancel(bus: Bus) -> None:
    caller, callee = Peer(bus.path), Peer(bus.path)
    serial = sync_call(caller, callee.id)
    caller.put("CANCEL", struct.pack("<II", serial + 50, 0))  # there is none: nothing happens
    assert refused(caller.do, "CANCEL", b"") == "EINVAL"
    caller.put("CANCEL", struct.pack("<II", serial, 0))
    frame = caller.get()
    assert (frame.serial, frame.error) == (serial, e.EINTR)
    caller.put("CANCEL", struct.pack("<II", serial, 0))
    assert caller.do("LIST", command("LIST"))
    callee.recv()
    assert callee.say(caller.id, b"late", timeout=7).error == e.EBADSLT


def test_a_call_belongs_to_its_socket(bus: Bus) -> None:
    caller, callee = Peer(bus.path), Peer(bus.path)
    first, second = (attached(bus, token_of(caller)) for _ in range(2))
    serial = sync_call(first, callee.id)
    first.do("LIST", command("LIST"))
    second.put("CANCEL", struct.pack("<II", serial, 0))
    second.do("LIST", command("LIST"))
    callee.recv()
    callee.say(caller.id, b"x", timeout=7)
    assert first.get().serial == serial
    sync_call(first, callee.id)
    first.do("LIST", command("LIST"))
    first.close()
    # With the socket, its calls end; the connection goes on.
    callee.recv()
    while callee.say(caller.id, b"x", timeout=7).error != e.EBADSLT:
        raise AssertionError("the call was still waited for")
    assert caller.do("LIST", command("LIST"))


def test_deadline(bus: Bus) -> None:
    import time

    caller, callee = Peer(bus.path), Peer(bus.path)
    until = time.monotonic_ns() + 10**8
    data = message(callee.id, cookie=7, flags=c.EXPECT_REPLY, timeout=until)
    frame = caller.send(data, flags=c.SEND_SYNC_REPLY)
    assert frame.error == e.ETIMEDOUT
    assert time.monotonic_ns() >= until
    assert caller.send(message(callee.id, cookie=8, flags=1, timeout=until + 10**8)).error == 0
    caller.wait()
    assert caller.recv().items[0].kind == c.ITEM_REPLY_TIMEOUT


def test_deadlines_that_come_up_in_any_order(bus: Bus) -> None:
    import time

    callers, callee = [Peer(bus.path) for _ in range(4)], Peer(bus.path)
    ends = []
    # Far, near, nearer still and between them: each wait has to end by the nearest.
    for number, milliseconds in enumerate((60_000, 700, 250, 450)):
        ends.append(time.monotonic_ns() + milliseconds * 10**6)
        data = message(callee.id, cookie=7, flags=c.EXPECT_REPLY, timeout=ends[-1])
        callers[number].put("SEND", command("SEND", c.SEND_SYNC_REPLY, u64(80)) + data)
        callers[number].do("LIST", command("LIST"))
    for number in (2, 3, 1):
        assert callers[number].get().error == e.ETIMEDOUT
        assert ends[number] <= time.monotonic_ns() < ends[0]
    assert callers[0].quiet()


# Who sends


def about(bus: Bus, sender: Peer, **more: Any) -> Got:
    receiver = Peer(bus.path, attach=c.ATTACH_ALL)
    body = command("SEND", 0, u64(80)) + message(receiver.id)
    sender.do("SEND", body, **more)
    return receiver.recv()


def test_metadata(bus: Bus) -> None:
    sender = Peer(bus.path, items=text(c.ITEM_DESCRIPTION, b"me"))
    got = about(bus, sender)
    uid, gid = os.getuid(), os.getgid()
    assert got.get(c.ITEM_CREDS) == u64(*[uid] * 4, *[gid] * 4)
    assert got.get(c.ITEM_PIDS) == u64(os.getpid(), os.getpid(), os.getppid())
    assert got.get(c.ITEM_EXE) == os.readlink("/proc/self/exe").encode() + b"\0"
    with open("/proc/self/cmdline", "rb") as file:
        assert got.get(c.ITEM_CMDLINE) == file.read().partition(b"\0")[0] + b"\0"
    with open("/proc/self/comm", "rb") as file:
        assert got.get(c.ITEM_PID_COMM) == file.read().rstrip(b"\n") + b"\0"
    groups = got.get(c.ITEM_AUXGROUPS)
    assert groups == u64(*os.getgroups())
    assert got.get(c.ITEM_DESCRIPTION) == b"me\0"
    assert got.get(c.ITEM_TIMESTAMP) is not None
    assert got.get(c.ITEM_CGROUP) is not None


def test_threads(bus: Bus) -> None:
    sender = Peer(bus.path)
    seen: list[int] = []
    stay = threading.Event()

    def thread() -> None:
        seen.append(threading.get_native_id())
        stay.wait(20)

    worker = threading.Thread(target=thread)
    worker.start()
    while not seen:
        pass
    got = about(bus, sender, tid=seen[0])
    assert struct.unpack("<3Q", got.get(c.ITEM_PIDS) or b"")[:2] == (os.getpid(), seen[0])
    # A thread of somebody else is not believed, nor one that there is not.
    for lie in (1, os.getppid(), 0x7FFFFFFF):
        got = about(bus, sender, tid=lie)
        assert struct.unpack("<3Q", got.get(c.ITEM_PIDS) or b"")[:2] == (os.getpid(),) * 2
    stay.set()
    worker.join()


def info(peer: Peer, number: int) -> Got:
    frame = peer.do("CONN_INFO", command("CONN_INFO", 0, u64(number, c.ATTACH_ALL)))
    offset, size = struct.unpack_from("<QQ", frame.body, 40)
    # As an info: a head of 24 bytes, which is shorter than a message's.
    data = peer.map[offset : offset + size]
    return Got(u64(size + 40) + bytes(56) + data[24:])


def test_conn_info(bus: Bus) -> None:
    peer = Peer(bus.path)
    got = info(peer, peer.id)
    assert struct.unpack_from("<Q", got.get(c.ITEM_PIDS) or b"")[0] == os.getpid()
    assert got.get(c.ITEM_CMDLINE) is not None


@as_root
def test_another_user(bus: Bus) -> None:
    with AsUser(1000, (7, 8)):
        sender = Peer(bus.path)
        service = Peer(bus.path)
        frame = service.ask(
            "NAME_ACQUIRE", command("NAME_ACQUIRE", items=text(c.ITEM_NAME, b"a.b"))
        )
        assert frame.error == e.EPERM
        receiver = Peer(bus.path, attach=c.ATTACH_ALL)
        sender.say(receiver.id, b"x")
    got = receiver.recv()
    assert got.get(c.ITEM_CREDS) == u64(*[1000] * 8)
    assert got.get(c.ITEM_AUXGROUPS) == u64(7, 8)
    # It could have become another program by the time we look.
    assert (got.get(c.ITEM_CAPS) or b"")[4:] == bytes(32)


@as_root
def test_what_a_sender_claims_to_be(bus: Bus) -> None:
    """The kernel lets nobody but root claim another's ids."""
    with AsUser(1000, ()):
        stranger = Socket(bus.path)
        said = struct.pack("=iII", os.getpid(), 1001, 1001)
        with pytest.raises(PermissionError):
            stranger.sock.sendmsg([b"x" * 24], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, said)])


@as_root
def test_who_became_root_is_believed_to_be_what_it_was(bus: Bus) -> None:
    """A process that sends and then execs a program with more rights gains nothing by that."""
    receiver = Peer(bus.path, attach=c.ATTACH_ALL)
    with AsUser(1000, ()):
        sender = Peer(bus.path)
        body = command("SEND", 0, u64(80)) + message(receiver.id)
        said = struct.pack("=iII", os.getpid(), 1000, 1000)
    # Root again by now; what is sent has the ids of before, as if it had waited in the socket.
    from nativeclient import OPS, request

    data = request(OPS["SEND"], body, 99)
    sender.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, said)])
    assert sender.get().error in (0, e.EPERM)
    frame, got = receiver.try_recv()
    if got is not None:
        assert got.get(c.ITEM_CREDS) == u64(*[1000] * 8)
        assert (got.get(c.ITEM_CAPS) or b"")[4:] == bytes(32)
    assert frame.error in (0, e.EAGAIN)


def channel_of(peer: Socket) -> Socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.put("CHANNEL", fds=(theirs.fileno(),))
    theirs.close()
    more = Socket.__new__(Socket)
    more.sock, more.stream, more.serial, more.pushed = ours, False, 0, peer.pushed.copy()
    ours.settimeout(20)
    frame = more.get()
    assert (frame.op, frame.serial, frame.error) == (0x8108, peer.serial, 0)
    (fd,) = frame.fds
    ours.close()
    more.sock = socket.socket(fileno=fd)
    more.sock.settimeout(20)
    return more


def test_channels(bus: Bus) -> None:
    """One more way to a handle for who has its socket, closed with the handle."""
    peer = Peer(bus.path)
    more = channel_of(peer)
    assert more.do("NAME_ACQUIRE", command("NAME_ACQUIRE", items=text(c.ITEM_NAME, b"a.b")))
    assert peer.do("NAME_RELEASE", command("NAME_RELEASE", items=text(c.ITEM_NAME, b"a.b")))
    peer.close()
    with pytest.raises((EOFError, ConnectionResetError)):
        more.get()


def test_a_handle_that_is_over_gets_no_name(bus: Bus) -> None:
    peer = Peer(bus.path)
    more = channel_of(peer)
    peer.do("BYEBYE", command("BYEBYE"))
    with pytest.raises(EOFError):
        peer.get()
    assert refused(more.do, "OPEN", VERSION) == "ECONNRESET"
    assert refused(more.do, "LIST", command("LIST")) == "ECONNRESET"


def test_pairs_that_are_of_no_use(bus: Bus) -> None:
    peer = Peer(bus.path)
    assert refused(peer.do, "CHANNEL") == "EBADF"
    assert refused(peer.do, "CHANNEL", fds=(os.pipe()[0],)) == "ENOTSOCK"
    with socket.socket() as tcp:
        assert refused(peer.do, "CHANNEL", fds=(tcp.fileno(),)) == "ENOTSOCK"
    # One that leads to somebody else: the server's own.
    assert refused(peer.do, "CHANNEL", fds=(peer.sock.fileno(),)) == "EPERM"


def test_settled(bus: Bus) -> None:
    """A socket that was closed before has been seen to be."""
    peer = Peer(bus.path)
    for _ in range(50):
        other = Peer(bus.path)
        other.close()
        peer.do("SETTLE")
        assert peer.say(other.id, b"x").error == e.ENXIO
