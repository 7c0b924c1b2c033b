"""The stage for a scenario: one bus, some raw clients, and a record of all that each received.

Invariant: after every action everything that the bus had to say about it has been read and
recorded, so that two runs of a scenario on equal buses give equal records. What may differ
between runs (unique names, ids, the daemon's pid) is replaced by what it stands for.

How a client knows that it has seen everything: libdbus, below dbus-daemon, answers a
Peer.Ping that is addressed to nobody, and neither monitors nor eavesdroppers see that.
Monitors, who may not send, wait for a call of the stage's own, hidden client instead.
"""

from __future__ import annotations

import re
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

from buses import Daemon
from differential.masks import untold
from rawclient import DRIVER, DRIVER_PATH, RawClient, Received
from waiting import comes

from jitney.compat import ways

PEER = b"org.freedesktop.DBus.Peer"
MONITORING = b"org.freedesktop.DBus.Monitoring"
PROPERTIES = b"org.freedesktop.DBus.Properties"
STATS = b"org.freedesktop.DBus.Debug.Stats"
INTROSPECTABLE = b"org.freedesktop.DBus.Introspectable"

BARRIER = 0x70000000
"""Serials from here on belong to the stage and are not recorded."""

Mask = Callable[[Received], None]
_UNIQUE = re.compile(r":\d+\.\d+")
_ID = re.compile(r"\b[0-9a-f]{32}\b")


# ---- masks: what of a reply is not compared


_COUNTED = ("ActiveConnections", "IncompleteConnections", "MatchRules", "BusNames", "UniqueName")
_PEAKS = ("PeakMatchRules", "PeakBusNames")


def stats(message: Received) -> None:
    """Of Debug.Stats keep keys, types, and the numbers that do not depend on what was before.

    Keys under a name of ours (org.jitney) are additions that dbus-daemon does not have."""

    def keep(item: dict[str, tuple[str, Any]]) -> list[tuple[str, str, Any]]:
        compared = _COUNTED + (_PEAKS if "UniqueName" in item else ())
        return [
            (key, kind, value if key in compared else "...")
            for key, (kind, value) in item.items()
            if not key.startswith("org.jitney.")
        ]

    message.body = [keep(item) for item in message.body]


def is_ours(name: Any) -> bool:
    return isinstance(name, str) and name.startswith("org.jitney.")


def interfaces(message: Received) -> None:
    """Properties without the names of interfaces that are our own additions."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: plain(value) for key, value in item.items()}
        if isinstance(item, tuple):
            return tuple(plain(value) for value in item)
        return [value for value in item if not is_ours(value)] if isinstance(item, list) else item

    message.body = [plain(item) for item in message.body]


def unordered(message: Received) -> None:
    """Lists, also those in dicts, have no order."""

    def sort(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: sort(value) for key, value in sorted(item.items())}
        return sorted(item) if isinstance(item, list) else item

    message.body = [sort(item) for item in message.body]


def credentials(message: Received) -> None:
    """dbus-daemon 1.14 knows no ProcessFD; the order of the others says nothing. Without Linux's
    ways ours is not told all that it is."""
    message.close_fds()
    message.n_fds = 0
    for item in message.body:
        if isinstance(item, dict):
            item.pop("ProcessFD", None)
            if not ways.LINUX:
                item.pop("ProcessID", None)
                item.pop("UnixGroupIDs", None)
    unordered(message)


def xml(message: Received) -> None:
    """White space does not count. Interfaces under a name of ours (org.jitney) are additions that
    dbus-daemon does not have."""

    def plain(element: ElementTree.Element) -> Any:
        children = [plain(child) for child in element if not is_ours(child.get("name"))]
        return (element.tag, dict(element.attrib), children)

    message.body = [plain(ElementTree.fromstring(text)) for text in message.body]


# ---- clients


@dataclass
class Client:
    """A client on the stage. Each method sends something, then lets everybody read."""

    stage: Stage
    name: str
    raw: RawClient
    monitor: bool = False
    masks: dict[int, Mask] = field(default_factory=dict)

    @property
    def unique(self) -> bytes:
        return self.raw.unique_name.encode()

    def send(self, what: str, data: bytes, fds: Sequence[int] = ()) -> None:
        """Put bytes on the wire."""
        self.raw.send(data, fds)
        self.stage.settle(f"{self.name} {what}", self)

    def message(self, type: int, what: str = "", **given: Any) -> int:
        """Any message, see RawClient.message(); its serial."""
        serial = self.raw.message(type, **given)
        self.stage.settle(f"{self.name} {what or given.get('member') or type}", self)
        return serial

    def driver(
        self, member: str, signature: str = "", *values: Any, mask: Mask | None = None, **given: Any
    ) -> int:
        """A call to the bus; its serial."""
        serial = self.raw.driver(member.encode(), signature, *values, **given)
        if mask is not None:
            self.masks[serial] = mask
        shown = ", ".join(repr(value) for value in values)
        self.stage.settle(f"{self.name}.{member}({shown}) {given or ''}".rstrip(), self)
        return serial

    def hello(self) -> None:
        """Hello, and from then on a name in the record."""
        serial = self.raw.driver(b"Hello")
        self.stage.settle(f"{self.name} Hello", self, hello=serial)

    def become_monitor(self, *rules: str) -> None:
        """Monitor with these filters, none for everything."""
        filters = list(rules)
        if filters:
            filters.append(f"sender='{self.stage.hidden.unique_name}'")
        self.raw.driver(b"BecomeMonitor", "asu", filters, 0, interface=MONITORING)
        # Nothing makes a bus read this before what others say next; its answer tells that it has.
        select.select([self.raw.sock], [], [], 30)
        self.monitor = True
        self.stage.settle(f"{self.name} becomes a monitor {rules or ''}".rstrip())

    def close(self) -> None:
        """Close the connection and wait until the bus has noticed."""
        self.raw.close()
        self.stage.wait_gone(self.raw.unique_name)
        self.stage.settle(f"{self.name} closes")


class Stage:
    """`record` has one line for each action, and one for each thing that a client then got."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.record: list[str] = []
        self.clients: list[Client] = []
        self.names: dict[str, str] = {}
        self.barrier = BARRIER
        self.hidden = RawClient(daemon.address)
        self.names[self.hidden.hello()] = "<stage>"
        self.hidden.receive()
        self.machine_id = self._ask(b"GetMachineId", interface=PEER)
        # Whoever was here before may not have been missed yet.
        while len(self._ask(b"ListNames")) > 2:
            time.sleep(0.002)

    def client(
        self, name: str, *, hello: bool = True, fds: bool = True, uid: int | None = None
    ) -> Client:
        """A new client, on the bus unless hello=False."""
        client = Client(self, name, RawClient(self.daemon.address, fds=fds, uid=uid))
        self.clients.append(client)
        if hello:
            client.hello()
        else:
            self.settle(f"{name} connects")
        return client

    def name_of(self, client: Client, unique: str) -> None:
        client.raw.unique_name = unique
        self.names[unique] = f"<{client.name}>"

    def close(self) -> None:
        """End all clients and wait until the bus has forgotten them."""
        for client in self.clients:
            client.raw.close()
        for client in self.clients:
            if client.raw.unique_name:
                self.wait_gone(client.raw.unique_name)
        self.hidden.close()

    def wait_gone(self, unique: str) -> None:
        if not comes(lambda: not (unique and self._ask(b"NameHasOwner", "s", unique))):
            raise TimeoutError(f"the bus does not notice that {unique} is gone")

    def _ask(self, member: bytes, signature: str = "", *values: Any, **given: Any) -> Any:
        self.barrier += 1
        self.hidden.driver(member, signature, *values, serial=self.barrier, **given)
        return self.hidden.reply_to(self.barrier).body[0]

    # ---- reading and recording

    def settle(self, action: str, actor: Client | None = None, hello: int = 0) -> None:
        """Let every client read all there is, and record it under `action`. The actor is the first:
        no bus has to read from somebody before it reads from others who have written later."""
        self.record.append(self._plain(action))
        got: list[tuple[Client, list[Received | None]]] = []
        for client in sorted(self.clients, key=lambda one: one is not actor):
            if not client.monitor and not client.raw.closed:
                got.append((client, self._read(client, hello if client is actor else 0)))
        got.sort(key=lambda one: self.clients.index(one[0]))
        if any(client.monitor and not client.raw.closed for client in self.clients):
            # A call that all monitors see, after whatever else they are to see.
            self._ask(b"GetId")
            for client in self.clients:
                if client.monitor and not client.raw.closed:
                    got.append((client, self._read(client, 0)))
        for client, messages in got:
            for message in messages:
                self.record.append(f"    {client.name} <- {self._line(client, message)}")

    def _read(self, client: Client, hello: int) -> list[Received | None]:
        """Everything up to the barrier; None at the end if the bus closed the connection."""
        if not client.monitor:
            self.barrier += 1
            client.raw.message(
                destination=None, path=b"/", interface=PEER, member=b"Ping", serial=self.barrier
            )
        messages: list[Received | None] = []
        while True:
            message = client.raw.receive()
            if message is None:
                return [*messages, None]
            message.close_fds()
            if hello and message.reply_serial == hello:
                self.name_of(client, message.body[0])
            if message.serial == self.barrier and client.monitor:
                return messages
            if message.reply_serial == self.barrier and not client.monitor:
                return messages
            if message.reply_serial < BARRIER and message.serial < BARRIER:
                messages.append(message)

    def _line(self, client: Client, message: Received | None) -> str:
        """One message in words: every field that a client could tell the difference by.

        The byte order is none of them: dbus-daemon passes it on, unless some match rule has
        made it look at the arguments."""
        if message is None:
            return "connection closed"
        asked = next((c for c in self.clients if message.destination == c.raw.unique_name), client)
        mask = asked.masks.get(message.reply_serial)
        if mask is not None and not message.error_name:
            mask(message)
        from_bus = message.sender in (None, DRIVER.decode())
        fields = [
            ("type", message.type),
            ("flags", message.flags),
            # The bus counts as it likes, but must not touch the serials of others.
            ("serial", 0 if from_bus else message.serial),
            ("reply_serial", message.reply_serial),
            ("sender", message.sender),
            ("destination", message.destination),
            ("path", message.path),
            ("interface", message.interface),
            ("member", message.member),
            ("error_name", message.error_name),
            ("signature", message.signature),
            ("n_fds", message.n_fds),
            ("unknown", message.unknown),
            ("body", self._no_pid(message.body) if from_bus else message.body),
        ]
        return self._plain(" ".join(f"{key}={value!r}" for key, value in fields if value))

    def _no_pid(self, item: Any) -> Any:
        if isinstance(item, dict):
            return {key: self._no_pid(value) for key, value in item.items()}
        if isinstance(item, list | tuple):
            return type(item)(self._no_pid(part) for part in item)
        return "<pid of the bus>" if item == self.daemon.pid and item is not True else item

    def _plain(self, text: str) -> str:
        text = _UNIQUE.sub(lambda found: self.names.get(found[0], found[0]), untold(text))
        return _ID.sub(lambda found: found[0] if found[0] == self.machine_id else "<id>", text)


# ---- scenarios

Scenario = Callable[[Stage], None]


@dataclass
class Entry:
    """A scenario, and what it wants in the configuration of its bus."""

    play: Scenario
    extra: str


SCENARIOS: dict[str, Entry] = {}


def scenario(extra: str = "") -> Callable[[Scenario], Scenario]:
    """Decorator: the function is a scenario. Those with equal `extra` share a bus."""

    def register(function: Scenario) -> Scenario:
        SCENARIOS[function.__name__] = Entry(function, extra)
        return function

    return register


@contextmanager
def stage(daemon: Daemon) -> Iterator[Stage]:
    """A stage on that bus, empty again afterwards."""
    built = Stage(daemon)
    try:
        yield built
    finally:
        built.close()


def play(daemon: Daemon, name: str) -> list[str]:
    """The record of a scenario on that bus."""
    with stage(daemon) as built:
        SCENARIOS[name].play(built)
        return built.record


__all__ = [
    "BARRIER", "DRIVER", "DRIVER_PATH", "INTROSPECTABLE", "MONITORING", "PEER", "PROPERTIES",
    "SCENARIOS", "STATS", "Client", "Stage", "credentials", "play", "scenario", "stage",
    "stats", "unordered", "xml",
]  # fmt: skip
