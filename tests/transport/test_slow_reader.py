"""A receiver that does not read costs others nothing, and the bus no more than its limit."""

from __future__ import annotations

import array
import contextlib
import fcntl
import hashlib
import socket
import termios
import threading

import buses
import pytest
from floods import CHUNK, body, flood, floods, memory
from rawclient import RawClient, Received
from waiting import until

LIMIT = 4_000_000
EXTRA = f'<limit name="max_outgoing_bytes">{LIMIT}</limit>'


def test_unicasts_to_a_stopped_reader() -> None:
    count = 500  # 50 MB
    with buses.running(buses.jitney_command(), extra=EXTRA) as bus:
        sender, reader, other = (RawClient(bus.address) for _ in range(3))
        for client in (sender, reader, other):
            client.hello()
        before = memory(bus.pid)
        flooding = threading.Thread(target=flood, args=(sender, reader.unique_name, count))
        flooding.start()
        refused: list[Received] = []
        # Meanwhile the others are served.
        while flooding.is_alive():
            assert other.reply_to(other.driver(b"GetId")).signature == "s"
            assert memory(bus.pid) < before + 8 * LIMIT
        flooding.join()
        last = sender.driver(b"GetId")
        while True:
            message = sender.receive()
            assert message is not None
            if message.reply_serial == last:
                break
            if message.error_name is not None:
                refused.append(message)
        assert {m.error_name for m in refused} == {"org.freedesktop.DBus.Error.LimitsExceeded"}
        assert all(
            m.body[0].startswith(
                "Rejected: destination has a full message queue, 0 matched rules; "
            )
            for m in refused
        )
        # Each message was either refused or is there, in order. Serials tell which: the first
        # call after Hello (serial 1) was number 0.
        accepted = sorted(set(range(count)) - {m.reply_serial - 2 for m in refused})
        assert len(accepted) + len(refused) == count
        assert floods(reader, accepted[-1]) == accepted
        # The queue is empty again: the next one passes.
        sender.message(
            destination=reader.unique_name.encode(), path=b"/", interface=b"flood.Test",
            member=b"M", signature="ay", values=[body(7777)], flags=1,
        )  # fmt: skip
        assert floods(reader, 7777) == [7777]
        for client in (sender, reader, other):
            client.close()


def test_broadcasts_past_a_stopped_reader() -> None:
    count = 200  # 20 MB, five times what may wait for one
    with buses.running(buses.jitney_command(), extra=EXTRA) as bus:
        sender, stopped, reader = (RawClient(bus.address) for _ in range(3))
        for client in (sender, stopped, reader):
            client.hello()
        for client in (stopped, reader):
            client.reply_to(client.driver(b"AddMatch", "s", "interface='flood.Test'"))
        for start in range(0, count, 20):
            # In step with the one that reads, so that nothing is lost to it.
            for number in range(start, start + 20):
                sender.message(
                    4, destination=None, path=b"/", interface=b"flood.Test", member=b"M",
                    signature="ay", values=[body(number)],
                )  # fmt: skip
            assert floods(reader, start + 19) == list(range(start, start + 20))
        stats = reader.reply_to(
            reader.driver(
                b"GetConnectionStats", "s", stopped.unique_name,
                interface=b"org.freedesktop.DBus.Debug.Stats",
            )
        ).body[0]  # fmt: skip
        queued = stats["OutgoingBytes"][1]
        dropped = stats["org.jitney.DroppedMessages"][1]
        assert queued <= LIMIT + CHUNK + 1000
        assert 0 < dropped < count
        got = floods(stopped, count - dropped - 1)
        assert got == list(range(count - dropped))
        for client in (sender, stopped, reader):
            client.close()


def unread(sock: socket.socket) -> int:
    """Bytes that the kernel keeps for this end."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


def test_a_full_socket_is_made_larger(daemon: buses.Daemon) -> None:
    """The kernel keeps more for a reader that fell behind than a socket takes by itself."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours, theirs:
        plain = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                plain += theirs.send(bytes(65536))
    sender, reader = RawClient(daemon.address), RawClient(daemon.address)
    sender.hello()
    reader.hello()
    flood(sender, reader.unique_name, 20)
    sender.reply_to(sender.driver(b"GetId"))
    until(lambda: unread(reader.sock) > plain * 1.5)
    assert floods(reader, 19) == list(range(20))
    sender.close()
    reader.close()


@pytest.mark.parametrize("size", [16383, 16384, 300_000, 1 << 20, 1 << 24])
def test_large_bodies_arrive_whole(daemon: buses.Daemon, size: int) -> None:
    data = bytes(hashlib.sha256(size.to_bytes(4, "little")).digest()) * (size // 32 + 1)
    data = data[:size]
    sender = RawClient(daemon.address, timeout=30)
    sender.hello()
    readers = [RawClient(daemon.address, timeout=30) for _ in range(5)]
    for reader in readers:
        reader.hello()
        reader.reply_to(reader.driver(b"AddMatch", "s", "interface='large.Test'"))
    # While nobody reads, a small message before and after: order holds around large bodies.
    parts = [(b"A", b"a"), (b"B", data), (b"C", b"c"), (b"D", data)]

    def send_all() -> None:
        for member, content in parts:
            sender.message(
                4, destination=None, path=b"/", interface=b"large.Test", member=member,
                signature="ay", values=[content],
            )  # fmt: skip

    sending = threading.Thread(target=send_all)
    sending.start()
    for reader in readers:
        got: list[tuple[str | None, bytes]] = []
        while len(got) < 4:
            message = reader.receive()
            assert message is not None
            if message.interface == "large.Test":
                got.append((message.member, message.body[0]))
        assert [member for member, _ in got] == ["A", "B", "C", "D"]
        assert [content == data for _, content in got] == [False, True, False, True]
        reader.close()
    sending.join()
    sender.close()


def test_message_larger_than_allowed() -> None:
    extra = '<limit name="max_message_size">100000</limit>'
    with buses.running(buses.jitney_command(), extra=extra) as bus:
        with RawClient(bus.address) as client:
            client.hello()
            flood(client, client.unique_name, 1)
            while client.receive() is not None:
                pass
            assert client.closed
        with RawClient(bus.address) as client:
            client.hello()
