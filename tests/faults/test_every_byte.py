"""Reads and writes that move fewer bytes than they could, cut at every byte of what is said."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import buses
import faultlayer
import faulttraffic
import pytest
from faultlayer import ANY, SHORT, Plan
from faulttraffic import Bystander
from rawclient import RawClient

from jitney.compat import wire

pytestmark = pytest.mark.skipif(
    isinstance(faultlayer.library(), str), reason=str(faultlayer.library())
)
READS, WRITES = ("recvmsg", "recv"), ("sendmsg", "send")
SIZES = {"small": 10, "by reference": 20_000, "own buffer": 200_000}


@pytest.fixture
def plan() -> Iterator[Plan]:
    made = Plan()
    yield made
    made.close()


@pytest.fixture
def bus(plan: Plan) -> Iterator[buses.Daemon]:
    with faultlayer.running(plan) as running, faulttraffic.bystander(running) as bystander:
        yield running
        bystander.check()


def cuts(size: int) -> list[int]:
    """All bytes of a short run; of a long one its beginning, its end, and some between."""
    if size < 1000:
        return list(range(1, size + 1))
    return [*range(1, 300), *range(300, size - 20, size // 50), *range(size - 20, size + 1)]


class Pair:
    """Two clients; one sends a message with a descriptor, and one behind it, to the other."""

    def __init__(self, bus: buses.Daemon) -> None:
        self.a, self.b = RawClient(bus.address), RawClient(bus.address)
        for client in (self.a, self.b):
            client.hello()
            client.reply_to(client.driver(b"GetId"))  # NameAcquired is behind us

    def send(self, size: int, number: int) -> None:
        r, w = os.pipe()
        os.write(w, number.to_bytes(4, "little"))
        os.close(w)
        for fds in ([r], []):
            self.a.message(
                destination=self.b.unique_name.encode(), path=b"/", member=b"M", flags=1,
                signature="uay" + "h" * len(fds), values=[number, bytes(size), *range(len(fds))],
                fds=fds,
            )  # fmt: skip
        os.close(r)

    def receive(self, size: int, number: int) -> None:
        for n_fds in (1, 0):
            message = self.b.receive()
            assert message is not None
            assert message.body[:2] == [number, bytes(size)]
            assert [os.read(fd, 9) for fd in message.fds] == [number.to_bytes(4, "little")] * n_fds
            message.close_fds()

    def close(self) -> None:
        self.a.close()
        self.b.close()


@pytest.mark.parametrize("calls", [READS, WRITES], ids=["reads", "writes"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_one_cut(plan: Plan, bus: buses.Daemon, calls: tuple[str, ...], size: int) -> None:
    pair = Pair(bus)
    hits = 0
    for length in cuts(size + 250):
        with plan.armed(dict.fromkeys(calls, (SHORT,)), length=length):
            pair.send(size, length)
            pair.receive(size, length)
        hits += sum(plan.hit().values())
    assert hits > 200
    pair.close()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 17])
def test_always_cut(plan: Plan, bus: buses.Daemon, length: int) -> None:
    """Every read and every write is that short."""
    faults = dict.fromkeys((*READS, *WRITES), (SHORT,))
    with plan.armed(faults, count=ANY, length=length):
        pair = Pair(bus)
        for number in range(5):
            pair.send(10, number)
            pair.receive(10, number)
        pair.close()
    assert sum(plan.hit().values()) > 1000 / length


def test_the_first_words(plan: Plan, bus: buses.Daemon) -> None:
    """Authentication and Hello, said in one breath, read with a cut at each byte."""
    identity = str(os.geteuid()).encode().hex().encode()
    said = b"\0AUTH EXTERNAL " + identity + b"\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
    for length in range(1, len(said) + 140):
        with plan.armed({"recvmsg": (SHORT,)}, length=length):
            client = RawClient.__new__(RawClient)
            client.timeout, client.serial, client.closed = 30.0, 0, False
            client._unread, client._fds = b"", []
            client.sock = socket.socket(socket.AF_UNIX)
            client.sock.settimeout(30)
            client.sock.connect(bus.address.partition("path=")[2].partition(",")[0])
            start, client.sock = client.sock, _Held()
            serial = client.driver(b"Hello")
            hello, client.sock = client.sock.data, start
            client.sock.sendall(said + hello)
            client._expect(b"OK ")
            client._expect(b"AGREE_UNIX_FD")
            reply = client.reply_to(serial)
            assert reply.type == wire.RETURN
            client.close()


class _Held:
    """Keeps what would be sent."""

    data = b""

    def sendmsg(self, parts: list[bytes], extra: object) -> int:
        self.data += b"".join(parts)
        return len(self.data)


def test_bystander_sees_what_is_wrong(bus: buses.Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: somebody who stays is a difference."""
    bystander = Bystander(bus)
    with RawClient(bus.address) as client:
        client.hello()
        monkeypatch.setattr(faulttraffic, "PATIENCE", 0.3)
        with pytest.raises(AssertionError):
            bystander.check()
        monkeypatch.undo()
    bystander.check()
    bystander.close()
