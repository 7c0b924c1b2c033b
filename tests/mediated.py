"""Buses under security modules that are made up: the kernel's answers, and who is labelled what.

Invariant: all but the kernel's files is the real thing: the whole bus, on its own loop in a thread,
its sockets and its clients. The n-th client to connect has the n-th label of `World.labels`, the
last one goes for all that come later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rawclient import RawClient, Received

from jitney.compat import ways
from jitney.compat.loop import BusLoop
from jitney.compat.security import apparmorfs, mediation, selinuxfs
from jitney.compat.security.apparmorfs import Answer, AppArmorFS, Confinement
from jitney.compat.security.audit import Audit
from jitney.compat.security.selinuxfs import SELinuxFS, Status, Vector
from jitney.testing import config
from jitney.testing.host import Host

BUS = b"system_u:system_r:bus_t:s0"
SEND, ACQUIRE = 1 << 1, 1 << 0
"""In the policy that is made up; nobody may take these numbers for granted."""


class FakeSELinux(SELinuxFS):
    """A policy: `allow` has (subject, target, permission); `changed()` is what a load_policy or a
    setenforce does. `asked`: how often the kernel was."""

    def __init__(self, mapped: bool = True) -> None:
        self.place = "/nowhere"
        self.allow: set[tuple[bytes, bytes, int]] = set()
        self.audit_allow = 0
        self.dontaudit = 0
        self.permissive: set[bytes] = set()
        self.enforcing = True
        self.deny_unknown = False
        self.known = True
        self.loads = 1
        self.invalid: set[bytes] = set()
        self.asked = 0
        self.sequence = bytearray(4)
        self.mapped = memoryview(self.sequence) if mapped else None

    def changed(self, load: bool = True) -> None:
        self.loads += load
        self.sequence[:] = (int.from_bytes(self.sequence, "little") + 2).to_bytes(4, "little")

    def map(self) -> None:
        pass

    def status(self) -> Status:
        return Status(self.enforcing, self.deny_unknown, self.loads)

    def context(self) -> bytes:
        return BUS

    def permissions(self, name: str) -> tuple[int, dict[str, int]]:
        if not self.known:
            raise FileNotFoundError(2, "No such file or directory")
        return 52, {"send_msg": SEND, "acquire_svc": ACQUIRE}

    def compute(self, subject: bytes, target: bytes, number: int, requested: int) -> Vector:
        assert (number, requested) == (52, SEND | ACQUIRE)
        self.asked += 1
        if self.invalid & {subject, target}:
            raise OSError(22, os.strerror(22))
        allowed = sum(bit for bit in (SEND, ACQUIRE) if (subject, target, bit) in self.allow)
        return Vector(
            allowed, self.audit_allow, ~self.dontaudit & 0xFFFFFFFF, subject in self.permissive
        )


class FakeAppArmor(AppArmorFS):
    """Profiles: `decide(mask, label, rest)` says what a profile answers, `rest` being the words of
    the question after the class. `asked`: all questions so far."""

    def __init__(self, decide: Callable[[int, bytes, list[bytes]], Answer], watched: bool) -> None:
        self.place = "/nowhere"
        self.decide = decide
        self.asked: list[tuple[int, bytes]] = []
        self.revision = None
        self.pipe = os.pipe() if watched else None
        self.fails = 0

    def watch(self) -> None:
        if self.pipe is not None:
            self.revision = self.pipe[0]

    def settle(self) -> bool:
        assert self.revision is not None
        return bool(os.read(self.revision, 1))

    def changed(self) -> None:
        assert self.pipe is not None
        os.write(self.pipe[1], b"x")

    def close(self) -> None:
        self.revision = None

    def may_be_asked(self) -> bool:
        return True

    def confinement(self) -> Confinement:
        return Confinement(b"bus", b"enforce")

    def query(self, mask: int, question: bytes) -> Answer:
        self.asked.append((mask, question))
        if self.fails:
            raise OSError(self.fails, os.strerror(self.fails))
        command, label, rest = question.split(b"\0", 2)
        assert command == b"label"
        assert rest[:1] == b" "
        return self.decide(mask, label, rest[1:].split(b"\0"))


class World:
    """A bus under them: `host`, `records` of (kind, text), `lines` of its log."""

    def __init__(self, labels: list[bytes]) -> None:
        self.labels = labels
        self.given: dict[Any, bytes | None] = {}
        self.records: list[tuple[int, str]] = []
        self.host: Host = None  # type: ignore[assignment]
        self.loop: BusLoop = None  # type: ignore[assignment]
        self.clients: list[RawClient] = []

    def label_of(self, creds: Any) -> bytes | None:
        if creds not in self.given:
            self.given[creds] = self.labels[min(len(self.given), len(self.labels) - 1)] or None
        return self.given[creds]

    def client(self, hello: bool = True) -> RawClient:
        client = RawClient(self.host.address)
        self.clients.append(client)
        if hello:
            client.hello()
        return client

    def do(self, what: Callable[[], Any]) -> Any:
        """Does something in the bus's own thread."""

        async def run() -> Any:
            return what()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(20)

    @property
    def lines(self) -> list[str]:
        return [text for _, text in self.host.log.lines]

    def pid(self, client: RawClient, key: str = "pid") -> str:
        """How a record tells a client's pid; nothing where the system does not tell it to us."""
        pid = self.host.bus.known(client.unique_name).creds.pid
        assert pid == (os.getpid() if ways.PEER_PIDS else None)
        return f" {key}={pid}" if ways.PEER_PIDS else ""

    def denied(self) -> list[str]:
        """The texts of the records so far, which are forgotten."""
        found = [text for _, text in self.records]
        self.records.clear()
        return found


@contextlib.contextmanager
def world(
    monkeypatch: pytest.MonkeyPatch,
    *labels: bytes,
    selinux: SELinuxFS | None = None,
    apparmor: AppArmorFS | None = None,
    type: str = "system",
    extra: str = "",
    services: dict[str, str] | None = None,
) -> Iterator[World]:
    here = World(list(labels))
    monkeypatch.setattr(selinuxfs, "find", lambda: selinux)
    monkeypatch.setattr(apparmorfs, "find", lambda: apparmor)
    monkeypatch.setattr(apparmorfs, "labels_peers", lambda: True)
    monkeypatch.setattr(mediation.Mediation, "label_of", staticmethod(here.label_of))

    def record(self: Audit, kind: int, text: str) -> None:
        here.records.append((kind, text))

    monkeypatch.setattr(Audit, "record", record)
    started = threading.Event()
    problem: list[BaseException] = []

    def serve() -> None:
        here.loop = BusLoop()
        asyncio.set_event_loop(here.loop)
        try:
            about = config.described(type, (), {}, services or {}, extra)
            here.host = Host(here.loop, about, {})
        except BaseException as error:
            problem.append(error)
            return
        finally:
            started.set()
        here.loop.run_forever()
        here.host.close()
        here.loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    started.wait(20)
    try:
        if problem:
            raise problem[0]
        yield here
    finally:
        for client in here.clients:
            client.close()
        if not problem:
            here.loop.call_soon_threadsafe(here.loop.stop)
        thread.join(20)


def call(client: RawClient, destination: str, member: bytes = b"M", **more: Any) -> int:
    return client.message(
        destination=destination.encode(), path=b"/a", interface=b"com.example.I", member=member,
        **more,
    )  # fmt: skip


def owns(client: RawClient, name: str) -> bool:
    """Whether it gets a name."""
    return client.reply_to(client.driver(b"RequestName", "su", name, 0)).body == [1]


def may_not_own(client: RawClient, name: str, module: str) -> bool:
    """Whether it is told that this module does not let it have a name."""
    refused = client.reply_to(client.driver(b"RequestName", "su", name, 0))
    told = (
        f'Connection "{client.unique_name}" is not allowed to own the service "{name}" '
        f"due to {module} policy"
    )
    denied = "org.freedesktop.DBus.Error.AccessDenied"
    return (refused.error_name, refused.body) == (denied, [told])


def next_of(client: RawClient, type: int) -> Received:
    """The next message of this type; what comes before it is dropped."""
    while True:
        message = client.receive()
        assert message is not None
        if message.type == type:
            return message
