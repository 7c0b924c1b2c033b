"""The mix: what happens on the bus, drawn by a seed, and when all of it is held against the books.

Invariant: between two audits anything may be under way; at an audit nothing is, and the bus has as
many connections, names and rules as we know of, and nothing queued.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .. import proc, wire
from ..config import Config
from ..running import Running
from .client import Closed, Patient
from .ledger import Wrong
from .world import FAILING, NAMES, World

QUEUE = 1 << 20
"""Bytes of max_outgoing_bytes: slow readers meet it, others do not."""
LIMITS = {"max_outgoing_bytes": QUEUE}
LARGE = 65536
PATIENCE = 30.0
RESTING = ("connections", "names", "matches", "calls", "queued_bytes", "queued_fds", "monitors")
CROWD = 24
NOBODY = 65534


@dataclass
class Plan:
    """What a soak is to be like; times in seconds. 0: never."""

    seconds: float = 3600
    seed: int = 1
    rate: int = 1500
    audit_every: float = 10
    reload_every: float = 3
    upgrade_every: float = 0
    endpoint: bool = False
    warm_up: float = 30
    say: Callable[[str], None] = print


@dataclass
class State:
    """What the bus is like when nobody is there."""

    status: dict[str, int]
    fds: list[str]
    kilobytes: int


@dataclass
class Outcome:
    """What it did, and what the bus was like before and after."""

    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    before: State | None = None
    after: State | None = None

    def grown(self) -> str:
        """What has not returned to its start; "" if all has."""
        before, after = self.before, self.after
        assert before is not None
        assert after is not None
        found = []
        if after.status != before.status:
            found.append(f"books: {before.status} and now {after.status}")
        if after.fds != before.fds:
            found.append(f"descriptors: {before.fds} and now {after.fds}")
        if after.kilobytes > before.kilobytes * 1.05 + 2048:
            found.append(f"memory: {before.kilobytes} KiB and now {after.kilobytes}")
        return "; ".join(found)


class Soak:
    """One run against one bus."""

    def __init__(self, running: Running, plan: Plan) -> None:
        self.running = running
        self.plan = plan
        self.dice = random.Random(plan.seed)
        self.world = World(running.path, self.dice)
        self.books = self.world.books
        self.config = running.folder / "bus.conf"
        self.text = self.config.read_text()
        running.folder.chmod(0o755)
        self.reloads = 0
        self.half: list[socket.socket] = []
        self.door = ""
        self.acts: list[tuple[int, Callable[[], None]]] = [
            (500, self.talk), (120, self.by_name), (150, self.broadcast), (15, self.with_fd),
            (8, self.large), (20, self.ask_for_name), (10, self.answer_late), (6, self.come),
            (6, self.go), (2, self.come_half), (40, self.flood_slow), (1, self.listen_slowly),
            (1, self.look_on), (1, self.call_failing),
        ]  # fmt: skip
        self.weights = [weight for weight, _ in self.acts]

    def run(self) -> Outcome:
        """Warms up, takes stock, runs, takes stock. Wrong or Closed if the bus misbehaves."""
        outcome = Outcome()
        if self.plan.endpoint:
            self.open_door()
        self.run_for(min(self.plan.warm_up, self.plan.seconds / 4))
        outcome.before = self.at_rest()
        self.books.counts.clear()
        started = time.monotonic()
        self.run_for(self.plan.seconds)
        outcome.seconds = time.monotonic() - started
        outcome.after = self.at_rest()
        outcome.counts = dict(self.books.counts)
        return outcome

    def run_for(self, seconds: float) -> None:
        plan, world = self.plan, self.world
        self.populate()
        now = time.monotonic()
        end = now + seconds
        audit = now + plan.audit_every
        reload, upgrade = now + plan.reload_every, now + plan.upgrade_every
        due = 0.0
        while now < end:
            before, now = now, time.monotonic()
            due = min(due + (now - before) * plan.rate, plan.rate / 10)
            while due >= 1:
                due -= 1
                self.dice.choices(self.acts, self.weights)[0][1]()
            if plan.reload_every and now >= reload:
                reload = now + plan.reload_every
                self.reload()
            if plan.upgrade_every and now >= upgrade:
                upgrade = now + plan.upgrade_every
                os.kill(self.running.pid, signal.SIGUSR2)
                self.books.counts["upgrades asked for"] += 1
            world.turn(2)
            if now >= audit:
                self.audit()
                audit = time.monotonic() + plan.audit_every
                plan.say(f"{end - now:.0f} s left, {self.books.counts['delivered']} delivered")
        self.audit()

    # Who is there

    def populate(self) -> None:
        world = self.world
        world.watch_owners(world.join())
        for _ in range(8):
            world.join()
        for _ in range(3):
            world.subscribe(world.join())
        # As another user where that can be: what waits for them must be at nobody else's cost.
        for _ in range(2):
            world.subscribe(world.join(slow=True, uid=NOBODY if os.geteuid() == 0 else None))

    def open_door(self) -> None:
        """An endpoint by which half of those who come do so; it lets everything pass."""
        self.door = str(self.running.folder / "door")
        client = Patient(self.running.path)
        answer = client.ask(
            _driver(client, b"Add", b"ssasa{sv}", _door(self.door), b"org.jitney.Endpoints1")
        )
        client.close()
        if answer.type != wire.RETURN:
            raise Closed(f"no endpoint: {answer.error}")

    def come(self) -> None:
        if len(self.world.clients) < CROWD:
            by_door = self.door and self.dice.random() < 0.5
            client = self.world.join(path=self.door if by_door else "")
            self.books.counts["connections by an endpoint"] += bool(by_door)
            if self.dice.random() < 0.3:
                self.world.subscribe(client)

    def go(self) -> None:
        """Somebody goes, whatever is under way to him and from him."""
        usual = self.world.usual()
        if len(usual) > 8:
            self.world.leave(self.dice.choice(usual))

    def come_half(self) -> None:
        """Somebody who never gets as far as Hello, or talks nonsense."""
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.connect(self.running.path)
            lines = wire.auth_lines(with_fds=False)
            sock.send(self.dice.choice([b"", b"\0", lines[:9], lines, lines + b"nonsense" * 4]))
            self.books.counts["connections that came to nothing"] += 1
        self.half.append(sock)
        if len(self.half) > 5:
            self.half.pop(0).close()

    def look_on(self) -> None:
        """A monitor comes, and the one before it goes."""
        world = self.world
        for name in list(world.looking):
            world.looking.discard(name)
            world.leave(world.clients[name])
        client = world.join()
        world.looking.add(client.name)
        world.monitor(client)
        self.books.counts["monitors"] += 1

    # What they do

    def pair(self) -> tuple[str, str]:
        names = [client.name for client in self.world.usual()]
        return self.dice.choice(names), self.dice.choice(names)

    def talk(self) -> None:
        sender, dest = self.pair()
        kind = self.dice.choice([1, 1, 1, 2, 4])
        size = self.dice.choice([0, 10, 100, 1000])
        self.world.unicast(self.world.clients[sender], dest, kind, size, False)

    def with_fd(self) -> None:
        sender, dest = self.pair()
        size = self.dice.choice([0, 100, 20000])
        self.world.unicast(self.world.clients[sender], dest, 1, size, True)

    def large(self) -> None:
        sender, dest = self.pair()
        self.world.unicast(self.world.clients[sender], dest, self.dice.choice([1, 2]), LARGE, False)

    def by_name(self) -> None:
        sender, _ = self.pair()
        dest = self.dice.choice(NAMES)
        self.world.unicast(self.world.clients[sender], dest, 1, 20, self.dice.random() < 0.1)

    def broadcast(self) -> None:
        sender, _ = self.pair()
        self.world.broadcast(self.world.clients[sender], self.dice.choice([0, 50, 500]))

    def ask_for_name(self) -> None:
        client = self.dice.choice(self.world.usual())
        self.world.request(client, self.dice.choice(NAMES), self.dice.random() < 0.4)

    def answer_late(self) -> None:
        owed = self.world.owed
        if owed:
            client, message = owed.pop(self.dice.randrange(len(owed)))
            self.world.reply(client, message)

    def call_failing(self) -> None:
        """A call to a service that cannot be started: its caller is told."""
        sender, _ = self.pair()
        self.world.unicast(self.world.clients[sender], FAILING, 1, 0, False)

    def slow(self) -> list[str]:
        return [client.name for client in self.world.clients.values() if client.slow]

    def flood_slow(self) -> None:
        """More for somebody who hardly reads, until the bus refuses it."""
        sender, _ = self.pair()
        kind = self.dice.choice([1, 2, 4])
        dest = self.dice.choice(self.slow())
        self.world.unicast(self.world.clients[sender], dest, kind, 20000, False)

    def listen_slowly(self) -> None:
        """One of them reads a little."""
        client = self.world.clients[self.dice.choice(self.slow())]
        for message in client.receive(1):
            self.world.take(client, message)

    def reload(self) -> None:
        """Another configuration, by a signal; or none that can be read."""
        self.reloads += 1
        text = self.text
        if self.reloads % 4 == 0:
            text = "<busconfig><nonsense/></busconfig>"
        elif self.reloads % 2:
            text = text.replace("</busconfig>", '<policy user="root"/></busconfig>')
        new = self.config.with_suffix(".new")
        new.write_text(text)
        new.replace(self.config)
        os.kill(self.running.pid, signal.SIGHUP)
        self.books.counts["reloads"] += 1

    # The audit

    def audit(self) -> None:
        """Lets all come to an end, and looks whether it was the right one."""
        world, books = self.world, self.books
        for client, message in world.owed:
            world.reply(client, message)
        world.owed.clear()
        deadline = time.monotonic() + PATIENCE
        quiet = 0
        left: list[str] = []
        while quiet < 5:
            came = world.turn(20, everybody=True)
            for client, message in world.owed:
                world.reply(client, message)
            world.owed.clear()
            busy = came or world.asked or any(client.out for client in world.clients.values())
            left = [] if busy else books.unsettled(world.clients)
            quiet = 0 if busy or left or (books.lagging() and quiet < 4) else quiet + 1
            if time.monotonic() > deadline:
                if left or busy:
                    raise Wrong(f"not over after {PATIENCE} s: {left[:10]}")
                break
        self._compare()
        books.prune(world.clients)
        world.replies.clear()
        books.counts["audits"] += 1

    def _compare(self) -> None:
        world = self.world
        client = Patient(world.path)
        try:
            dropped = _dropped(client)
            for name in self.books.subscribers:
                self.books.missed(name, dropped[name])
            for name in NAMES:
                answer = client.ask(
                    _driver(client, b"GetNameOwner", b"s", wire.string(name.encode()))
                )
                owner = answer.body[4:-1].decode() if answer.type == wire.RETURN else ""
                if owner != world.owners.get(name, ""):
                    raise Wrong(f"{name} is {owner}'s, and we heard {world.owners.get(name)}")
            status = _status(client)
            expected = {"connections": len(world.clients) + 1, "queued_bytes": 0, "queued_fds": 0}
            found = {key: status[key] for key in expected}
            if found != expected or status["calls"] > 0:
                raise Wrong(f"the bus says {found}, {status['calls']} calls; not {expected}")
        finally:
            client.close()

    def at_rest(self) -> State:
        """What the bus is like without clients, after a while."""
        world = self.world
        for sock in self.half:
            sock.close()
        self.half.clear()
        world.looking.clear()
        for client in list(world.clients.values()):
            world.leave(client)
        world.owners.clear()
        self.books.prune(())
        time.sleep(3)
        client = Patient(world.path)
        status = _status(client)
        client.close()
        # After an upgrade the bus is another process than the one that was started.
        pid = status["pid"]
        # A configuration may be read just now; what is held for good is there at each look.
        looks = []
        for _ in range(10):
            time.sleep(0.15)
            looks.append(_fds(pid))
        fds = min(looks, key=len)
        return State({key: status[key] for key in RESTING}, fds, proc.memory_kb([pid], "Rss"))


def _driver(
    client: Patient, member: bytes, signature: bytes, body: bytes, at: bytes = b""
) -> bytes:
    return wire.call(
        wire.DRIVER, member, signature, body, serial=client.next_serial(), path=wire.DRIVER_PATH,
        interface=at or wire.DRIVER,
    )  # fmt: skip


def _door(path: str) -> bytes:
    """What Add is asked: a name, a path, an empty policy, and that it is not to filter but stay."""
    body = b""
    for text in (b"door", path.encode()):
        body += bytes(-len(body) % 4) + wire.string(text)
    options = b""
    for key, value in ((b"filter", 0), (b"persistent", 1)):
        options += bytes(-len(options) % 8) + wire.string(key) + b"\1b\0"
        options += bytes(-len(options) % 4) + value.to_bytes(4, "little")
    # The options begin behind their length, where 8 divides what is before them.
    body += bytes(-len(body) % 4) + bytes(4) + len(options).to_bytes(4, "little")
    return body + bytes(-len(body) % 8) + options


def _status(client: Patient) -> dict[str, int]:
    answer = client.ask(_driver(client, b"GetStatus", b"", b"", b"org.jitney.Inspect1"))
    if answer.type != wire.RETURN:
        raise Closed(f"no status: {answer.error}")
    found: dict[str, int] = json.loads(answer.body[4:-1])
    return found


def _dropped(client: Patient) -> dict[str, int]:
    """How many messages the bus has dropped for each connection, monitors among them."""
    found: dict[str, int] = {}
    cursor = ""
    while True:
        text = wire.string(cursor.encode())
        body = client.ask(_driver(client, b"PeersFrom", b"s", text, b"org.jitney.Inspect1")).body
        size = int.from_bytes(body[:4], "little")
        found |= {peer["name"]: peer["dropped"] for peer in json.loads(body[4 : 4 + size])}
        cursor = body[(4 + size + 1 + 3 & ~3) + 4 : -1].decode()
        if not cursor:
            return found


def _fds(pid: int) -> list[str]:
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")[0])
    return sorted(found)


class SoakConfig(Config):
    """Small queues, everybody may come, and a service that fails."""

    def files(self, folder: Path) -> dict[str, str]:
        text = super().files(folder)["bus.conf"]
        more = (
            f'<policy context="default"><allow user="*"/></policy>'
            f"<servicedir>{folder}</servicedir></busconfig>"
        )
        return {
            "bus.conf": text.replace("</busconfig>", more),
            "failing.service": f"[D-BUS Service]\nName={FAILING}\nExec=/bin/false\n",
        }


def config() -> Config:
    """What the bus of a soak is started with."""
    return SoakConfig(limits=LIMITS)
