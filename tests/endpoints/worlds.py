"""Two worlds for one script: dbus-daemon behind xdg-dbus-proxy, and an endpoint of jitney-daemon.

Invariant: what is compared says who and what, never a number that a bus made up: unique names are
replaced by what the script calls their owners. A step is over when all that it caused has arrived.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import buses
from rawclient import RawClient, Received

from jitney.compat import wire

PROXY = shutil.which("xdg-dbus-proxy")
OURS = [
    sys.executable,
    "-c",
    "import sys; from jitney.compat.command import main; sys.exit(main(sys.argv[1:]))",
    "proxy",
]
CLIENT = "C"
SERVICE = """[D-BUS Service]
Name={name}
Exec=/bin/false
"""
ACTIVATABLE = ("com.example.Svc.Starts", "com.example.Hidden.Starts")


@contextlib.contextmanager
def proxied(
    command: Sequence[str], address: str, path: Path, words: Sequence[str]
) -> Iterator[str]:
    """A socket in front of a bus that `command` serves; the address."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [*command, f"--fd={write}", address, str(path), *words], pass_fds=[write]
    )
    os.close(write)
    try:
        if os.read(read, 1) != b"x":
            raise RuntimeError(f"{command[0]} did not start")
        yield f"unix:path={path}"
    finally:
        os.close(read)
        assert process.wait(30) == 0


class World:
    """Peers by what a script calls them; the client is the one behind the proxy or endpoint."""

    def __init__(self, address: str, inside: str) -> None:
        self.address = address
        self.inside = inside
        self.peers: dict[str, RawClient] = {}
        self.labels: dict[str, str] = {}
        self.inbox: list[tuple[str, Received]] = []
        self.join(CLIENT, inside)

    def join(self, label: str, address: str | None = None) -> RawClient:
        peer = RawClient(address or self.address)
        self.labels[peer.hello()] = label
        self.peers[label] = peer
        peer.reply_to(peer.driver(b"AddMatch", "s", "type='signal'"))
        return peer

    def leave(self, label: str) -> None:
        self.peers.pop(label).close()

    def close(self) -> None:
        for peer in self.peers.values():
            peer.close()

    def collect(self, label: str) -> None:
        """Takes what this peer has got, until an answer to what it asks now."""
        peer = self.peers[label]
        last = peer.driver(b"GetId")
        while True:
            message = peer.receive()
            assert message is not None, f"{label} was thrown out"
            if message.reply_serial == last:
                return
            # When a bus looks at its directories again is its own affair.
            if message.member != "ActivatableServicesChanged":
                self.inbox.append((label, message))

    def settle(self) -> dict[str, list[Any]]:
        """What everybody has got since the last time."""
        for label in (*self.peers, *self.peers):
            self.collect(label)
        found: dict[str, list[Any]] = {label: [] for label in self.peers}
        for label, message in self.inbox:
            if label in found:
                found[label].append(self.shown(message))
        self.inbox.clear()
        return found

    def shown(self, message: Received) -> tuple[Any, ...]:
        body = self.said(message.body) if message.type != wire.ERROR else None
        if message.member == "NameOwnerChanged" and "?" in body:
            body = ["?"]
        # A proxy's own errors have no sender.
        sender = message.sender if message.type in (wire.CALL, wire.SIGNAL) else None
        return (
            message.type, self.said(sender), message.path, message.interface, message.member,
            message.error_name, body,
        )  # fmt: skip

    def said(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.said(each) for each in value]
        if isinstance(value, str) and value.startswith(":"):
            return self.labels.get(value, "?")
        return value

    def name(self, text: str) -> bytes:
        """A name in a script: @X is the unique name of whom it calls X."""
        if text.startswith("@"):
            for unique, label in self.labels.items():
                if label == text[1:]:
                    return unique.encode()
            return b":1.99999"
        return text.encode()

    # Steps: each gives what is to be the same in both worlds

    def ask(self, member: str, name: str, *more: Any, flags: int = 0) -> Any:
        """The client asks the bus about a name."""
        signature = "s" + "".join({int: "u"}[type(each)] for each in more)
        client = self.peers[CLIENT]
        serial = client.driver(
            member.encode(), signature, self.name(name).decode(), *more, flags=flags
        )
        got = self.settle()
        return self._without_process(member, got, serial)

    def _without_process(self, member: str, got: Any, serial: int) -> Any:
        if member in ("GetConnectionUnixProcessID", "GetConnectionCredentials"):
            # There it is the proxy's process that the bus knows.
            got[CLIENT] = [entry[:6] for entry in got[CLIENT]]
        return got

    def listed(self, member: str) -> Any:
        client = self.peers[CLIENT]
        reply = client.reply_to(client.driver(member.encode()))
        return reply.type, sorted({self.said(name) for name in reply.body[0]} - {"?"})

    def bus(self, interface: str | None, member: str, signature: str = "", *values: Any) -> Any:
        """Anything else that the client asks the bus; but for what it says."""
        client = self.peers[CLIENT]
        reply = client.reply_to(
            client.driver(
                member.encode(), signature, *values,
                interface=None if interface is None else interface.encode(),
            )
        )  # fmt: skip
        return reply.type, reply.error_name

    def send(
        self, who: str, kind: int, to: str | None, path: str, interface: str | None, member: str,
        flags: int = 0,
    ) -> Any:  # fmt: skip
        """A call or signal; calls are answered by whom they reach, then all have arrived."""
        if who not in self.peers:
            return None
        self.peers[who].message(
            kind, destination=None if to is None else self.name(to), path=path.encode(),
            interface=None if interface is None else interface.encode(), member=member.encode(),
            flags=flags,
        )  # fmt: skip
        return self.settle()

    def talk(self, who: str, to: str, path: str, interface: str | None, member: str) -> Any:
        """A call, and the answer of whom it reaches, who says who he is."""
        if who not in self.peers:
            return None
        self.peers[who].message(
            wire.CALL, destination=self.name(to), path=path.encode(),
            interface=None if interface is None else interface.encode(), member=member.encode(),
        )  # fmt: skip
        self.collect(who)
        for label in self.peers:
            self.collect(label)
        for label, message in list(self.inbox):
            if message.type == wire.CALL:
                assert message.sender is not None
                self.peers[label].message(
                    wire.RETURN, destination=message.sender.encode(),
                    reply_serial=message.serial, signature="s", values=(label,),
                )  # fmt: skip
        return self.settle()

    def unasked(self, who: str, to: str) -> Any:
        """A reply that nobody has asked for: only whether it arrived."""
        if who not in self.peers:
            return None
        self.peers[who].message(wire.RETURN, destination=self.name(to), reply_serial=77777)
        got = self.settle()
        return any(entry[0] == wire.RETURN for entry in got[CLIENT])

    def own(self, who: str, name: str) -> Any:
        if who not in self.peers:
            return None
        self.peers[who].driver(b"RequestName", "su", name, 4)
        return self.settle()

    def release(self, who: str, name: str) -> Any:
        if who not in self.peers:
            return None
        self.peers[who].driver(b"ReleaseName", "s", name)
        return self.settle()

    def replaced(self, who: str) -> Any:
        """One goes and another one comes in his place, without his names."""
        if who not in self.peers or who == CLIENT:
            return None
        watcher = self.peers["W"]
        old = next(unique for unique, label in self.labels.items() if label == who)
        self.leave(who)
        # All have been told when one has who hears of everything.
        heard = False
        while not heard:
            message = watcher.receive()
            assert message is not None
            heard = message.member == "NameOwnerChanged" and message.body == [old, old, ""]
        got = self.settle()
        del self.labels[old]
        self.labels[f"gone {old}"] = f"gone {who}"
        self.join(who)
        return got, self.settle()


@contextlib.contextmanager
def world(ours: bool, words: Sequence[str]) -> Iterator[World]:
    """A bus with activatable names and a client behind a proxy, or endpoint, with these words."""
    daemon = buses.jitney_command() if ours else [buses.REFERENCE or ""]
    command = OURS if ours else [PROXY or ""]
    with buses.running(daemon) as bus:
        for name in ACTIVATABLE:
            (bus.directory / "services" / f"{name}.service").write_text(SERVICE.format(name=name))
        with RawClient(bus.address) as reloader:
            reloader.hello()
            reloader.reply_to(reloader.driver(b"ReloadConfig"))
        with proxied(command, bus.address, bus.directory / "door", words) as inside:
            made = World(bus.address, inside)
            try:
                for label in ("W", "S", "T"):
                    made.join(label)
                made.settle()
                yield made
            finally:
                made.close()
