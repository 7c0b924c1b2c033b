"""The clients of a soak, and what each kind of message that comes to them means for the books.

Invariant: every message that comes is known to the books or to be expected of a bus; the rest is
Wrong. A client is read from in each turn unless it is `slow`.
"""

from __future__ import annotations

import os
import random
import select
import struct

from .. import wire
from .client import Client, Message
from .ledger import REFUSED, UNKNOWN, Ledger, Wrong

INTERFACE = wire.INTERFACE.decode()
NAMES = [f"org.example.Soak.N{i}" for i in range(6)]
FAILING = "org.example.Soak.Fails"
RULE = f"type='signal',interface='{INTERFACE}',member='All'".encode()
OWNERS = b"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged'"
_ERROR = "org.freedesktop.DBus.Error."
_HEAD = struct.Struct("<QI")
_REFUSALS = {
    _ERROR + name: REFUSED for name in ("LimitsExceeded", "ServiceUnknown", "NameHasNoOwner")
}
_REFUSALS[_ERROR + "NoReply"] = UNKNOWN


class World:
    """Everybody on the bus, by unique name."""

    def __init__(self, path: str, dice: random.Random) -> None:
        self.path = path
        self.dice = dice
        self.books = Ledger()
        self.clients: dict[str, Client] = {}
        self.replies: dict[tuple[str, int], str] = {}
        self.asked: dict[tuple[str, int], str] = {}
        self.owed: list[tuple[Client, Message]] = []
        self.owners: dict[str, str] = {}
        self.watcher = ""
        self.looking: set[str] = set()  # monitors
        self.by_fd: dict[int, Client] = {}
        self.poll = select.poll()

    # Who is there

    def join(self, *, slow: bool = False, uid: int | None = None, path: str = "") -> Client:
        made = Client(path or self.path, uid)
        made.slow = slow
        self.clients[made.name] = made
        self.by_fd[made.sock.fileno()] = made
        self.poll.register(made.sock, select.POLLIN)
        self.books.counts["connections"] += 1
        return made

    def leave(self, client: Client) -> None:
        """Without a word, as a program that crashes."""
        del self.clients[client.name]
        self.poll.unregister(client.sock)
        del self.by_fd[client.sock.fileno()]
        client.close()
        self.books.gone(client.name)
        for table in (self.replies, self.asked):
            for key in [key for key in table if key[0] == client.name]:
                del table[key]
        self.owed = [entry for entry in self.owed if entry[0] is not client]

    # What is said

    def unicast(self, sender: Client, dest: str, kind: int, size: int, with_fd: bool) -> None:
        """A call (1), a call without a reply (2) or a signal (4)."""
        n = self.books.number(sender.name, dest)
        body = _HEAD.pack(n, size) + bytes(size)
        signature = b"tay"
        fds = []
        if with_fd:
            body += bytes(-len(body) % 4 + 4)
            signature += b"h"
            # One whose content tells whose it is.
            fds = [os.eventfd(n, os.EFD_NONBLOCK | os.EFD_CLOEXEC)]
            self.books.counts["descriptors"] += 1
        serial = sender.next_serial()
        fields = [
            wire.field(1, b"o", wire.PATH), wire.field(2, b"s", wire.INTERFACE),
            wire.field(3, b"s", b"One"), wire.field(6, b"s", dest.encode()),
            wire.field(8, b"g", signature),
        ]  # fmt: skip
        if fds:
            fields.append(wire.field(9, b"u", struct.pack("<I", 1)))
        data = wire.message(
            wire.SIGNAL if kind == 4 else wire.CALL, fields, body, serial, int(kind == 2)
        )
        self.books.sent(sender.name, dest, serial, kind == 1)
        sender.send(data, fds)

    def broadcast(self, sender: Client, size: int) -> None:
        n = self.books.broadcast(sender.name)
        data = bytearray(wire.signal(b"All", b"tay", _HEAD.pack(n, size) + bytes(size)))
        data[8:12] = struct.pack("<I", sender.next_serial())
        sender.send(bytes(data))

    def ask(self, client: Client, what: str, member: bytes, signature: bytes, body: bytes) -> None:
        """A call to the bus; its answer must be no error."""
        serial = client.next_serial()
        self.asked[client.name, serial] = what
        interface = wire.DRIVER
        if member == b"BecomeMonitor":
            interface += b".Monitoring"
        client.send(
            wire.call(
                wire.DRIVER, member, signature, body, serial=serial, path=wire.DRIVER_PATH,
                interface=interface,
            )
        )  # fmt: skip

    def subscribe(self, client: Client) -> None:
        self.books.subscribing(client.name, not client.slow)
        self.ask(client, "subscribe", b"AddMatch", b"s", wire.string(RULE))

    def watch_owners(self, client: Client) -> None:
        self.watcher = client.name
        self.ask(client, "", b"AddMatch", b"s", wire.string(OWNERS))

    def monitor(self, client: Client) -> None:
        """From now on it only looks on, at the broadcasts."""
        self.books.subscribing(client.name, True)
        rule = wire.string(RULE)
        body = struct.pack("<I", len(rule)) + rule
        body += bytes(-len(body) % 4 + 4)
        self.ask(client, "subscribe", b"BecomeMonitor", b"asu", body)

    def request(self, client: Client, name: str, release: bool) -> None:
        text = wire.string(name.encode())
        if release:
            self.ask(client, "", b"ReleaseName", b"s", text)
        else:
            flags = self.dice.choice([0, 1, 3, 4, 5, 7])
            body = text + bytes(-len(text) % 4) + struct.pack("<I", flags)
            self.ask(client, "", b"RequestName", b"su", body)
        self.books.counts["names asked for or given back"] += 1

    def reply(self, client: Client, call: Message) -> None:
        data, at = wire.reply(call.sender.encode())
        out = bytearray(data)
        serial = client.next_serial()
        out[8:12] = struct.pack("<I", serial)
        out[at : at + 4] = struct.pack("<I", call.serial)
        self.replies[client.name, serial] = call.sender
        client.send(bytes(out))

    # What comes

    def turn(self, timeout: int, *, everybody: bool = False) -> int:
        """Sends and reads once from whoever is ready; how many messages came."""
        for client in self.clients.values():
            if client.out:
                client.flush()
        count = 0
        for fd, _ in self.poll.poll(timeout):
            ready = self.by_fd.get(fd)
            if ready is None or (ready.slow and not everybody):
                continue
            for message in ready.receive():
                count += 1
                self.take(ready, message)
        self.books.counts["messages that came"] += count
        return count

    def take(self, client: Client, message: Message) -> None:
        if message.type in (wire.RETURN, wire.ERROR):
            self._answer(client, message)
        elif message.sender == "org.freedesktop.DBus":
            self._of_the_bus(client, message)
        elif message.member == "All":
            (n,) = struct.unpack_from("<Q", message.body)
            self.books.heard(client.name, message.sender, n)
        elif message.member == "One":
            self._one(client, message)
        else:
            raise Wrong(f"{client.name} got what nobody sent: {message}")

    def _one(self, client: Client, message: Message) -> None:
        n, size = _HEAD.unpack_from(message.body)
        rest = message.body[_HEAD.size : _HEAD.size + size]
        if len(rest) != size or any(rest):
            raise Wrong(f"{client.name} got {n} of {message.sender} with another body")
        for fd in message.fds:
            value = os.eventfd_read(fd)
            os.close(fd)
            if value != n:
                raise Wrong(f"{client.name} got the descriptor of {value} with {n}")
        self.books.arrived(client.name, message.sender, message.destination, n)
        if message.type == wire.CALL and not message.flags & wire.NO_REPLY:
            if self.dice.random() < 0.05:
                self.owed.append((client, message))  # for later, or never
            else:
                self.reply(client, message)

    def _answer(self, client: Client, message: Message) -> None:
        key = (client.name, message.reply_serial)
        what = self.asked.pop(key, None)
        if what is not None:
            if message.type == wire.ERROR:
                raise Wrong(f"the bus says {message.error} to {client.name}: {message.body!r}")
            if what == "subscribe":
                self.books.subscribed(client.name)
            return
        if message.type == wire.RETURN:
            self.books.returned(*key)
            return
        caller = self.replies.get(key)
        if caller is not None:
            if caller in self.clients:
                raise Wrong(f"{client.name} may not answer {caller}: {message.error}")
            self.books.counts["answers to who had gone"] += 1
            return
        what = _REFUSALS.get(message.error)
        if what is None and message.error.startswith(_ERROR + "Spawn."):
            what = REFUSED
        if what is None:
            raise Wrong(f"{client.name} was told {message.error}: {message.body!r}")
        self.books.failed(*key, what)
        self.books.counts["told " + message.error.rpartition(".")[2]] += 1

    def _of_the_bus(self, client: Client, message: Message) -> None:
        if message.member != "NameOwnerChanged":
            return
        name, before, after = _strings(message.body)
        known = self.owners.get(name, "")
        if before != known and (name in self.owners or name in NAMES):
            raise Wrong(f"{name} goes from {before!r} to {after!r}, and {known!r} had it")
        self.owners[name] = after
        if not after:
            del self.owners[name]
        self.books.counts["changes of owners heard"] += 1

    def usual(self) -> list[Client]:
        """Those who may talk: not slow, no monitors, not the one that watches names."""
        return [
            client
            for client in self.clients.values()
            if not client.slow and client.name != self.watcher and client.name not in self.looking
        ]


def _strings(body: bytes) -> list[str]:
    found = []
    at = 0
    while at < len(body):
        at = at + 3 & ~3
        (size,) = struct.unpack_from("<I", body, at)
        found.append(body[at + 4 : at + 4 + size].decode())
        at += 4 + size + 1
    return found
