"""Rig: a whole classic bus in this process, driven by hand: no loop, no waiting, no real time.

Invariant: nothing happens between two calls. `settle()` runs until the bus has nothing left to do
now, and `pass_time()` is the only clock. What starts services is systemd, that is, whoever claims
to be; no process is ever forked.
"""

from __future__ import annotations

import array
import os
import select
import socket
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from jitney.broker.mem import COMPILED
from jitney.broker.message import Message
from jitney.compat import hub as hub_module
from jitney.compat import sysio, wire
from jitney.compat.assembly import BusService
from jitney.compat.auth import Offer
from jitney.compat.cli import Options
from jitney.compat.config import load
from jitney.compat.config.plain import Plain, pack, unpack
from jitney.compat.errors import FAILED, DBusError
from jitney.testing.host import Lines

GUID = "0123456789abcdef0123456789abcdef"
SERVICES = ("com.example.Started", "com.example.Another")
_RULES = """
  <policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"
    eavesdrop="true"/><allow receive_sender="*" eavesdrop="true"/>
    <deny own="com.example.Forbidden"/><deny send_interface="com.example.Denied"/>
    <deny receive_interface="com.example.Unheard"/><deny send_destination="com.example.Closed"/>
  </policy><policy user="0"><allow send_interface="com.example.Denied"/></policy>
"""
_LIMITS = {
    "max_outgoing_bytes": 20000, "max_incoming_bytes": 30000, "max_message_size": 100000,
    "max_names_per_connection": 5, "max_match_rules_per_connection": 6, "reply_timeout": 60000,
    "max_replies_per_connection": 6, "max_outgoing_unix_fds": 6, "max_message_unix_fds": 3,
    "max_completed_connections": 8, "max_connections_per_user": 7, "max_pending_service_starts": 5,
    "auth_timeout": 30000, "pending_fd_timeout": 20000,
}  # fmt: skip


@cache
def _folder() -> str:
    kept = tempfile.TemporaryDirectory(prefix="jitney-fuzz-")
    _kept.append(kept)
    os.mkdir(f"{kept.name}/services")
    for name in SERVICES:
        with open(f"{kept.name}/services/{name}.service", "w") as file:
            file.write(f"[D-BUS Service]\nName={name}\nExec=/bin/false\nSystemdService={name}\n")
    return kept.name


_kept: list[Any] = []


@cache
def config(second: bool) -> Plain:
    """Two configurations, for reloads."""
    path = f"{_folder()}/{second:d}.conf"
    limits = "".join(f'<limit name="{name}">{value}</limit>' for name, value in _LIMITS.items())
    more = (
        '<policy context="mandatory"><deny send_interface="com.example.I" send_member="Other"/>'
        "</policy>"
        if second
        else ""
    )
    with open(path, "w") as file:
        file.write(
            f"<busconfig><type>session</type><listen>unix:path=/x</listen>{limits}{_RULES}{more}"
            f"<servicedir>{_folder()}/services</servicedir></busconfig>"
        )
    plain: Plain = unpack(pack(load(path)))
    return plain


class Timer:
    def __init__(self, loop: Loop, when: float, call: Callable[..., Any], args: Any) -> None:
        self.loop, self.when, self.call, self.args = loop, when, call, args

    def cancel(self) -> None:
        if self in self.loop.timers:
            self.loop.timers.remove(self)


class Loop:
    """As much of an event loop as a bus asks for."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.soon: list[tuple[Any, Any]] = []
        self.readers: dict[int, Any] = {}
        self.writers: dict[int, Any] = {}
        self.ready = select.poll()

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Any, *args: Any) -> None:
        self.soon.append((call, args))

    def call_later(self, seconds: float, call: Any, *args: Any) -> Timer:
        return self.call_at(self.now + seconds, call, *args)

    def call_at(self, when: float, call: Any, *args: Any) -> Timer:
        timer = Timer(self, when, call, args)
        self.timers.append(timer)
        return timer

    def add_reader(self, fd: int, call: Any, *args: Any) -> None:
        self.readers[fd] = call
        self._look_at(fd)

    def add_writer(self, fd: int, call: Any, *args: Any) -> None:
        self.writers[fd] = call
        self._look_at(fd)

    def remove_reader(self, fd: int) -> None:
        if self.readers.pop(fd, None) is not None:
            self._look_at(fd)

    def remove_writer(self, fd: int) -> None:
        if self.writers.pop(fd, None) is not None:
            self._look_at(fd)

    def _look_at(self, fd: int) -> None:
        events = select.POLLIN if fd in self.readers else 0
        events |= select.POLLOUT if fd in self.writers else 0
        if events:
            self.ready.register(fd, events)
        else:
            self.ready.unregister(fd)

    def turn(self) -> bool:
        """Whether there was something to do."""
        ready = self.ready.poll(0)
        for fd, _ in ready:
            call = self.readers.get(fd) or self.writers.get(fd)
            if call is not None:
                call()
        soon, self.soon = self.soon, []
        for call, args in soon:
            call(*args)
        return bool(ready or soon)


class Creds:
    """What the kernel would say of a connection of this user."""

    def __init__(self, uid: int) -> None:
        self.uid = self.gid = uid
        self.pid = None
        self.described = None

    def close(self) -> None:
        pass

    def groups(self) -> list[int]:
        return [self.gid]

    kernel_groups = groups

    def label(self) -> None:
        return None

    def pidfd(self) -> int:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


class Rig:
    """The bus. Also what a BusService takes for its daemon."""

    fd_limit = None
    metrics = ()
    guid = GUID
    places = None
    address = f"unix:path=/x,guid={GUID}"

    def __init__(self) -> None:
        self.options = Options(systemd_activation=True)
        self.log = Lines()
        self.listeners: list[Any] = []
        self.config = config(False)
        self.second = False
        self.loop = Loop()
        self.service = BusService(self, self.loop)  # type: ignore[arg-type]
        self.bus, self.hub = self.service.bus, self.service.hub
        self.bus.clock = self.loop.time
        offer = Offer(GUID, ("EXTERNAL", "ANONYMOUS"), False)
        self.listener = SimpleNamespace(nonce=b"", kind="unix", offer=offer, endpoint=None)

    def reload(self) -> None:
        self.second = not self.second
        self.config = config(self.second)
        self.service.reload(self.config)

    def reload_soon(self) -> None:
        raise DBusError(FAILED, "nobody watches here")

    def settle(self) -> None:
        """Everything that can be done now."""
        for _ in range(2000):
            if not self.loop.turn():
                return
        raise AssertionError("the bus does not come to rest")

    def pass_time(self, seconds: float) -> None:
        self.loop.now += seconds
        while due := [timer for timer in self.loop.timers if timer.when <= self.loop.now]:
            self.loop.timers.remove(due[0])
            due[0].call(*due[0].args)
        self.settle()

    def connect(self, uid: int) -> Peer:
        """A socket that was accepted just now."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        fd = theirs.detach()
        if not COMPILED:
            sysio.attach(socket.socket(fileno=fd))  # type: ignore[attr-defined]
        real = hub_module.Credentials
        hub_module.Credentials = lambda _: Creds(uid)  # type: ignore[assignment,misc]
        try:
            self.hub.admit(fd, self.listener)
        finally:
            hub_module.Credentials = real  # type: ignore[misc]
        return Peer(self, ours, uid)

    def close(self) -> None:
        self.service.close()


class Peer:
    """The other end of a connection. `got`: messages that came, as (message, descriptors)."""

    def __init__(self, rig: Rig, sock: socket.socket, uid: int) -> None:
        self.rig = rig
        self.sock = sock
        self.uid = uid
        self.serial = 0
        self.name = b""
        self.answers = b""
        self.unread = bytearray()
        self.got: list[Message] = []
        self.closed = False
        sock.setblocking(False)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> bool:
        """False if the socket does not take all of it."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return self.sock.sendmsg([data], rights) == len(data)
        except OSError:
            return False

    def greet(self, fds: bool = True, hello: bool = True) -> Peer:
        words = b"\0AUTH EXTERNAL %b\r\n" % str(self.uid).encode().hex().encode()
        words += b"NEGOTIATE_UNIX_FD\r\nBEGIN\r\n" if fds else b"BEGIN\r\n"
        self.send(words)
        self.rig.settle()
        if hello:
            self.call(b"org.freedesktop.DBus", b"Hello")
            self.rig.settle()
            self.read()
            if self.got:
                self.name = self.got[0].string_arg(0) or b""
        return self

    def call(self, destination: bytes, member: bytes, signature: str = "", *values: Any) -> int:
        self.serial += 1
        self.send(
            wire.message(
                wire.CALL, self.serial, path=b"/a", member=member, sender=None,
                destination=destination,
                interface=destination if destination == b"org.freedesktop.DBus" else b"a.b",
                signature=signature, body=wire.marshal(signature, values),
            )
        )  # fmt: skip
        return self.serial

    def read(self) -> list[Message]:
        """What has come since, whole messages of it."""
        while not self.closed:
            try:
                data, rights, _, _ = self.sock.recvmsg(65536, 4096)
            except BlockingIOError:
                break
            except OSError:
                data, rights = b"", []
            for _, _, fds in rights:
                for fd in array.array("i", fds[: len(fds) & ~3]):
                    os.close(fd)
            self.closed = not data
            self.unread += data
        if not self.unread[:1].strip(b"lB"):
            return self._messages()
        # Lines of the conversation come first.
        end = self.unread.rfind(b"\r\n") + 2 if b"\r\n" in self.unread else 0
        start = next(
            (
                i
                for i in range(end)
                if self.unread[:i].endswith(b"\r\n") and self.unread[i] in b"lB"
            ),
            end,
        )
        self.answers += self.unread[:start]
        del self.unread[:start]
        return self._messages()

    def _messages(self) -> list[Message]:
        news = []
        data = self.unread
        while len(data) >= 16:
            order: Any = "big" if data[:1] == b"B" else "little"
            fields = int.from_bytes(data[12:16], order)
            size = (16 + fields + 7 & ~7) + int.from_bytes(data[4:8], order)
            if len(data) < size:
                break
            msg = Message()
            assert msg.load(bytes(data[:size])), "the bus sends what is no message"
            assert msg.sender is not None or msg.type in (wire.RETURN, wire.ERROR)
            news.append(msg)
            del data[:size]
        self.got += news
        return news

    def close(self) -> None:
        self.sock.close()
        self.closed = True
