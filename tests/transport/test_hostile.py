"""One hostile user on a real bus, with connections, bytes and descriptors; and senders that are
made to wait. The same without sockets is tests/core/test_fairness.py."""

from __future__ import annotations

import os
import pwd
import select
import signal
import socket
import time
from collections.abc import Callable

import buses
import pytest
from floods import CHUNK, flood, floods, memory, messages, until_held
from rawclient import RawClient, build, connected
from waiting import until

HOSTILE, KIND = pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("daemon").pw_uid

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")

OPEN = """<busconfig>
  <type>{type}</type>
  <listen>unix:path={directory}/bus</listen>
  <policy context="default">
    <allow user="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
  {extra}
</busconfig>
"""


def limits(**values: int) -> str:
    return "".join(f'<limit name="{name}">{value}</limit>' for name, value in values.items())


def test_a_sender_waits_for_its_own_user() -> None:
    """max_incoming_bytes: the bus stops reading from a sender of which it holds that much, and
    nothing is lost."""
    extra = limits(max_incoming_bytes=2_000_000, max_outgoing_bytes=60_000_000)
    with buses.running(buses.jitney_command(), extra=extra) as bus:
        sender, reader, other = (RawClient(bus.address) for _ in range(3))
        for client in (sender, reader, other):
            client.hello()
        before = memory(bus.pid)
        count, _ = until_held(sender, other, messages(reader.unique_name, 200))
        assert 2_000_000 // CHUNK <= count < 60
        assert memory(bus.pid) < before + 10_000_000
        # It is the sender alone that waits.
        assert other.reply_to(other.driver(b"GetId")).signature == "s"
        assert floods(reader, count - 1) == list(range(count))
        # The rest of what was cut off would follow; a sender in midst of a message may go, too.
        sender.close()
        assert other.reply_to(other.driver(b"GetId")).signature == "s"
        reader.close()
        other.close()


def test_a_sender_that_waited_goes_on() -> None:
    extra = limits(max_incoming_bytes=1_000_000, max_outgoing_bytes=60_000_000)
    with buses.running(buses.jitney_command(), extra=extra) as bus:
        sender, reader = RawClient(bus.address, timeout=30), RawClient(bus.address)
        sender.hello()
        reader.hello()
        pid = os.fork()
        if pid == 0:  # the sender, whose send() blocks
            try:
                flood(sender, reader.unique_name, 300)
                reply = sender.reply_to(sender.driver(b"GetId"))
                os._exit(0 if reply.signature == "s" else 1)
            finally:
                os._exit(2)
        time.sleep(0.2)
        assert floods(reader, 299) == list(range(300))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        sender.close()
        reader.close()


def test_a_sender_that_waits_may_hang_up() -> None:
    """What it had said before still arrives."""
    extra = limits(max_incoming_bytes=1_000_000, max_outgoing_bytes=60_000_000)
    with buses.running(buses.jitney_command(), extra=extra) as bus:
        sender, reader, other = (connected(bus.address) for _ in range(3))
        count, _ = until_held(sender, other, messages(reader.unique_name, 100))
        assert count < 100
        sender.sock.shutdown(socket.SHUT_RDWR)
        sender.close()
        assert floods(reader, count - 1) == list(range(count))
        reader.close()
        other.close()


@root
def test_a_service_does_not_wait_for_others() -> None:
    """A client of another user that does not read costs a service nothing but that client."""
    extra = limits(max_incoming_bytes=1_000_000, max_outgoing_bytes=3_000_000)
    with buses.running(buses.jitney_command(), extra=extra, config=OPEN) as bus:
        service, client = RawClient(bus.address), RawClient(bus.address, uid=KIND)
        stopped = [RawClient(bus.address, uid=HOSTILE) for _ in range(4)]
        for peer in (service, client, *stopped):
            peer.hello()
        for peer in stopped:
            flood(service, peer.unique_name, 40)
        flood(service, client.unique_name, 5)
        assert floods(client, 4) == list(range(5))
        reply = service.reply_to(service.driver(b"GetId"))
        assert reply.signature == "s"
        for peer in (service, client, *stopped):
            peer.close()


@root
def test_a_hostile_sender_leaves_room() -> None:
    """Whatever one user throws at somebody, a third one is still heard."""
    extra = limits(max_outgoing_bytes=1_000_000)
    with buses.running(buses.jitney_command(), extra=extra, config=OPEN) as bus:
        victim, kind = RawClient(bus.address), RawClient(bus.address, uid=KIND)
        victim.hello()
        kind.hello()
        hostile = [RawClient(bus.address, uid=HOSTILE) for _ in range(5)]
        for peer in hostile:
            peer.hello()
            flood(peer, victim.unique_name, 50)
            refused = peer.receive()
            while refused is not None and refused.type != 3:
                refused = peer.receive()
            assert refused is not None
            assert refused.error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
        call = kind.message(
            destination=victim.unique_name.encode(), path=b"/", interface=b"a.b", member=b"Kind"
        )
        while True:
            message = victim.receive()
            assert message is not None
            if message.member == "Kind":
                break
        assert message.sender == kind.unique_name
        victim.message(2, destination=kind.unique_name.encode(), reply_serial=call)
        assert kind.reply_to(call).type == 2
        for peer in (victim, kind, *hostile):
            peer.close()


@root
def test_a_hostile_user_does_not_keep_others_out() -> None:
    """With all the connections that it may have, and all that the bus may have."""
    extra = limits(max_completed_connections=20, max_connections_per_user=100)
    with buses.running(buses.jitney_command(), extra=extra, config=OPEN) as bus:
        hostile = []
        while True:
            peer = RawClient(bus.address, uid=HOSTILE)
            hostile.append(peer)
            reply = peer.reply_to(peer.driver(b"Hello"))
            if reply.type == 3:
                break
        assert reply.error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
        assert len(hostile) == 21
        with RawClient(bus.address, uid=KIND) as kind:
            kind.hello()
            assert kind.reply_to(kind.driver(b"GetId")).signature == "s"
        for peer in hostile:
            peer.close()


@pytest.mark.weakness("CVE-2014-3639")
def test_connections_that_say_nothing() -> None:
    """CVE-2014-3639: who never authenticates keeps others out for a moment, not for auth_timeout
    (which is half an hour here)."""
    extra = limits(max_incomplete_connections=8, auth_timeout=1_800_000)
    with buses.running(buses.jitney_command(), extra=extra) as bus:
        path = bus.address.partition("path=")[2].partition(",")[0]
        silent = []
        for _ in range(12):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            silent.append(sock)
        for _ in range(3):
            with RawClient(bus.address, timeout=30) as client:
                client.hello()
        for sock in silent:
            sock.close()


def test_200_megabytes_under_the_session_configuration() -> None:
    """Its limits are 1 GB; the memory of the bus stays far below, its sender waits, and nothing is
    lost."""
    extra = limits(
        max_incoming_bytes=1_000_000_000,
        max_outgoing_bytes=1_000_000_000,
        max_message_size=1_000_000_000,
    )
    with buses.running(buses.jitney_command(), extra=extra) as bus:
        sender, reader = RawClient(bus.address, timeout=60), RawClient(bus.address, timeout=60)
        sender.hello()
        reader.hello()
        before = memory(bus.pid)
        pid = os.fork()
        if pid == 0:  # the sender, whose send() blocks
            try:
                flood(sender, reader.unique_name, 2000)
                os._exit(0)
            finally:
                os._exit(1)
        other = RawClient(bus.address)
        other.hello()
        until(lambda: memory(bus.pid) > before + 50_000_000, "it has taken what it may")
        kept = 0
        # Until it grows no more.
        while kept < memory(bus.pid):
            kept = memory(bus.pid)
            for _ in range(200):
                assert other.reply_to(other.driver(b"GetId")).signature == "s"
            time.sleep(0.3)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        assert kept < before + 100_000_000
        assert floods(reader, 1999) == list(range(2000))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for client in (sender, reader, other):
            client.close()


def took_for(what: Callable[[], object]) -> float:
    start = time.monotonic()
    what()
    return time.monotonic() - start


def batch_of(client: RawClient, calls: bytes) -> None:
    client.send(calls)
    assert client.reply_to(1009).type == 3


def test_a_flood_of_refused_calls() -> None:
    """Each costs the bus more than a message that passes; others need not wait for all that a
    socket holds of them."""
    deny = '<policy context="default"><deny send_interface="no.No"/></policy>'
    with buses.running(buses.jitney_command(), extra=deny) as bus:
        hostile, victim, other = (RawClient(bus.address, timeout=30) for _ in range(3))
        for client in (hostile, victim, other):
            client.hello()
        calls = b"".join(
            build(
                1, serial, [(1, "o", b"/"), (2, "s", b"no.No"), (3, "s", b"M"),
                            (6, "s", victim.unique_name.encode())], flags=1,
            )
            for serial in range(10, 1010)
        )  # fmt: skip
        # What a thousand of them take, when the machine has nothing else to do:
        batch = min(took_for(lambda: batch_of(hostile, calls)) for _ in range(3))
        pid = os.fork()
        if pid == 0:  # sends without end, and reads what comes back
            try:
                hostile.sock.setblocking(False)
                while True:
                    readable, writable, _ = select.select([hostile.sock], [hostile.sock], [])
                    if readable and not hostile.sock.recv(1 << 20):
                        break
                    if writable:
                        hostile.sock.send(calls)
            finally:
                os._exit(0)
        # Others on the machine make it longer; nobody makes it shorter.
        try:
            for _ in range(10):
                took = sorted(
                    took_for(lambda: other.reply_to(other.driver(b"GetId"))) for _ in range(41)
                )
                if took[20] < batch / 3:
                    break
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert took[20] < batch / 3
        for client in (hostile, victim, other):
            client.close()
