"""Activation as a whole: a bus of fakes, real messages, real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import until_async

from jitney.broker.connection import ACTIVE, CLOSED
from jitney.broker.fds import FdSet
from jitney.broker.limits import Limits
from jitney.broker.message import Message
from jitney.compat import wire
from jitney.compat.activation import Activator, Service, Settings, activator, directory_watch
from jitney.compat.activation.pending import Book, Pending, Waiting
from jitney.compat.errors import DBusError

PREFIX = "org.freedesktop.DBus.Error."
SYSTEMD = b"org.freedesktop.systemd1"
A = b"org.example.A"


@dataclass(eq=False)
class Conn:
    id: int
    state: int = ACTIVE
    user: str = "somebody"

    @property
    def unique_name(self) -> bytes:
        return b":1.%d" % self.id


@dataclass
class Bus:
    """Owners of names, and everything that went out through the bus, in order."""

    limits: Limits = field(default_factory=Limits)
    owners: dict[bytes, Conn] = field(default_factory=dict)
    sent: list[tuple[str, Conn, int]] = field(default_factory=list)
    emitted: list[tuple[Conn, Message]] = field(default_factory=list)
    monitored: list[Message] = field(default_factory=list)
    activators: dict[bytes, object] = field(default_factory=dict)

    @property
    def names(self) -> Bus:
        return self

    def set_activator(self, name: bytes, activator: object) -> None:
        """The registry's part: whom a name's messages go to while nobody owns it."""
        if activator is None:
            del self.activators[name]
        else:
            self.activators[name] = activator

    def lookup(self, name: bytes) -> Conn | None:
        return self.owners.get(name)

    def deliver_kept(self, conn: Conn, msg: Message, owner: Conn) -> None:
        assert conn.state == ACTIVE
        self.sent.append(("delivered", conn, msg.serial))

    def emit(self, dest: Conn, data: bytes, fds: None = None, captured: bool = False) -> None:
        if not captured:
            self.show(data)
        msg = Message()
        assert msg.load(data)
        self.emitted.append((dest, msg))

    def show(self, data: bytes) -> None:
        msg = Message()
        assert msg.load(data)
        self.monitored.append(msg)


class Context:
    """Answers go into the bus's list, too, so that their order shows."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.lines: list[tuple[str, str]] = []
        self.errors: list[DBusError] = []
        self.forbidden: set[bytes] = set()
        self.asked: list[Service] = []
        self.serial = 0
        self.n_changed = 0

    def log(self, severity: str, text: str, event: str = "", **about: Any) -> None:
        self.lines.append((severity, text))

    def describe(self, conn: Conn) -> str:
        return f"uid={conn.id}"

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial

    def check_activate(self, conn: Conn, msg: Message, service: Service) -> None:
        self.asked.append(service)
        if service.name in self.forbidden:
            raise DBusError(PREFIX + "AccessDenied", "no")

    def reply(self, conn: Conn, msg: Message, signature: str, values: tuple[Any, ...]) -> None:
        assert signature == "u"
        self.bus.sent.append((f"answered {values[0]}", conn, msg.serial))

    def refused(self, conn: Conn, msg: Message, error: DBusError) -> None:
        self.errors.append(error.with_traceback(None))  # which would keep the message alive
        self.bus.sent.append((error.name.removeprefix(PREFIX), conn, msg.serial))

    def services_changed(self) -> None:
        self.n_changed += 1


@dataclass(frozen=True)
class Place:
    path: str
    strict: bool = False
    watched: bool = True


def call(name: bytes = A, serial: int = 1, body: str = "") -> Message:
    """A method call; the caller's buffer is its own business, so only copies of it may be kept."""
    msg = Message()
    data = wire.message(
        wire.CALL, serial, path=b"/", member=b"M", destination=name, sender=None,
        signature="s", body=wire.marshal("s", [body]),
    )  # fmt: skip
    assert msg.load(data)
    return msg


class World:
    def __init__(self, directory: Path, settings: Settings) -> None:
        self.directory = directory
        self.bus = Bus()
        self.context = Context(self.bus)
        self.settings = settings
        self.places = [Place(str(directory))]
        self.activator = Activator(
            self.bus,
            self.context,
            asyncio.get_running_loop(),
            settings,
            self.places,
            {b"PATH": os.environb[b"PATH"]},
        )

    def service(self, exec: str, name: bytes = A, more: str = "") -> Path:
        path = self.directory / f"{name.decode()}.service"
        # Replaced as a whole, as a package manager would.
        fresh = path.with_suffix(".new")
        fresh.write_text(f"[D-BUS Service]\nName={name.decode()}\nExec={exec}\n{more}\n")
        return fresh.rename(path)

    def activate(self, conn: Conn, msg: Message, name: bytes) -> bool:
        """As the front asks; False: the sender is to be told that there is no such service."""
        try:
            return self.activator.activate(conn, msg, name)
        except DBusError as error:
            self.context.refused(conn, msg, error)
            return True

    def own(self, name: bytes = A, conn: Conn | None = None) -> Conn:
        conn = conn or Conn(1000)
        self.bus.owners[name] = conn
        self.activator.name_owned(name, conn)
        return conn

    async def answered(self, count: int = 1) -> None:
        await until_async(lambda: len(self.bus.sent) >= count)

    def outcome(self) -> tuple[list[str], str]:
        """Kinds of all answers, and the text of the only error among them."""
        texts = {error.text for error in self.context.errors}
        assert len(texts) == 1
        return [kind for kind, _, _ in self.bus.sent], texts.pop()

    @property
    def idle(self) -> bool:
        book = self.activator.book
        return not (book.names or book.callers or book.total.messages or book.total.n_bytes)


class MakeWorld:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.made: list[World] = []

    def __call__(
        self, helper: str | None = None, systemd: bool = False, bus_type: str = "session"
    ) -> World:
        settings = Settings("unix:path=/a,guid=1", bus_type, helper, systemd)
        self.made.append(World(self.directory, settings))
        return self.made[-1]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[MakeWorld]:
    make = MakeWorld(tmp_path)
    yield make
    for world in make.made:
        children = list(world.activator.spawner.children.values())
        for child in children:
            child.kill()
        await until_async(lambda gone=children: not any(child.running for child in gone))
        world.activator.close()


@pytest.fixture
async def world(make: MakeWorld) -> World:
    return make()


HANG = "/bin/sleep 1000"


# ---- it works


async def test_messages_wait_and_go_on_in_order(world: World) -> None:
    world.service(HANG)
    one, two = Conn(1), Conn(2)
    msg = call(serial=7)
    assert world.activate(one, msg, A)
    msg.load(b"")  # the buffer is used for something else
    world.activator.start_service(two, call(serial=8), A)
    assert world.activate(two, call(serial=9), A)
    assert world.activate(one, call(serial=10), A)
    assert len(world.activator.spawner.children) == 1
    assert world.bus.sent == []
    world.own()
    # Answers come with the name, kept messages after it.
    assert world.bus.sent == [
        ("answered 1", two, 8),
        ("delivered", one, 7),
        ("delivered", two, 9),
        ("delivered", one, 10),
    ]
    assert world.idle
    assert world.context.lines == [
        ("info", "Activating service name='org.example.A' requested by ':1.1' (uid=1)"),
        ("info", "Successfully activated service 'org.example.A'"),
    ]


async def test_the_process_is_told_where_the_bus_is(world: World, tmp_path: Path) -> None:
    world.activator.update_environment({"MORE": "é", "=": "nothing"})
    world.service(f"/bin/sh -c 'env >{tmp_path}/env.new; mv {tmp_path}/env.new {tmp_path}/env'")
    world.activate(Conn(1), call(), A)
    await until_async((tmp_path / "env").exists)
    lines = (tmp_path / "env").read_text().splitlines()
    assert {
        "MORE=é",
        "DBUS_STARTER_ADDRESS=unix:path=/a,guid=1",
        "DBUS_STARTER_BUS_TYPE=session",
        "DBUS_SESSION_BUS_ADDRESS=unix:path=/a,guid=1",
    } <= set(lines)
    assert "DBUS_STARTER_ADDRESS" not in world.activator.environment


async def test_unknown_service(world: World) -> None:
    assert not world.activate(Conn(1), call(), A)
    with pytest.raises(DBusError) as caught:
        world.activator.start_service(Conn(1), call(), A)
    assert caught.value.name == PREFIX + "ServiceUnknown"
    assert caught.value.text == "The name org.example.A was not provided by any .service files"
    assert world.bus.sent == []
    assert world.idle


async def test_already_running(world: World) -> None:
    # Without a file even a running service is unknown, as for dbus-daemon.
    world.bus.owners[A] = Conn(5)
    with pytest.raises(DBusError):
        world.activator.start_service(Conn(1), call(), A)
    world.service(HANG)
    conn = Conn(1)
    world.activator.start_service(conn, call(serial=3), A)
    assert world.bus.sent == [("answered 2", conn, 3)]
    assert world.idle
    assert not world.activator.spawner.children


async def test_policy_is_asked_first(world: World) -> None:
    world.service(HANG)
    world.context.forbidden.add(A)
    assert world.activate(Conn(1), call(), A)
    assert [kind for kind, _, _ in world.bus.sent] == ["AccessDenied"]
    assert world.idle
    assert not world.activator.spawner.children
    # StartServiceByName is a call to the bus, which policy has judged already.
    world.activator.start_service(Conn(1), call(), A)
    assert len(world.context.asked) == 1
    assert len(world.activator.spawner.children) == 1


async def test_policy_is_asked_for_each_message(world: World) -> None:
    world.service(HANG)
    world.activate(Conn(1), call(), A)
    world.context.forbidden.add(A)
    world.activate(Conn(2), call(), A)
    assert [kind for kind, _, _ in world.bus.sent] == ["AccessDenied"]
    assert world.activator.book.total.messages == 1


async def test_forking_service(world: World) -> None:
    """A process that ends well may have left a daemon behind: its name is waited for."""
    world.service("/bin/true")
    world.activate(Conn(1), call(), A)
    await until_async(lambda: not world.activator.spawner.children)
    assert list(world.activator.book.names) == [A]
    world.own()
    assert [kind for kind, _, _ in world.bus.sent] == ["delivered"]
    assert world.idle


async def test_end_after_success_is_nobodys_business(world: World) -> None:
    world.service(HANG)
    world.activate(Conn(1), call(), A)
    world.own()
    (child,) = world.activator.spawner.children.values()
    child.kill()
    await until_async(lambda: not world.activator.spawner.children)
    assert [kind for kind, _, _ in world.bus.sent] == ["delivered"]
    assert world.context.lines[-1][1] == "Successfully activated service 'org.example.A'"


async def test_next_start_is_a_new_one(world: World) -> None:
    world.service("/bin/false")
    world.activate(Conn(1), call(serial=1), A)
    await world.answered()
    world.service(HANG)
    world.activate(Conn(1), call(serial=2), A)
    world.own()
    assert [kind for kind, _, _ in world.bus.sent] == ["Spawn.ChildExited", "delivered"]


async def test_delivery_may_start_something_else(world: World) -> None:
    world.service(HANG)
    world.service(HANG, b"org.example.B")
    conn = Conn(1)

    def deliver(sender: Conn, msg: Message, owner: Conn) -> None:
        assert world.activate(conn, call(b"org.example.B", serial=5), b"org.example.B")

    world.bus.deliver_kept = deliver  # type: ignore[method-assign]
    world.activate(conn, call(), A)
    world.own()
    assert list(world.activator.book.names) == [b"org.example.B"]


# ---- it does not


@pytest.mark.parametrize(
    ("exec", "kind", "text"),
    [
        ("/bin/false", "Spawn.ChildExited", "Process org.example.A exited with status 1"),
        (
            '/bin/sh -c "kill -9 \\\\$\\\\$"',
            "Spawn.ChildSignaled",
            "Process org.example.A received signal 9",
        ),
        (
            "/nonexistent",
            "Spawn.ExecFailed",
            "Failed to execute program org.example.A: No such file or directory",
        ),
        ("", "Spawn.ExecFailed",
         "Failed to execute program org.example.A: No such file or directory"),
    ],
)  # fmt: skip
async def test_failure_is_told_to_all(world: World, exec: str, kind: str, text: str) -> None:
    world.service(exec)
    world.activate(Conn(1), call(serial=1), A)
    world.activator.start_service(Conn(2), call(serial=2), A)
    await world.answered(2)
    assert world.outcome() == ([kind, kind], text)
    assert [serial for _, _, serial in world.bus.sent] == [1, 2]
    assert world.idle
    assert world.context.lines[-1] == (
        "info",
        f"Activated service 'org.example.A' failed: {text}",
    )


async def test_bad_command_line(world: World) -> None:
    world.service("/bin/a 'b")
    assert world.activate(Conn(1), call(), A)
    assert world.outcome() == (["InvalidArgs"], "Unclosed quotes in command line")
    with pytest.raises(DBusError):
        world.activator.start_service(Conn(1), call(), A)
    assert world.idle


async def test_no_process(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(11, "no")

    monkeypatch.setattr(os, "fork", fork)
    world.service(HANG)
    assert world.activate(Conn(1), call(), A)
    text = "Failed to fork (Resource temporarily unavailable)"
    assert world.outcome() == (["Spawn.ForkFailed"], text)
    assert world.context.lines[-1] == (
        "info",
        f"Failed to activate service org.example.A: {text}",
    )
    assert world.idle


async def test_hanging_service_is_killed(world: World) -> None:
    world.bus.limits.service_start_timeout = 30
    world.service(HANG)
    world.activate(Conn(1), call(serial=1), A)
    world.activator.start_service(Conn(2), call(serial=2), A)
    (child,) = world.activator.spawner.children.values()
    await world.answered(2)
    text = "Failed to activate service 'org.example.A': timed out (service_start_timeout=30ms)"
    assert world.outcome() == (["TimedOut", "TimedOut"], text)
    assert world.context.lines[-1] == ("warning", text)
    assert world.idle
    await until_async(lambda: not world.activator.spawner.children)
    assert child.status == signal.SIGKILL
    assert len(world.bus.sent) == 2


async def test_service_with_another_name(world: World) -> None:
    """It runs and owns names, but none that was asked for."""
    world.bus.limits.service_start_timeout = 30
    world.service(HANG)
    world.activate(Conn(1), call(), A)
    world.own(b"org.example.Other")
    await world.answered()
    assert [kind for kind, _, _ in world.bus.sent] == ["TimedOut"]


async def test_same_program_fails_for_all_its_names(world: World) -> None:
    world.service("/bin/false")
    world.service("/bin/false", b"org.example.B")
    world.service(HANG, b"org.example.C")
    for name in (A, b"org.example.B", b"org.example.C"):
        world.activate(Conn(1), call(name), name)
    await world.answered(2)
    assert [kind for kind, _, _ in world.bus.sent] == ["Spawn.ChildExited"] * 2
    assert list(world.activator.book.names) == [b"org.example.C"]


async def test_file_comes_changes_and_goes(world: World) -> None:
    assert not world.activate(Conn(1), call(), A)
    path = world.service("/bin/false")
    assert world.activate(Conn(1), call(serial=1), A)
    # What was started stays started.
    path.unlink()
    assert not world.activate(Conn(1), call(serial=2), A)
    await world.answered()
    world.service('/bin/sh -c "exit 9"')
    assert world.activate(Conn(1), call(serial=3), A)
    await world.answered(2)
    assert [error.text for error in world.context.errors] == [
        "Process org.example.A exited with status 1",
        "Process org.example.A exited with status 9",
    ]


# ---- bounds, and callers that go away


async def test_a_thousand_callers(world: World) -> None:
    world.bus.limits.max_pending_service_starts = 1000
    world.service(HANG)
    conns = [Conn(number) for number in range(1000)]
    for conn in conns:
        assert world.activate(conn, call(serial=conn.id + 1, body="x" * 100), A)
    assert len(world.activator.spawner.children) == 1
    late = Conn(1001)
    assert world.activate(late, call(serial=5), A)
    assert world.outcome() == (
        ["LimitsExceeded"],
        (
            "The maximum number of pending activations has been reached, activation of "
            "org.example.A failed (max_pending_service_starts=1000)"
        ),
    )
    with pytest.raises(DBusError, match="max_pending_service_starts=1000"):
        world.activator.start_service(late, call(b"org.example.B"), b"org.example.B")
    # Another user, who has none of them, still gets in; and leaves room for the next.
    other = [Conn(2000 + number, user="another") for number in range(251)]
    for conn in other[:250]:
        assert world.activate(conn, call(serial=conn.id, body="x"), A)
    assert len(world.bus.sent) == 1
    assert world.activate(other[250], call(serial=1), A)
    assert world.outcome()[0] == ["LimitsExceeded"] * 2
    third = Conn(3000, user="a third")
    assert world.activate(third, call(serial=1), A)
    assert len(world.bus.sent) == 2
    for conn in [*other, third]:
        world.activator.connection_gone(conn)
    book = world.activator.book
    assert book.total.messages == 1000
    assert book.total.n_bytes == book.names[A].held.n_bytes > 100_000
    world.bus.sent.clear()
    world.own()
    assert world.bus.sent == [("delivered", conn, conn.id + 1) for conn in conns]
    assert world.idle


async def test_bytes_are_bounded(world: World) -> None:
    world.bus.limits.max_incoming_bytes = 5000
    world.service(HANG)
    greedy, modest = Conn(1), Conn(2)
    for serial in range(1, 5):
        world.activate(greedy, call(serial=serial, body="x" * 2000), A)
    world.activate(modest, call(serial=1, body="x" * 2000), A)
    kinds, text = world.outcome()
    assert kinds == ["LimitsExceeded"]
    assert "max_incoming_bytes=5000" in text
    assert world.bus.sent[0][1:] == (greedy, 4)
    assert world.activator.book.held_of(greedy).messages == 3
    world.own()
    world.activate(greedy, call(serial=9), A)


async def test_descriptors_are_bounded_and_closed(world: World) -> None:
    world.bus.limits.max_incoming_unix_fds = 2
    world.service("/bin/false")
    conn = Conn(1)
    ends = []
    for serial in range(1, 4):
        reader, writer = os.pipe()
        ends.append(reader)
        msg = call(serial=serial)
        msg.fds = FdSet([writer])
        world.activate(conn, msg, A)
        del msg
    assert world.bus.sent == [("LimitsExceeded", conn, 3)]
    assert os.read(ends[2], 1) == b""  # closed with the refused message
    os.set_blocking(ends[0], False)
    with pytest.raises(BlockingIOError):
        os.read(ends[0], 1)
    assert world.activator.book.names[A].held.n_fds == 2
    await world.answered(3)
    for end in ends:
        assert os.read(end, 1) == b""
        os.close(end)


async def test_descriptors_of_a_user_are_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many connections it has; another user still has room."""
    monkeypatch.setattr(activator, "KEPT_FDS", 1)
    world.service(HANG)
    conns = [Conn(number) for number in range(1, 7)] + [Conn(7, user="else")]
    for conn in conns:
        reader, writer = os.pipe()
        os.close(reader)
        msg = call(serial=conn.id)
        msg.fds = FdSet([writer])
        world.activate(conn, msg, A)
    assert world.bus.sent == [("LimitsExceeded", conn, conn.id) for conn in conns[4:6]]
    assert world.activator.book.total.n_fds == 5
    # What has no descriptors still may wait.
    world.activate(conns[0], call(serial=9), A)
    assert len(world.bus.sent) == 2


async def test_caller_goes_away(world: World) -> None:
    world.service(HANG)
    gone, there = Conn(1), Conn(2)
    world.activate(gone, call(serial=1), A)
    world.activator.start_service(gone, call(serial=2), A)
    world.activate(there, call(serial=3), A)
    gone.state = CLOSED
    world.activator.connection_gone(gone)
    world.activator.connection_gone(Conn(77))
    assert world.activator.book.total.messages == 1
    world.own()
    assert world.bus.sent == [("delivered", there, 3)]
    assert world.idle


async def test_all_callers_go_away(world: World) -> None:
    """The service is still on its way; the next message does not start it twice."""
    world.service(HANG)
    gone, there = Conn(1), Conn(2)
    world.activate(gone, call(), A)
    world.activator.connection_gone(gone)
    world.activate(there, call(serial=3), A)
    assert len(world.activator.spawner.children) == 1
    world.own()
    assert world.bus.sent == [("delivered", there, 3)]


async def test_caller_that_became_a_monitor_gets_nothing(world: World) -> None:
    world.bus.limits.service_start_timeout = 20
    world.service(HANG)
    conn = Conn(1)
    world.activate(conn, call(), A)
    world.activator.start_service(conn, call(), A)
    conn.state = CLOSED
    await until_async(lambda: world.idle)
    assert world.bus.sent == []


@given(st.data())
def test_the_book_adds_up(data: st.DataObject) -> None:
    """Whatever is added, taken and dropped, all sums are those of the entries left."""
    book = Book()
    conns = [Conn(1), Conn(2), Conn(3)]
    for _ in range(data.draw(st.integers(0, 20))):
        action = data.draw(st.sampled_from(["add", "add", "add", "own", "take", "drop"]))
        name = data.draw(st.sampled_from([b"a.a", b"b.b"]))
        pending = book.names.get(name) or Pending(name)
        if action == "add":
            body = data.draw(st.sampled_from(["", "x" * 50]))
            book.add(pending, Waiting(data.draw(st.sampled_from(conns)), call(name, body=body)))
        elif action == "own":
            book.add(pending, Waiting(None, wire=b"12345"))
        elif action == "take":
            before = list(pending.entries)
            assert book.take(pending) == before
        else:
            conn = data.draw(st.sampled_from(conns))
            count = book.held_of(conn).messages
            assert book.drop_caller(conn) == count
        entries = [entry for pending in book.names.values() for entry in pending.entries]
        assert book.total.messages == len(entries)
        assert book.total.n_bytes == sum(entry.n_bytes for entry in entries)
        for pending in book.names.values():
            assert pending.held.n_bytes == sum(entry.n_bytes for entry in pending.entries)
        for conn in conns:
            mine = [entry for entry in entries if entry.conn is conn]
            assert book.held_of(conn).messages == len(mine)
            assert book.held_of(conn).n_bytes == sum(entry.n_bytes for entry in mine)
            assert (conn.id in book.callers) == bool(mine)


# ---- reload


async def test_reload(world: World, tmp_path: Path) -> None:
    world.service(HANG)
    conn = Conn(1)
    world.activator.start_service(conn, call(), A)
    (tmp_path / "more").mkdir()
    file = "[D-BUS Service]\nName=org.example.B\nExec=/bin/b\n"
    (tmp_path / "more" / "b.service").write_text(file)
    places = [Place(str(tmp_path / "more"), watched=False), *world.places]
    assert world.activator.watch_paths() == [str(tmp_path)]
    assert world.activator.reload(world.settings, places)
    assert world.activator.watch_paths() == [str(tmp_path)]
    assert sorted(world.activator.activatable_names()) == [A, b"org.example.B"]
    # The signal goes out for each reload, as dbus-daemon sends it.
    assert not world.activator.reload(world.settings, places)
    assert world.context.n_changed == 2
    world.own()
    assert world.bus.sent == [("answered 1", conn, 1)]


async def test_watch_outlives_reload(world: World, tmp_path: Path) -> None:
    watch = directory_watch(asyncio.get_running_loop(), lambda: None, world.context.log)
    watch.watch(world.activator.watch_paths())
    world.activator.use_watch(watch)
    assert world.activator.services.watch is watch
    world.activator.reload(world.settings, world.places)
    assert world.activator.services.watch is watch
    watch.close()


async def test_close_forgets_silently(world: World) -> None:
    world.bus.limits.service_start_timeout = 10
    world.service(HANG)
    world.activate(Conn(1), call(), A)
    (child,) = world.activator.spawner.children.values()
    world.activator.close()
    assert world.idle
    await asyncio.sleep(0.05)
    assert world.bus.sent == []
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)


# ---- system bus with a helper


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (1, "Spawn.ChildExited", "Launch helper exited with unknown return code 1"),
        (6, "Spawn.ServiceNotFound", "Bus name not found in system service directory"),
        (9, "Spawn.ExecFailed", "Cannot launch daemon, file not found or permissions invalid"),
    ],
)
async def test_helper_fails(
    make: MakeWorld, tmp_path: Path, code: int, kind: str, text: str
) -> None:
    script = tmp_path / "helper"
    script.write_text(f'[ "$*" = org.example.A ] && exit {code}\n')
    world = make(helper=f"/bin/sh {script}", bus_type="system")
    world.service("/nonexistent", more="User=root")
    world.activate(Conn(1), call(), A)
    assert world.context.lines == [
        (
            "info",
            (
                "Activating service name='org.example.A' requested by ':1.1' (uid=1) "
                "(using servicehelper)"
            ),
        )
    ]
    await world.answered()
    assert world.outcome() == ([kind], text)


async def test_helper_that_is_not_there(make: MakeWorld) -> None:
    world = make(helper="/nonexistent", bus_type="system")
    world.service(HANG, more="User=root")
    world.activate(Conn(1), call(), A)
    await world.answered()
    assert world.outcome() == (
        ["Spawn.ExecFailed"],
        "Failed to execute program org.example.A: No such file or directory",
    )


async def test_helper_needs_a_user(make: MakeWorld) -> None:
    world = make(helper="/bin/true", bus_type="system")
    world.service(HANG)
    world.activate(Conn(1), call(), A)
    assert world.outcome() == (
        ["Spawn.FileInvalid"],
        "Cannot do system-bus activation with no user\n",
    )
    with pytest.raises(DBusError) as caught:
        world.activator.update_environment({"A": "b"})
    assert caught.value.name == PREFIX + "AccessDenied"
    assert caught.value.text == "Cannot change activation environment on a system bus."
    assert b"A" not in world.activator.environment


# ---- systemd

UNIT = "SystemdService=a.service"


async def test_systemd_is_asked(make: MakeWorld) -> None:
    world = make(systemd=True)
    world.service("/bin/false", more=UNIT)
    systemd = world.own(SYSTEMD)
    world.activate(Conn(1), call(serial=4), A)
    world.activate(Conn(1), call(serial=5), A)
    ((dest, msg),) = world.bus.emitted
    assert dest is systemd
    assert (msg.type, msg.path, msg.interface, msg.member, msg.destination, msg.sender) == (
        wire.SIGNAL,
        b"/org/freedesktop/DBus",
        b"org.freedesktop.systemd1.Activator",
        b"ActivationRequest",
        SYSTEMD,
        b"org.freedesktop.DBus",
    )
    assert wire.unmarshal(msg.signature, msg.body(), False) == ["a.service"]
    assert not world.activator.spawner.children
    assert world.context.lines == [
        (
            "info",
            (
                "Activating via systemd: service name='org.example.A' unit='a.service' "
                "requested by ':1.1' (uid=1)"
            ),
        )
    ]
    world.own()
    assert [serial for _, _, serial in world.bus.sent] == [4, 5]


async def test_systemd_comes_later(make: MakeWorld) -> None:
    world = make(systemd=True)
    world.service("/bin/false", more=UNIT)
    world.activate(Conn(1), call(), A)
    world.activate(Conn(2), call(SYSTEMD, serial=6), SYSTEMD)
    assert sorted(world.activator.book.names) == [A, SYSTEMD]
    # Monitors see it at once, and only now.
    assert [msg.member for msg in world.bus.monitored] == [b"ActivationRequest"]
    assert world.context.lines == [
        (
            "info",
            (
                "Activating systemd to hand-off: service name='org.example.A' unit='a.service' "
                "requested by ':1.1' (uid=1)"
            ),
        )
    ]
    systemd = world.own(SYSTEMD)
    assert [(dest, msg.member) for dest, msg in world.bus.emitted] == [
        (systemd, b"ActivationRequest")
    ]
    assert [(kind, serial) for kind, _, serial in world.bus.sent] == [("delivered", 6)]
    assert len(world.bus.monitored) == 1
    assert list(world.activator.book.names) == [A]


async def test_systemd_never_comes(make: MakeWorld) -> None:
    world = make(systemd=True)
    world.bus.limits.service_start_timeout = 20
    world.service("/bin/false", more=UNIT)
    world.activate(Conn(1), call(), A)
    await until_async(lambda: world.idle)
    assert [kind for kind, _, _ in world.bus.sent] == ["TimedOut"]
    assert world.bus.emitted == []


async def test_no_room_for_systemd(make: MakeWorld) -> None:
    world = make(systemd=True)
    world.bus.limits.max_pending_service_starts = 1
    world.service("/bin/false", more=UNIT)
    world.activate(Conn(1), call(), A)
    kinds, text = world.outcome()
    assert kinds == ["LimitsExceeded"]
    assert "activation of org.freedesktop.systemd1 failed" in text
    assert world.context.lines[-1] == (
        "info",
        "Failed to activate via systemd: service name='org.example.A' unit='a.service'",
    )
    assert world.idle


async def test_service_without_a_unit_is_started_directly(make: MakeWorld) -> None:
    world = make(systemd=True)
    world.service("/bin/false")
    world.activate(Conn(1), call(), A)
    await world.answered()
    assert [kind for kind, _, _ in world.bus.sent] == ["Spawn.ChildExited"]


def failed(unit: str, name: str, text: str, signature: str = "sss") -> Message:
    msg = Message()
    values = [unit, name, text][: len(signature)]
    data = wire.message(
        wire.SIGNAL, 1, path=b"/org/freedesktop/DBus", destination=b"org.freedesktop.DBus",
        interface=b"org.freedesktop.systemd1.Activator", member=b"ActivationFailure",
        sender=None, signature=signature, body=wire.marshal(signature, values),
    )  # fmt: skip
    assert msg.load(data)
    return msg


@pytest.mark.weakness("CVE-2015-0245")
async def test_systemd_reports_failure(make: MakeWorld) -> None:
    world = make(systemd=True)
    systemd = world.own(SYSTEMD)
    world.service("/bin/false", more=UNIT)
    world.service("/bin/false", b"org.example.B", more=UNIT)
    world.service("/bin/false", b"org.example.C", more="SystemdService=c.service")
    for name in (A, b"org.example.B", b"org.example.C"):
        world.activate(Conn(1), call(name), name)
    world.context.lines.clear()
    forger = Conn(6)
    world.activator.systemd_failure(forger, failed("a.service", "a.b", "forged"))
    assert world.bus.sent == []
    assert world.context.lines == [
        (
            "security",
            "Ignoring forged ActivationFailure message from connection :1.6 (uid=6)",
        )
    ]
    world.activator.systemd_failure(systemd, failed("a.service", "a.b", "x", "ss"))
    assert world.bus.sent == []
    world.activator.systemd_failure(systemd, failed("a.service", PREFIX + "Masked", "masked"))
    assert world.outcome() == (["Masked", "Masked"], "masked")
    assert world.context.lines[-1] == (
        "info",
        "Activation via systemd failed for unit 'a.service': masked",
    )
    assert list(world.activator.book.names) == [b"org.example.C"]


@pytest.mark.parametrize("name", ["", "x", "a..b", "a.b c", "a." + "b" * 254])
async def test_systemd_reports_a_name_that_is_none(make: MakeWorld, name: str) -> None:
    world = make(systemd=True)
    systemd = world.own(SYSTEMD)
    world.service("/bin/false", more=UNIT)
    world.activate(Conn(1), call(), A)
    world.activator.systemd_failure(systemd, failed("a.service", name, "why"))
    assert world.outcome() == (["Failed"], "why")


async def test_failure_report_without_systemd_activation(world: World) -> None:
    systemd = world.own(SYSTEMD)
    world.activator.systemd_failure(systemd, failed("a.service", "a.b", "x"))
    assert world.context.lines == [
        (
            "warning",
            "Ignoring unexpected ActivationFailure message while not using systemd activation",
        )
    ]


async def test_systemd_gets_the_environment(make: MakeWorld) -> None:
    world = make(systemd=True)
    world.activator.update_environment({"A": "1"})
    assert world.bus.emitted == []
    systemd = world.own(SYSTEMD)
    world.activator.update_environment({"B": "2", "C": "3"})
    # To the name where it had to be waited for, else to the connection.
    assert [
        (dest, msg.destination, wire.unmarshal(msg.signature, msg.body(), False))
        for dest, msg in world.bus.emitted
    ] == [(systemd, SYSTEMD, [["A=1"]]), (systemd, b":1.1000", [["B=2", "C=3"]])]
    for _, msg in world.bus.emitted:
        assert (msg.type, msg.flags, msg.path, msg.interface, msg.member) == (
            wire.CALL,
            wire.NO_REPLY,
            b"/org/freedesktop/systemd1",
            b"org.freedesktop.systemd1.Manager",
            b"SetEnvironment",
        )
    assert world.activator.environment[b"A"] == b"1"
