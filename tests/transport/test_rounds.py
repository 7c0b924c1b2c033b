"""What comes to the bus in one round is kept apart: bytes and descriptors, by peer and message.

The daemon is stopped while clients write, so that it finds all of that at once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import termios
from array import array
from collections.abc import Iterator

import buses
import pytest
import rawclient
from rawclient import RawClient, build
from waiting import stop, until

# More than the bus reads at once, so that the rest of the message takes a read of its own.
LARGE = 400_000


@contextlib.contextmanager
def standstill(bus: buses.Daemon) -> Iterator[None]:
    stop(bus.pid)
    try:
        yield
    finally:
        os.kill(bus.pid, signal.SIGCONT)


@contextlib.contextmanager
def clients(bus: buses.Daemon, *fds: bool) -> Iterator[list[RawClient]]:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(RawClient(bus.address, fds=given)) for given in fds]
        for client in made:
            client.hello()
            client.reply_to(client.driver(b"GetId"))
        yield made


def to(dest: RawClient, member: bytes, body: bytes = b"", n_fds: int = 0) -> bytes:
    fields: list[tuple[int, str, object]] = [
        (1, "o", b"/"), (3, "s", member), (6, "s", dest.unique_name.encode()),
    ]  # fmt: skip
    if n_fds:
        fields.append((9, "u", n_fds))
    return build(1, dest.next_serial(), fields, "ay", [body], flags=1)


def taken(client: RawClient) -> None:
    """Waits until the bus has read all that the client sent."""
    until(lambda: fcntl.ioctl(client.sock, termios.TIOCOUTQ, bytes(4)) == bytes(4), "all is read")


def pipe_with(text: bytes) -> int:
    r, w = os.pipe()
    os.write(w, text)
    os.close(w)
    return r


def test_what_precedes_junk_arrives_untouched(daemon: buses.Daemon) -> None:
    """A valid message with a body that is not copied, then the end of its sender."""
    body = bytes(range(256)) * 100
    with clients(daemon, False, False, False) as (bad, victim, other):
        with standstill(daemon):
            bad.send(to(victim, b"M", body) + b"junk that is no message")
            other.send(to(other, b"Own", b"\xff" * 100_000))
        assert victim.next_with("M").body == [body]
        assert other.next_with("Own").body == [b"\xff" * 100_000]
        while bad.receive() is not None:
            pass


def test_descriptors_nobody_may_send_go_to_nobody(daemon: buses.Daemon) -> None:
    """Sent along with the end of a large message, by a peer that did not negotiate them."""
    with clients(daemon, False, True, True) as (mute, sender, receiver):
        data = to(receiver, b"Large", bytes(LARGE))
        mute.send(data[:-1])
        taken(mute)
        mine, theirs = pipe_with(b"mine"), pipe_with(b"theirs")
        with standstill(daemon):
            mute.send(data[-1:], [theirs])
            sender.send(to(receiver, b"Fd", n_fds=1), [mine])
        os.close(theirs)
        os.close(mine)
        receiver.next_with("Large")
        got = receiver.next_with("Fd")
        assert [os.read(fd, 100) for fd in got.fds] == [b"mine"]
        got.close_fds()


@pytest.mark.parametrize("size", [10, 70_000, LARGE])
@pytest.mark.weakness("CVE-2014-3533")
def test_full_sets_back_to_back(daemon: buses.Daemon, size: int) -> None:
    """Each message has as many descriptors as may be; that they come together is no offence."""
    with clients(daemon, True, True) as (sender, receiver):
        fds = [pipe_with(b"%d" % i) for i in range(32)]
        first, second = to(receiver, b"One", bytes(size), 16), to(receiver, b"Two", b"", 16)
        sender.send(first[:16], fds[:16])
        sender.send(first[16:-1])
        taken(sender)
        with standstill(daemon):
            sender.send(first[-1:])
            sender.send(second, fds[16:])
        for fd in fds:
            os.close(fd)
        for member, start in (("One", 0), ("Two", 16)):
            got = receiver.next_with(member)
            assert [os.read(fd, 100) for fd in got.fds] == [
                b"%d" % i for i in range(start, start + 16)
            ]
            got.close_fds()


@pytest.mark.parametrize("negotiated", [True, False])
def test_descriptors_right_behind_begin(daemon: buses.Daemon, negotiated: bool) -> None:
    """A client need not wait between BEGIN and a message with descriptors."""
    with clients(daemon, True) as (receiver,):
        sock = rawclient._connect(daemon.address)
        sock.settimeout(30)
        identity = str(os.getuid()).encode().hex().encode()
        sock.sendall(b"\0AUTH EXTERNAL " + identity + b"\r\n")
        assert sock.recv(100).startswith(b"OK ")
        if negotiated:
            sock.sendall(b"NEGOTIATE_UNIX_FD\r\n")
            assert sock.recv(100) == b"AGREE_UNIX_FD\r\n"
        hello = [
            (1, "o", b"/org/freedesktop/DBus"), (2, "s", b"org.freedesktop.DBus"),
            (3, "s", b"Hello"), (6, "s", b"org.freedesktop.DBus"),
        ]  # fmt: skip
        fd = pipe_with(b"early")
        with standstill(daemon):
            sock.sendall(b"BEGIN\r\n" + build(1, 1, hello))
            sock.sendmsg(
                [to(receiver, b"Fd", n_fds=1)],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))],
            )
        os.close(fd)
        if negotiated:
            got = receiver.next_with("Fd")
            assert [os.read(fd, 100) for fd in got.fds] == [b"early"]
            got.close_fds()
        else:
            # The header promises what the connection cannot carry.
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    pass
        sock.close()


def test_descriptors_during_authentication_are_closed(daemon: buses.Daemon) -> None:
    sock = rawclient._connect(daemon.address)
    r, w = os.pipe()
    for text in (b"\0", b"AUTH\r\n", b"NEGOTIATE_UNIX_FD\r\n"):
        sock.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [w]))])
    os.close(w)
    assert os.read(r, 1) == b""
    os.close(r)
    sock.close()
