"""File descriptors: passed, counted, never leaked (the `daemon` fixture looks at the end)."""

from __future__ import annotations

import os
import socket
from array import array

import buses
import pytest
from rawclient import RawClient, Received


def pipes(n: int) -> list[int]:
    """n descriptors, each of a pipe of its own with its number in it."""
    out = []
    for i in range(n):
        r, w = os.pipe()
        os.write(w, b"%d" % i)
        os.close(w)
        out.append(r)
    return out


def close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def contents(message: Received) -> list[bytes]:
    found = [os.read(fd, 100) for fd in message.fds]
    message.close_fds()
    return found


def call(
    client: RawClient, dest: str, member: bytes, fds: list[int], big_endian: bool = False
) -> int:
    return client.message(
        destination=dest.encode(),
        path=b"/",
        member=member,
        signature="h" * len(fds),
        values=list(range(len(fds))),
        fds=fds,
        big_endian=big_endian,
    )


@pytest.mark.parametrize("big", [False, True], ids=["little", "big"])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 15, 16])
@pytest.mark.weakness("CVE-2014-3635", "CVE-2022-42012")
def test_counts(daemon: buses.Daemon, n: int, big: bool) -> None:
    with RawClient(daemon.address) as a, RawClient(daemon.address) as b:
        a.hello()
        b.hello()
        fds = pipes(n)
        call(a, b.unique_name, b"M", fds, big)
        close(fds)
        got = b.next_with("M")
        assert got.n_fds == n
        assert got.big_endian == big
        assert contents(got) == [b"%d" % i for i in range(n)]


@pytest.mark.weakness("CVE-2014-3533")
def test_several_messages_in_one_read(daemon: buses.Daemon) -> None:
    with RawClient(daemon.address) as a, RawClient(daemon.address) as b:
        a.hello()
        b.hello()
        for n in (2, 0, 3, 1, 0, 0, 5):
            fds = pipes(n)
            call(a, b.unique_name, b"N%d" % n, fds)
            close(fds)
        for n in (2, 0, 3, 1, 0, 0, 5):
            got = b.next_with(f"N{n}")
            assert contents(got) == [b"%d" % i for i in range(n)]


def test_one_set_for_two_messages(daemon: buses.Daemon) -> None:
    """Descriptors of two messages that came in one go are shared out by the headers' counts."""
    with RawClient(daemon.address) as a, RawClient(daemon.address) as b:
        a.hello()
        b.hello()
        fds = pipes(5)
        parts: list[bytes] = []
        send = a.send
        a.send = lambda data, fds=(): parts.append(data)  # type: ignore[method-assign]
        call(a, b.unique_name, b"Two", fds[:2])
        call(a, b.unique_name, b"Three", fds[2:])
        send(b"".join(parts), fds)
        close(fds)
        assert contents(b.next_with("Two")) == [b"0", b"1"]
        assert contents(b.next_with("Three")) == [b"2", b"3", b"4"]


@pytest.mark.weakness("CVE-2014-3636")
def test_more_than_may_be(daemon: buses.Daemon) -> None:
    with RawClient(daemon.address) as a, RawClient(daemon.address) as b:
        a.hello()
        b.hello()
        fds = pipes(17)
        call(a, b.unique_name, b"M", fds)
        close(fds)
        while a.receive() is not None:
            pass
        assert b.reply_to(b.driver(b"GetId")).signature == "s"


@pytest.mark.parametrize(("claimed", "sent"), [(2, 1), (1, 0)])
def test_header_claims_more_than_came(daemon: buses.Daemon, claimed: int, sent: int) -> None:
    with RawClient(daemon.address) as a:
        a.hello()
        fds = pipes(claimed)
        parts: list[bytes] = []
        send = a.send
        a.send = lambda data, fds=(): parts.append(data)  # type: ignore[method-assign]
        call(a, a.unique_name, b"M", fds)
        send(parts[0], fds[:sent])
        close(fds)
        while a.receive() is not None:
            pass
        assert a.closed


def test_header_claims_fewer_than_came(daemon: buses.Daemon) -> None:
    """What is left over waits for a message that claims it, as with libdbus."""
    with RawClient(daemon.address) as a, RawClient(daemon.address) as b:
        a.hello()
        b.hello()
        fds = pipes(3)
        parts: list[bytes] = []
        send = a.send
        a.send = lambda data, fds=(): parts.append(data)  # type: ignore[method-assign]
        call(a, b.unique_name, b"One", fds[:1])
        call(a, b.unique_name, b"Two", fds[1:])
        send(parts[0], fds)
        assert contents(b.next_with("One")) == [b"0"]
        send(parts[1])
        assert contents(b.next_with("Two")) == [b"1", b"2"]
        close(fds)


@pytest.mark.weakness("CVE-2014-3637")
def test_descriptors_without_a_message_time_out() -> None:
    extra = '<limit name="pending_fd_timeout">200</limit>'
    with buses.running(buses.jitney_command(), extra=extra) as bus, RawClient(bus.address) as a:
        a.hello()
        fds = pipes(2)
        held = {os.readlink(f"/proc/self/fd/{fd}") for fd in fds}
        a.send(b"l", fds)
        close(fds)
        while a.receive() is not None:
            pass
        assert a.closed
        assert not held & set(descriptors(bus.pid))


def descriptors(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]


def test_receiver_that_takes_none(daemon: buses.Daemon) -> None:
    with RawClient(daemon.address) as a, RawClient(daemon.address, fds=False) as b:
        a.hello()
        b.hello()
        fds = pipes(1)
        error = a.reply_to(call(a, b.unique_name, b"M", fds))
        close(fds)
        assert error.error_name == "org.freedesktop.DBus.Error.NotSupported"
        assert error.body == [
            "Tried to send message with Unix file descriptorsto a client that doesn't support that."
        ]


def test_sender_that_did_not_negotiate(daemon: buses.Daemon) -> None:
    with RawClient(daemon.address, fds=False) as a:
        a.hello()
        fds = pipes(1)
        call(a, a.unique_name, b"M", fds)
        close(fds)
        while a.receive() is not None:
            pass
        assert a.closed


def test_broadcast_to_several(daemon: buses.Daemon) -> None:
    with RawClient(daemon.address) as a:
        a.hello()
        listeners = [RawClient(daemon.address, fds=i != 1) for i in range(4)]
        for listener in listeners:
            listener.hello()
            listener.reply_to(listener.driver(b"AddMatch", "s", "interface='fd.Test'"))
        r, w = os.pipe()
        a.message(
            4, destination=None, path=b"/", interface=b"fd.Test", member=b"S",
            signature="h", values=[0], fds=[w],
        )  # fmt: skip
        os.close(w)
        for i, listener in enumerate(listeners):
            if i == 1:
                continue  # takes no descriptors, and so does not get it
            got = listener.next_with("S")
            os.write(got.fds[0], b"%d" % i)
            got.close_fds()
        assert sorted(os.read(r, 100)) == sorted(b"023")
        assert os.read(r, 1) == b"", "somebody still holds the other end"
        os.close(r)
        for listener in listeners:
            listener.close()


def test_receiver_and_sender_die_with_descriptors_in_flight(daemon: buses.Daemon) -> None:
    with RawClient(daemon.address) as witness:
        witness.hello()
        for who in ("sender", "receiver"):
            a, b = RawClient(daemon.address), RawClient(daemon.address)
            a.hello()
            b.hello()
            r, w = os.pipe()
            for _ in range(20):
                call(a, b.unique_name, b"M", [w, w])
            os.close(w)
            (a if who == "sender" else b).close()
            assert witness.reply_to(witness.driver(b"GetId")).signature == "s"
            a.close()
            b.close()
            # Nobody holds the other end any more, neither the bus nor a queue of the kernel's.
            assert os.read(r, 1) == b""
            os.close(r)


@pytest.mark.weakness("CVE-2014-3532")
def test_nested_descriptors(daemon: buses.Daemon) -> None:
    """Sockets with descriptors in flight, sent on and on: ETOOMANYREFS is nobody's end."""
    with RawClient(daemon.address) as a, RawClient(daemon.address) as b:
        a.hello()
        b.hello()
        inner, outer = socket.socketpair()
        for _ in range(8):
            x, y = socket.socketpair()
            x.sendmsg(
                [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [inner.fileno()]))]
            )
            inner.close()
            x.close()
            inner = y
        call(a, b.unique_name, b"Deep", [inner.fileno()])
        inner.close()
        outer.close()
        call(a, b.unique_name, b"After", [])
        b.next_with("After")
        assert a.reply_to(a.driver(b"GetId")).signature == "s"
