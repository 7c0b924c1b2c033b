"""Helpers for tests: a daemon whose bus is one of kdbus as well, and clients of both worlds.

Invariant: the classic clients are sockets; those of kdbus give ioctls, under a mount or (`shim`)
with the preloaded library on sockets, or send frames. Nobody here shares anything with the daemon
but the bus, and what a client is asked to do is the same in every way.

`TEST_WITH_SHIM` is set in a process that has the library preloaded, see `test_one_daemon.py`.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import buses
import foreground
import kdbusmount
import nativeclient
import pytest
from kdbuskit import Errno, Got, command, item, message, text, u64
from rawclient import RawClient, Received
from unnamed import sealed, unnamed
from waiting import comes, until
from worldskit import dbus2, parsed

from jitney.broker.kdbus import constants as c
from jitney.broker.match import Rule
from jitney.compat import wire
from jitney.kdbus import bloom, matches, transcode
from jitney.kdbus.transcode import Dbus2Message

TEST_WITH_SHIM = "JITNEY_TEST_WITH_SHIM"
if TEST_WITH_SHIM in os.environ:
    # It is loaded; those whom we start are to do without.
    os.environ.pop("LD_PRELOAD", None)

NAME = b"com.example.Name"
CALL: dict[str, Any] = {"path": b"/a", "interface": b"com.example.I", "member": b"M"}
FAR = 1 << 62

OPTIONS = {"mount": "--kdbus-mount", "sockets": "--kdbus-sockets", "shim": "--kdbus-sockets"}
SOCKETS = ["shim"] if TEST_WITH_SHIM in os.environ else ["sockets"]
"""Ways in that pass descriptors."""
_no_mount = kdbusmount.why_not()
WAYS: list[Any] = (
    SOCKETS
    if TEST_WITH_SHIM in os.environ
    else [
        pytest.param("mount", marks=pytest.mark.skipif(bool(_no_mount), reason=_no_mount or "-")),
        *SOCKETS,
    ]
)


class Speaks:
    """A client of kdbus that speaks sd-bus's form."""

    id: int

    def give(self, name: str, flags: int = 0, fields: bytes = b"", items: bytes = b"") -> bytes:
        """One command."""
        raise NotImplementedError

    def post(
        self, parts: Sequence[bytes], items: bytes, fds: Sequence[int], memfd: bool, flags: int,
        *head: Any,
    ) -> bytes:  # fmt: skip
        """SEND of a message with these parts (all of them in one memfd) and items; `head` is what
        `kdbuskit.message()` takes besides."""
        raise NotImplementedError

    def recv(self, flags: int = 0, wait: float = 10.0) -> Got:
        raise NotImplementedError

    def descriptors(self) -> list[int]:
        """Those of the message that came last."""
        raise NotImplementedError

    def slice(self, offset: int, size: int) -> Got:
        raise NotImplementedError

    def say(
        self,
        said: Dbus2Message,
        timeout: int = FAR,
        sync: bool = False,
        fds: Sequence[int] = (),
        memfd: bool = False,
    ) -> bytes:
        envelope = transcode.envelope_of(said)
        items = b""
        if envelope.dst_name is not None:
            items += text(c.ITEM_DST_NAME, envelope.dst_name)
        if envelope.flags & c.SIGNAL:
            items += item(c.ITEM_BLOOM_FILTER, u64(0) + bloom.filter_of(said))
        told = timeout if envelope.flags & c.EXPECT_REPLY else envelope.cookie_reply
        parts = [bytes(part) for part in transcode.lay(said) if part]
        return self.post(
            parts, items, fds, memfd, c.SEND_SYNC_REPLY if sync else 0,
            envelope.dst_id, envelope.flags, envelope.cookie, told,
        )  # fmt: skip

    def call(self, to: bytes, cookie: int = 1, **more: Any) -> bytes:
        keys = ("timeout", "sync", "fds", "memfd")
        sending = {key: more.pop(key) for key in keys if key in more}
        n_fds = len(sending.get("fds", ()))
        return self.say(
            dbus2(wire.CALL, cookie, destination=to, n_fds=n_fds, **(CALL | more)), **sending
        )

    def hear(self, wait: float = 10.0) -> Dbus2Message:
        return parsed(self.recv(wait=wait), self.id)

    def answer_in(self, data: bytes) -> Dbus2Message:
        """The answer that came with a synchronous SEND."""
        return parsed(self.slice(*struct.unpack_from("<QQ", data, 32)), self.id)

    def reply(self, said: Dbus2Message, fds: Sequence[int] = (), **more: Any) -> bytes:
        answer = dbus2(
            wire.RETURN, 99, reply_cookie=said.cookie, destination=said.sender, n_fds=len(fds),
            **more,
        )  # fmt: skip
        return self.say(answer, fds=fds)

    def listen(self, rule: Rule) -> None:
        for match in matches.of_rule(rule):
            self.give("MATCH_ADD", 0, u64(1), b"".join(item(one.type, one.data) for one in match))

    def acquire(self, name: bytes) -> None:
        self.give("NAME_ACQUIRE", items=text(c.ITEM_NAME, name))

    @property
    def name(self) -> bytes:
        return b":1.%d" % self.id


def memfd_item(size: int, fd: int) -> bytes:
    return item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<QQiI", 0, size, fd, 0))


def fds_item(numbers: Sequence[int]) -> bytes:
    return item(c.ITEM_FDS, struct.pack(f"<{len(numbers)}i", *numbers)) if numbers else b""


class ByIoctl(Speaks, kdbusmount.Peer):
    """By system calls, as programs have it that were compiled for kdbus."""

    give = kdbusmount.Peer.do

    def post(
        self, parts: Sequence[bytes], items: bytes, fds: Sequence[int], memfd: bool, flags: int,
        *head: Any,
    ) -> bytes:  # fmt: skip
        kept = [ctypes.create_string_buffer(part, len(part)) for part in parts]
        carried = b"".join(
            item(c.ITEM_PAYLOAD_VEC, u64(len(one), ctypes.addressof(one))) for one in kept
        )
        fd = -1
        if memfd:
            fd = sealed(b"".join(parts))
            carried = memfd_item(sum(map(len, parts)), fd)
        dst, *rest = head
        data = message(
            dst, items + carried + fds_item(fds), *rest, payload_type=transcode.PAYLOAD_DBUS
        )
        try:
            return self.send(data, flags)
        finally:
            if fd >= 0:
                os.close(fd)

    def recv(self, flags: int = 0, wait: float = 10.0) -> Got:
        self.got = kdbusmount.Peer.recv(self, flags, wait)
        return self.got

    def descriptors(self) -> list[int]:
        data = self.got.get(c.ITEM_FDS) or b""
        return list(struct.unpack(f"<{len(data) // 4}i", data))

    def slice(self, offset: int, size: int) -> Got:
        return Got(self.map[offset : offset + size])


class ByFrame(Speaks, nativeclient.Peer):
    """By frames, as docs/native.md has it."""

    def __init__(self, path: Path, **more: Any) -> None:
        super().__init__(path, attach=c.ATTACH_ALL, **more)
        self.fds: list[int] = []
        self.outbox: mmap.mmap | None = None

    def give(self, name: str, flags: int = 0, fields: bytes = b"", items: bytes = b"") -> bytes:
        return self.do(name, command(name, flags, fields, items)).body

    def post(
        self, parts: Sequence[bytes], items: bytes, fds: Sequence[int], memfd: bool, flags: int,
        *head: Any,
    ) -> bytes:  # fmt: skip
        body = b"".join(parts)
        sending = list(fds)
        extra = body
        if memfd:
            sending.append(sealed(body))
            extra = b""
            carried = memfd_item(len(body), len(sending) - 1)
        else:
            at = 80
            if len(body) > 32768:
                at, extra = nativeclient.OUTBOX, b""
                self.fill(body)
            carried = b""
            for part in parts:
                carried += item(c.ITEM_PAYLOAD_VEC, u64(len(part), at))
                at += len(part)
        items += carried + fds_item(range(len(fds)))
        dst, *rest = head
        data = message(dst, items, *rest, payload_type=transcode.PAYLOAD_DBUS)
        frame = self.send(data, extra, tuple(sending), flags)
        if memfd:
            os.close(sending[-1])
        if frame.error:
            raise Errno(frame.error)
        self.fds = frame.fds
        return frame.body

    def fill(self, body: bytes) -> None:
        """Puts it into the outbox."""
        if self.outbox is None:
            fd = unnamed()
            os.ftruncate(fd, 1 << 22)
            self.do("OUTBOX", fds=(fd,))
            self.outbox = mmap.mmap(fd, 1 << 22)
            os.close(fd)
        self.outbox[: len(body)] = body

    def recv(self, flags: int = 0, wait: float = 10.0) -> Got:
        self.sock.settimeout(wait)
        while True:
            frame, got = self.try_recv(flags)
            if got is not None:
                self.free(self.offset)
                self.fds = frame.fds
                return got
            if frame.error != errno.EAGAIN:
                raise Errno(frame.error)
            self.wait()

    def descriptors(self) -> list[int]:
        return self.fds

    def slice(self, offset: int, size: int) -> Got:
        return self.at(offset, size)


class Both:
    """The daemon, and who is on its bus."""

    def __init__(self, daemon: buses.Daemon, tree: Path, way: str, kind: str = "user") -> None:
        self.daemon = daemon
        self.tree = tree
        self.way = way
        self.address = daemon.address
        self.closing: list[Any] = []
        self.path = tree / f"{os.geteuid()}-{kind}" / "bus"

    def kdbus(self, **more: Any) -> Any:
        peer = (ByFrame if self.way == "sockets" else ByIoctl)(self.path, **more)
        self.closing.append(peer)
        return peer

    def classic(self, **more: Any) -> RawClient:
        client = RawClient(self.address, **more)
        self.closing.append(client)
        client.hello()
        assert only(client, "NameAcquired")
        return client

    def clear(self) -> None:
        """Everybody is gone when this returns."""
        for one in self.closing:
            one.close()
        self.closing.clear()
        with RawClient(self.address) as client:
            client.hello()
            there = ["org.freedesktop.DBus", client.unique_name]
            assert comes(
                lambda: (
                    sorted(client.reply_to(client.driver(b"ListNames")).body[0]) == sorted(there)
                )
            )

    @property
    def log(self) -> str:
        return (self.daemon.directory / "log").read_text()


def gone(way: str, tree: Path) -> bool:
    return not (kdbusmount.is_mounted(tree) if way == "mount" else (tree / "control").exists())


@contextmanager
def started(tree: Path, way: str, *words: str, **more: Any) -> Iterator[Both]:
    command = [*buses.jitney_command(), f"{OPTIONS[way]}={tree}", *words]
    with buses.running(command, **more) as daemon, foreground.mortal(daemon.pid, 100):
        both = Both(daemon, tree, way, "system" if more.get("type") == "system" else "user")
        try:
            yield both
        finally:
            for one in both.closing:
                one.close()
    until(lambda: gone(way, tree), "nothing of it is left")


def only(client: RawClient, member: str | None = None) -> Received:
    got = client.receive()
    assert got is not None
    if member is not None:
        assert got.member == member, got
    return got


def denied(what: Callable[[], object]) -> int:
    with pytest.raises(Errno) as caught:
        what()
    return int(caught.value.errno)
