"""Those who never authenticate, and storms of connections, keep nobody else out."""

from __future__ import annotations

import contextlib
import os
import sys

import buses
import pytest
import rawclient
from rawclient import RawClient
from waiting import given_time


def with_descriptors(limit: int) -> list[str]:
    """The daemon's command line, run with so few open files."""
    start = (
        f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}));"
        " os.execvp(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", start, *buses.jitney_command()]


def closed_by_bus(sock) -> bool:
    sock.settimeout(30)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_half_open_connections_time_out() -> None:
    given_time(half_open_connections, 300, 3000, 8000)


def half_open_connections(timeout: int) -> None:
    extra = (
        f'<limit name="auth_timeout">{timeout}</limit>'
        '<limit name="max_incomplete_connections">8</limit>'
    )
    with buses.running(buses.jitney_command(), extra=extra) as bus:
        # More than may be incomplete: some wait in the listening socket's queue.
        half_open = [rawclient._connect(bus.address) for _ in range(20)]
        for i, sock in enumerate(half_open):
            sock.sendall([b"", b"\0", b"\0AUTH EXTERNAL ", b"\0AUTH\r\n"][i % 4])
        # Somebody in earnest gets in all the same, once the first have timed out.
        with RawClient(bus.address) as client:
            client.hello()
        for i, sock in enumerate(half_open):
            if i % 4 == 3:
                sock.settimeout(30)
                assert sock.recv(100).startswith(b"REJECTED")
            assert closed_by_bus(sock)
            sock.close()


def test_authenticated_but_silent_counts_as_incomplete() -> None:
    given_time(authenticated_but_silent, 300, 3000, 15000)


def authenticated_but_silent(timeout: int) -> None:
    extra = (
        f'<limit name="auth_timeout">{timeout}</limit>'
        '<limit name="max_incomplete_connections">2</limit>'
    )
    with buses.running(buses.jitney_command(), extra=extra) as bus:
        silent = [RawClient(bus.address) for _ in range(2)]
        with RawClient(bus.address) as client:
            client.hello()
            for peer in silent:
                assert peer.receive() is None
            # Hello was said in time: this one stays.
            assert client.reply_to(client.driver(b"GetId")).signature == "s"


@pytest.mark.weakness("CVE-2014-7824", "dbus-broker#435")
def test_more_connections_than_descriptors() -> None:
    """EMFILE on accept ends nothing: the bus serves whom it has, and all once there is room."""
    with buses.running(with_descriptors(40)) as bus, RawClient(bus.address) as witness:
        witness.hello()
        storm = [rawclient._connect(bus.address) for _ in range(100)]
        for sock in storm:
            with contextlib.suppress(OSError):
                sock.sendall(b"\0AUTH EXTERNAL\r\n")
        for _ in range(50):
            assert witness.reply_to(witness.driver(b"GetId")).signature == "s"
        # No descriptor left for a credential either: the answer does without.
        reply = witness.reply_to(
            witness.driver(b"GetConnectionCredentials", "s", "org.freedesktop.DBus")
        )
        assert reply.signature == "a{sv}"
        for sock in storm:
            sock.close()
        with RawClient(bus.address) as client:
            client.hello()


@pytest.mark.weakness("dbus-broker NEWS 22")
def test_descriptors_that_cannot_be_taken() -> None:
    """The kernel drops descriptors for which the bus has no room (MSG_CTRUNC): that peer goes."""
    with buses.running(with_descriptors(30)) as bus, RawClient(bus.address) as witness:
        witness.hello()
        senders = [RawClient(bus.address) for _ in range(4)]
        r, w = os.pipe()
        gone = 0
        for sender in senders:
            sender.hello()
            # Incomplete: the bus has to hold on to the descriptors.
            sender.send(b"l", [r] * 16)
        for _ in range(20):
            assert witness.reply_to(witness.driver(b"GetId")).signature == "s"
        for sender in senders:
            with contextlib.suppress(TimeoutError):
                while sender.receive(0.3) is not None:
                    pass
            gone += sender.closed
            sender.close()
        assert 1 <= gone <= 4
        os.close(r)
        os.close(w)
        with RawClient(bus.address) as client:
            client.hello()


def test_connections_come_and_go(daemon: buses.Daemon) -> None:
    with RawClient(daemon.address) as witness:
        witness.hello()
        for _ in range(300):
            with RawClient(daemon.address) as client:
                client.hello()
        assert witness.reply_to(witness.driver(b"GetId")).signature == "s"
        names = witness.reply_to(witness.driver(b"ListNames")).body[0]
        assert len([name for name in names if name.startswith(":")]) <= 2
