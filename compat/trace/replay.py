"""`jitney replay`: recorded traffic again, on another bus, by connections that play the old ones.

Invariant: a reply is sent only when its call has arrived, and a step that follows a reply in the
recording waits for that reply: whatever the speed, nothing happens before what it depends on.
Each wait has an end; what did not come is counted, and the rest goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from struct import Struct
from typing import Any

from jitney.broker.message import Message

from .. import wire
from ..client import Client, NoBus
from ..errors import DBusError
from . import pcap
from .plan import EXPECT, JOIN, LEAVE, Plan, Step, plan
from .rewrite import rewritten

UNUSABLE, INCOMPLETE = 2, 1
PATIENCE = 5.0
"""Seconds to wait for what should come."""

_DESCRIPTION = """\
Sends what `jitney record` (or dbus-monitor --pcap) wrote, on the bus at an address, which should be
one for tests: services there are called as they were then."""

_SIZES = Struct("<III")
_SIZES_BIG = Struct(">III")


class Actor:
    """A connection that does what one of the recording did. `calls`, `replies`: what it got, as
    (caller's new name, serial) and the serial of the call."""

    def __init__(self, address: str) -> None:
        self.client = Client(address)
        self.name = self.client.unique_name
        self.calls: set[tuple[bytes, int]] = set()
        self.replies: set[int] = set()
        self.news = asyncio.Event()
        self.received = 0
        self.task: asyncio.Task[None] | None = None

    def own(self, name: bytes) -> None:
        self.client.call("RequestName", "su", name.decode(), 4)

    def start(self) -> None:
        self.client.sock.setblocking(False)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        data = bytearray(self.client.unread)
        with contextlib.suppress(OSError):
            while some := await loop.sock_recv(self.client.sock, 65536):
                data += some
                while (msg := _message(data)) is not None:
                    self._note(msg)

    def _note(self, msg: Message) -> None:
        self.received += 1
        if msg.type == wire.CALL:
            self.calls.add((msg.sender or b"", msg.serial))
        elif msg.reply_serial:
            self.replies.add(msg.reply_serial)
        self.news.set()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.client.sock, data)

    async def got_call(self, caller: bytes, serial: int) -> bool:
        return await self._until(self.calls, (caller, serial))

    async def got_reply(self, serial: int) -> bool:
        return await self._until(self.replies, serial)

    async def _until(self, where: set[Any], what: object) -> bool:
        """Waits until it is there, and takes it out."""
        deadline = time.monotonic() + PATIENCE
        while what not in where:
            self.news.clear()
            try:
                await asyncio.wait_for(self.news.wait(), deadline - time.monotonic())
            except TimeoutError:
                return False
        where.discard(what)
        return True

    def leave(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self.client.close()


class Replay:
    """One run of a plan. `speed`: so many times as fast as it was; 0: without waiting for times.

    `without`: names whose owners are not played, because the bus has the real ones."""

    def __init__(self, made: Plan, address: str, speed: float, without: Sequence[str]) -> None:
        self.plan = made
        self.address = address
        self.speed = speed
        self.left_out = {
            made.owners[name.encode()]: name for name in without if name.encode() in made.owners
        }
        self.actors: dict[bytes, Actor] = {}
        self.names: dict[str, str] = {old.decode(): name for old, name in self.left_out.items()}
        self.sent = self.replies = self.missing = self.received = 0

    async def run(self) -> float:
        """Plays; the seconds that it took."""
        try:
            for old in self.plan.present:
                self.join(old)
            begin = time.monotonic()
            start = self.plan.steps[0].time if self.plan.steps else 0
            for step in self.plan.steps:
                if self.speed:
                    due = begin + (step.time - start) / 1e9 / self.speed
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self.do(step)
            return time.monotonic() - begin
        finally:
            for old in list(self.actors):
                self.leave(old)

    def join(self, old: bytes) -> None:
        if old in self.left_out or old in self.actors:
            return
        actor = self.actors[old] = Actor(self.address)
        self.names[old.decode()] = actor.name
        for name, owner in self.plan.owners.items():
            if owner == old:
                actor.own(name)
        actor.start()

    def leave(self, old: bytes) -> None:
        actor = self.actors.pop(old, None)
        if actor is not None:
            self.received += actor.received
            actor.leave()

    async def do(self, step: Step) -> None:
        if step.kind == JOIN:
            self.join(step.actor)
            return
        if step.kind == LEAVE:
            self.leave(step.actor)
            return
        actor = self.actors.get(step.actor)
        if step.kind == EXPECT:
            if actor is not None:
                self.count(await actor.got_reply(step.serial))
            return
        msg = step.message
        assert msg is not None
        caller = self.actors.get(msg.destination or b"")
        if actor is not None:
            if msg.reply_serial and caller is not None:
                await actor.got_call(caller.name.encode(), msg.reply_serial)
            with contextlib.suppress(OSError):
                await actor.send(rewritten(msg, self.names))
                self.sent += 1
        if msg.reply_serial and caller is not None:
            self.count(await caller.got_reply(msg.reply_serial))

    def count(self, came: bool) -> None:
        if came:
            self.replies += 1
        else:
            self.missing += 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these words; the exit status: 1 if replies did not come."""
    parser = argparse.ArgumentParser(
        prog="jitney replay", description=_DESCRIPTION, allow_abbrev=False
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--address", required=True, help="the bus to do it on")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--fast", action="store_true", help="as fast as it goes")
    how.add_argument("--speed", type=float, default=1.0, metavar="X", help="X times as fast")
    parser.add_argument(
        "--without", metavar="NAME", action="append", default=[],
        help="do not play who had this name: the bus has the real one (may be repeated)",
    )  # fmt: skip
    words = parser.parse_args(argv)
    if words.speed <= 0:
        parser.error("--speed takes a number above 0")
    try:
        with open(words.file, "rb") as file:
            made = plan(pcap.read(file))
        replay = Replay(made, words.address, 0.0 if words.fast else words.speed, words.without)
        taken = asyncio.run(replay.run())
    except OSError as error:
        return _fail(f"{words.file}: {error.strerror}")
    except (ValueError, NoBus) as problem:
        return _fail(str(problem))
    except DBusError as error:
        return _fail(error.text)
    except KeyboardInterrupt:
        return _fail("interrupted")
    left = [f"{made.n_fds} with file descriptors"] if made.n_fds else []
    left += [f"{made.n_cut} that are not whole"] if made.n_cut else []
    print(
        f"sent {replay.sent} messages in {taken:.3f} s (recorded: {made.seconds:.3f} s), "
        f"got {replay.received}; {replay.replies} replies came, {replay.missing} did not"
        + (f"; left out: {', '.join(left)}" if left else "")
    )
    return INCOMPLETE if replay.missing else 0


def _message(data: bytearray) -> Message | None:
    """Takes the first whole message off the front."""
    if len(data) < 16:
        return None
    body, _, fields = (_SIZES_BIG if data[:1] == b"B" else _SIZES).unpack_from(data, 4)
    size = 16 + (fields + 7 & ~7) + body
    if len(data) < size:
        return None
    msg = Message()
    if not msg.load(bytes(data[:size])):
        raise NoBus("the bus sends what is no message")
    del data[:size]
    return msg


def _fail(text: str) -> int:
    print(f"jitney replay: {text}", file=sys.stderr)
    return UNUSABLE
