"""What clients do while calls fail beneath their bus, and what must be so afterwards.

Invariant: nobody here waits in vain. Whoever waits for a message gets it, or an error, or the end
of its connection; anything else is a TimeoutError, and fails the test. That is "no silent loss".
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import buses
from rawclient import RawClient, Received
from waiting import PATIENCE, until

from jitney.compat import wire

NAME = b"org.example.Rider"
INSPECT = b"org.jitney.Inspect1"
RULE = "type='signal',interface='org.example.Rider'"
KEPT = ("Ride", "Passing")


class Gone(Exception):
    """The connection that was waited on has ended."""


class Rider(RawClient):
    """A client that says `Gone` for every way of having lost the bus."""

    def __init__(self, address: str) -> None:
        self.kept: list[Received] = []
        try:
            super().__init__(address, timeout=PATIENCE)
            self.hello()
        except ConnectionError as error:
            if hasattr(self, "sock"):
                self.sock.close()
            raise Gone from error

    def send(self, data: bytes, fds: Any = ()) -> None:
        try:
            super().send(data, fds)
        except OSError as error:
            raise Gone from error

    def next_one(self, timeout: float | None = None) -> Received:
        """The next message that is not kept for later."""
        try:
            message = self.receive(timeout)
        except ConnectionError:
            message = None
        if message is None:
            raise Gone
        return message

    def told(self, serial: int) -> bool:
        """Whether the bus has said no to a call, or has gone, by now. Nothing is lost by asking."""
        try:
            while True:
                self.kept.append(self.next_one(0.0))
        except TimeoutError:
            return any(message.reply_serial == serial for message in self.kept)
        except Gone:
            return True

    def answer(self, serial: int) -> Received:
        """The answer to a call; other answers are kept, signals are not."""
        for message in self.kept:
            if message.reply_serial == serial:
                self.kept.remove(message)
                return message
        while True:
            message = self.next_one()
            if message.reply_serial == serial:
                return message
            if message.reply_serial or message.member in KEPT:
                self.kept.append(message)

    def ask(self, member: bytes, signature: str = "", *values: Any) -> Received:
        return self.answer(self.driver(member, signature, *values))

    def wait_for(self, member: str, *, of: Rider | None = None, serial: int = 0) -> Received:
        """A message that `of` has sent with this serial; Gone, too, if `of` is told otherwise."""
        for message in self.kept:
            if message.member == member:
                self.kept.remove(message)
                return message
        end = time.monotonic() + PATIENCE
        while True:
            try:
                message = self.next_one(0.05 if of else None)
            except TimeoutError:
                if of is None or time.monotonic() > end:
                    raise
                if of.told(serial):
                    raise Gone from None
                continue
            if message.member == member:
                return message
            if message.reply_serial:
                self.kept.append(message)


def ride(address: str) -> None:
    """Everything once: credentials, names, matches, calls, descriptors, signals, a body that does
    not fit into a socket, an error, a caller whose service goes."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(Gone))
        service = stack.enter_context(Rider(address))
        caller = stack.enter_context(Rider(address))
        service.ask(b"RequestName", "su", NAME.decode(), 4)
        caller.ask(b"AddMatch", "s", RULE)
        caller.ask(b"GetConnectionCredentials", "s", service.unique_name)
        for large in (False, True):
            _call(caller, service, large)
        assert caller.answer(_to(caller, b"org.example.Nobody")).error_name
        service.message(
            wire.SIGNAL, destination=None, path=b"/", interface=NAME, member=b"Passing",
            signature="u", values=[7],
        )  # fmt: skip
        # It goes to all or nobody: whoever can answer has had it before the answer.
        service.ask(b"GetId")
        assert caller.wait_for("Passing").body == [7]
        serial = _to(caller, NAME)
        service.wait_for("Ride", of=caller, serial=serial)
        service.close()
        reply = caller.answer(serial)
        assert reply.error_name == "org.freedesktop.DBus.Error.NoReply"


def _to(client: RawClient, name: bytes, **more: Any) -> int:
    return client.message(destination=name, path=b"/", interface=NAME, member=b"Ride", **more)


def _call(caller: Rider, service: Rider, large: bool) -> None:
    body = bytes(700_000 if large else 10)
    r, w = os.pipe()
    try:
        serial = _to(caller, NAME, signature="ayh", values=[body, 0], fds=[r])
        try:
            message = service.wait_for("Ride", of=caller, serial=serial)
        except Gone:
            # Then the caller hears of it.
            assert caller.answer(serial).type == wire.ERROR
            raise
        os.write(w, b"x")
        assert [os.read(fd, 1) for fd in message.fds] == [b"x"]
        assert len(message.body[0]) == len(body)
        message.close_fds()
        service.message(
            wire.RETURN, destination=caller.unique_name.encode(), reply_serial=message.serial,
            signature="ay", values=[body],
        )  # fmt: skip
        caller.answer(serial)
    finally:
        os.close(r)
        os.close(w)


class Bystander:
    """A client that has nothing to do with it, and what it sees of the bus."""

    def __init__(self, bus: buses.Daemon) -> None:
        self.bus = bus
        self.client = RawClient(bus.address, timeout=PATIENCE)
        self.client.hello()
        alone = self.json(b"GetStatus")["connections"]
        ride(bus.address)  # what the first time leaves for good is no leak
        until(lambda: self.json(b"GetStatus")["connections"] == alone, "all have left")
        self.before = self.state()

    def state(self) -> Any:
        status = self.json(b"GetStatus")
        users = json.loads(self.ask(b"UsersFrom", "s", "").body[0])
        return {
            **{
                key: status[key]
                for key in (
                    "connections", "monitors", "names", "matches", "calls", "queued_bytes",
                    "queued_fds", "incomplete", "starting",
                )
            },
            "users": [
                {key: value for key, value in user.items() if key != "filled_by"} for user in users
            ],
            "filled": [share for user in users for share in user["filled_by"]],
            "fds": descriptors(self.bus.pid),
        }  # fmt: skip

    def json(self, member: bytes) -> Any:
        return json.loads(self.ask(member).body[0])

    def ask(self, member: bytes, signature: str = "", *values: Any) -> Received:
        reply = self.client.reply_to(
            self.client.driver(member, signature, *values, interface=INSPECT)
        )
        assert reply.type == wire.RETURN, reply
        return reply

    def check(self) -> None:
        """The bus lives, answers, and has given back all that it took, or soon will have."""
        deadline = time.monotonic() + PATIENCE
        while found := _differences(self.before, self.state()):
            if found.keys() == {"fds"} and not Counter(found["fds"][1]) - Counter(found["fds"][0]):
                # It was reading its files again when we first looked.
                self.before["fds"] = found["fds"][1]
                return
            assert time.monotonic() < deadline, found
            time.sleep(0.01)

    def close(self) -> None:
        self.client.close()


def _differences(before: Any, now: Any) -> Any:
    return {key: (before[key], now[key]) for key in before if before[key] != now[key]}


def descriptors(pid: int) -> list[str]:
    """What a process has open, without the numbers of sockets and the like.

    /dev/urandom is no leak: without getrandom(), each library that reads it keeps it open."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")[0])
    return sorted(name for name in found if name != "/dev/urandom")


@contextlib.contextmanager
def bystander(bus: buses.Daemon) -> Iterator[Bystander]:
    made = Bystander(bus)
    try:
        yield made
    finally:
        made.close()


def reload(address: str) -> None:
    """A reload; whoever asked for it is told how it went."""
    with contextlib.suppress(Gone), Rider(address) as client:
        client.ask(b"ReloadConfig")
        client.ask(b"ListActivatableNames")


QUICK = '<limit name="service_start_timeout">3000</limit>'
_PROGRAMS = {"Fails": "/bin/false", "Stays": "/bin/sleep 0.2"}


def write_services(bus: buses.Daemon) -> None:
    """What `start` starts. The bus reads the directory when a name is not known."""
    for name, program in _PROGRAMS.items():
        text = f"[D-BUS Service]\nName=org.example.{name}\nExec={program}\n"
        (bus.directory / "services" / f"{name}.service").write_text(text)


def start(address: str) -> None:
    """A service that does not come, and one whose name somebody else takes meanwhile."""
    with contextlib.suppress(Gone), Rider(address) as client:
        assert client.answer(_to(client, b"org.example.Fails")).type == wire.ERROR
        serial = _to(client, b"org.example.Stays")
        client.ask(b"GetId")
        with contextlib.suppress(Gone), Rider(address) as service:
            service.ask(b"RequestName", "su", "org.example.Stays", 4)
            service.ask(b"GetId")
        assert client.answer(serial).type == wire.ERROR
