"""Clients that check what they get: calls, signals and descriptors with numbers in them.

Invariant: every number that is sent arrives once, where it belongs and in its turn, or
`Load.wrong` says what did not; a connection that ends is wrong as well. Plain Python on one epoll
set, so that it runs beside a broker of either build.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import time
from collections.abc import Callable

from . import wire
from .unnamed import unnamed

_SERIAL = struct.Struct("<I")


class Client:
    """One connection; whoever made it sets `hears`, which gets each message but those to itself:
    kind, reply serial, sender, member, the number in its body, and its descriptors."""

    def __init__(self, load: Load, path: str) -> None:
        self.load = load
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.setblocking(False)
        self.out = bytearray()
        self.fds_out: list[tuple[bytes, list[int]]] = []
        self.unread = b""
        self.fds: list[int] = []
        self.ready = False
        self.name = b""
        self.serial = 1
        self.hears: Callable[[int, int, bytes, bytes, bytes, list[int]], None] | None = None
        self.answers: dict[int, Callable[[int, bytes], None]] = {}
        load.add(self)
        self.write(wire.auth_lines(with_fds=True) + wire.hello())

    def next(self) -> int:
        self.serial += 1
        return self.serial

    def call(
        self,
        data: bytes,
        answered: Callable[[int, bytes], None] | None = None,
        fds: list[int] | None = None,
    ) -> int:
        """Sends a message with a serial of its own; `answered` gets the reply's kind and body."""
        serial = self.next()
        if answered is not None:
            self.answers[serial] = answered
        self.write(data[:8] + _SERIAL.pack(serial) + data[12:], fds)
        return serial

    def write(self, data: bytes, fds: list[int] | None = None) -> None:
        if fds:
            self.fds_out.append((data, fds))
        elif self.fds_out:
            self.fds_out.append((data, []))
        else:
            self.out += data
        self.flush()

    def flush(self) -> None:
        try:
            while self.out or self.fds_out:
                if self.out:
                    del self.out[: self.sock.send(self.out)]
                    continue
                data, fds = self.fds_out.pop(0)
                extra = (
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                )
                sent = self.sock.sendmsg([data], extra)
                for fd in fds:
                    os.close(fd)
                self.out += data[sent:]
        except BlockingIOError:
            if not self.out and fds:
                self.fds_out.insert(0, (data, fds))
            self.load.poll.modify(self.sock, select.EPOLLIN | select.EPOLLOUT)
            return
        except OSError as error:
            self.load.broke(self, error.strerror or "gone")

    def read(self) -> None:
        try:
            data, control, _, _ = self.sock.recvmsg(262144, 2048, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError as error:
            self.load.broke(self, error.strerror or "gone")
            return
        for _, _, payload in control:
            passed = array.array("i")
            passed.frombytes(payload[: len(payload) & ~3])
            self.fds += passed
        if not data:
            self.load.broke(self, "end of file")
            return
        data = self.unread + data
        if not self.ready:
            while data[:1] in (b"O", b"A") and b"\n" in data:
                data = data.partition(b"\n")[2]
            self.ready = data[:1] == b"l"
            if not self.ready:
                self.unread = data
                return
        pos = 0
        while len(data) - pos >= 16:
            body, _, fields = struct.unpack_from("<III", data, pos + 4)
            start = pos + 16 + (fields + 7 & ~7)
            if start + body > len(data):
                break
            self.take(data, pos, pos + 16 + fields, data[start : start + body])
            pos = start + body
        self.unread = data[pos:]

    def take(self, data: bytes, pos: int, end: int, body: bytes) -> None:
        """One message, whose fields end at `end`."""
        kind = data[pos + 1]
        at = pos + 16
        reply_serial = n_fds = 0
        sender = member = b""
        while at < end:
            at += pos - at & 7
            code, sort = data[at], data[at + 2]
            at += 4
            if sort == 103:
                at += data[at] + 2
                continue
            (number,) = _SERIAL.unpack_from(data, at)
            at += 4
            if sort == 117:
                if code == 5:
                    reply_serial = number
                elif code == 9:
                    n_fds = number
                continue
            if code == 7:
                sender = data[at : at + number]
            elif code == 3:
                member = data[at : at + number]
            at += number + 1
        fds = self.fds[:n_fds]
        del self.fds[:n_fds]
        self.load.received += 1
        if not self.name and kind == wire.RETURN:
            self.name = body[4:-1]
            return
        if reply_serial:
            answered = self.answers.pop(reply_serial, None)
            if answered is None:
                self.load.complain(f"{self.name!r} got a reply to {reply_serial} twice or unasked")
            else:
                answered(kind, body)
        elif sender == wire.DRIVER:
            if member != b"NameAcquired" and member != b"NameLost":
                self.load.complain(f"{self.name!r} heard {member!r} of the bus")
        elif self.hears is not None:
            self.hears(kind, _SERIAL.unpack_from(data, pos + 8)[0], sender, member, body, fds)
        else:
            self.load.complain(f"{self.name!r} got what was not for it")

    def reply(self, serial: int, dest: bytes, body: bytes) -> None:
        data, at = wire.reply(dest, b"uay", body)
        self.call(data[:at] + _SERIAL.pack(serial) + data[at + 4 :])


class Load:
    """All clients, and what went wrong. `longest` is how long nobody got anything, in seconds."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.wrong: list[str] = []
        self.received = 0
        self.longest = 0.0
        self.last = time.perf_counter()

    def add(self, client: Client) -> None:
        self.clients[client.sock.fileno()] = client
        self.poll.register(client.sock, select.EPOLLIN)

    def broke(self, client: Client, why: str) -> None:
        self.complain(f"{client.name!r} was disconnected: {why}")
        self.poll.unregister(client.sock)
        del self.clients[client.sock.fileno()]
        client.sock.close()

    def complain(self, text: str) -> None:
        self.wrong.append(text)

    def run(self, until: Callable[[], bool], seconds: float = 60.0) -> bool:
        """Serves them all until something is so; whether it is."""
        deadline = time.perf_counter() + seconds
        while not until():
            if time.perf_counter() > deadline:
                return False
            for fd, events in self.poll.poll(0.1, 64):
                client = self.clients.get(fd)
                if client is None:
                    continue
                if events & select.EPOLLOUT:
                    self.poll.modify(fd, select.EPOLLIN)
                    client.flush()
                if events & ~select.EPOLLOUT:
                    before = self.received
                    client.read()
                    if self.received != before:
                        now = time.perf_counter()
                        self.longest = max(self.longest, now - self.last)
                        self.last = now
        return True

    def close(self) -> None:
        for client in self.clients.values():
            client.sock.close()
        self.clients.clear()
        self.poll.close()


def numbered(number: int, size: int = 8) -> bytes:
    """A body of signature ``uay`` with this number in it."""
    return _SERIAL.pack(number) + _SERIAL.pack(size) + bytes([number & 255]) * size


def number_of(body: bytes) -> int:
    """The number in such a body; -1 if the rest of it is not as it was."""
    (number,) = _SERIAL.unpack_from(body)
    (size,) = _SERIAL.unpack_from(body, 4)
    return int(number) if body[8:] == bytes([number & 255]) * size else -1


class Caller:
    """One calls another, one call at a time; every `with_fd`th carries a descriptor of a file that
    has the number in it as well."""

    SIZES = (8, 8, 8, 400, 8, 8, 3000, 8, 8, 40000)

    def __init__(self, load: Load, caller: Client, server: Client, with_fds: bool) -> None:
        self.load = load
        self.caller = caller
        self.server = server
        self.with_fds = with_fds
        self.number = 0
        self.stopped = False
        self.idle = False
        server.hears = self.called
        self.go()

    def go(self) -> None:
        if self.stopped:
            self.idle = True
            return
        self.number += 1
        body = numbered(self.number, self.SIZES[self.number % len(self.SIZES)])
        fds = []
        if self.with_fds:
            file = unnamed()
            os.write(file, b"%d" % self.number)
            fds = [file]
        data = wire.call(self.server.name, b"Count", b"uay", body, n_fds=len(fds))
        self.caller.call(data, self.answered, fds)

    def called(
        self, kind: int, serial: int, sender: bytes, member: bytes, body: bytes, fds: list[int]
    ) -> None:
        number = number_of(body)
        if number != self.number or sender != self.caller.name or kind != wire.CALL:
            self.load.complain(f"call {self.number} came as {number} from {sender!r}")
        for fd in fds:
            if os.pread(fd, 20, 0) != b"%d" % number:
                self.load.complain(f"call {number} came with another's descriptor")
            os.close(fd)
        if len(fds) != self.with_fds:
            self.load.complain(f"call {number} came with {len(fds)} descriptors")
        self.server.reply(serial, sender, numbered(number))

    def answered(self, kind: int, body: bytes) -> None:
        if kind != wire.RETURN or number_of(body) != self.number:
            self.load.complain(f"call {self.number} was answered by {kind}: {body[:200]!r}")
        self.go()


class Broadcaster:
    """One sends signals to many, itself among them, and the next few when it has heard its own."""

    AHEAD = 4

    def __init__(self, load: Load, sender: Client, receivers: list[Client], word: bytes) -> None:
        self.load = load
        self.sender = sender
        self.word = word
        self.sent = 0
        self.stopped = False
        self.heard = {client.name: 0 for client in (sender, *receivers)}
        rule = wire.add_match(b"member='%s'" % word, 1)
        for client in (sender, *receivers):
            client.call(rule, lambda kind, body: None)
            client.hears = self.hear(client.name)

    def go(self) -> None:
        while not self.stopped and self.sent < self.heard[self.sender.name] + self.AHEAD:
            self.sent += 1
            self.sender.call(wire.signal(self.word, b"uay", numbered(self.sent)))

    def hear(self, name: bytes) -> Callable[[int, int, bytes, bytes, bytes, list[int]], None]:
        def heard(
            kind: int, serial: int, sender: bytes, member: bytes, body: bytes, fds: list[int]
        ) -> None:
            self.heard[name] += 1
            if number_of(body) != self.heard[name] or sender != self.sender.name:
                self.load.complain(
                    f"{name!r} heard signal {number_of(body)} in place of {self.heard[name]}"
                )
                self.heard[name] = number_of(body)
            if name == self.sender.name:
                self.go()

        return heard

    def idle(self) -> bool:
        return all(count == self.sent for count in self.heard.values())
