"""A real daemon with a FUSE mount: programs of both worlds on one bus.

Invariant: the classic clients are sockets, busctl and dbus-fast, those of kdbus give ioctls; nobody
here shares anything with the daemon but the bus.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import buses
import pytest
from kdbuskit import Got, access, command, item, message, text, u64
from kdbusmount import RUN, Errno, Peer, ioctl, is_mounted, why_not
from rawclient import RawClient, Received
from worldskit import dbus2, parsed, values

from jitney.broker.kdbus import constants as c
from jitney.broker.match import Rule
from jitney.compat import wire
from jitney.kdbus import bloom, matches, transcode
from jitney.kdbus.transcode import Dbus2Message

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"kdbusfs: {why_not()}")

NAME = b"com.example.Name"
CALL: dict[str, Any] = {"path": b"/a", "interface": b"com.example.I", "member": b"M"}
FAR = 1 << 62


class Kdbus(Peer):
    """A kdbus client that speaks sd-bus's form."""

    def say(self, said: Dbus2Message, timeout: int = FAR, sync: bool = False) -> bytes:  # type: ignore[override]
        envelope = transcode.envelope_of(said)
        items, kept = b"", []
        for part in filter(None, transcode.lay(said)):
            buffer = ctypes.create_string_buffer(part, len(part))
            kept.append(buffer)
            items += item(c.ITEM_PAYLOAD_VEC, u64(len(part), ctypes.addressof(buffer)))
        if envelope.dst_name is not None:
            items += text(c.ITEM_DST_NAME, envelope.dst_name)
        if envelope.flags & c.SIGNAL:
            items += item(c.ITEM_BLOOM_FILTER, u64(0) + bloom.filter_of(said))
        data = message(
            envelope.dst_id,
            items,
            envelope.flags,
            envelope.cookie,
            timeout if envelope.flags & c.EXPECT_REPLY else envelope.cookie_reply,
            payload_type=transcode.PAYLOAD_DBUS,
        )
        return self.send(data, c.SEND_SYNC_REPLY if sync else 0)

    def call(self, to: bytes, cookie: int = 1, **more: Any) -> bytes:
        sending = {key: more.pop(key) for key in ("timeout", "sync") if key in more}
        return self.say(dbus2(wire.CALL, cookie, destination=to, **CALL, **more), **sending)

    def hear(self) -> Dbus2Message:
        return parsed(self.recv(), self.id)

    def reply(self, said: Dbus2Message, **more: Any) -> bytes:
        return self.say(
            dbus2(wire.RETURN, 99, reply_cookie=said.cookie, destination=said.sender, **more)
        )

    def listen(self, rule: Rule) -> None:
        for match in matches.of_rule(rule):
            self.do("MATCH_ADD", 0, u64(1), b"".join(item(one.type, one.data) for one in match))

    def acquire(self, name: bytes) -> None:
        self.do("NAME_ACQUIRE", items=text(c.ITEM_NAME, name))

    @property
    def name(self) -> bytes:
        return b":1.%d" % self.id


class Both:
    """The daemon, and who is on its bus."""

    def __init__(self, daemon: buses.Daemon, tree: Path) -> None:
        self.daemon = daemon
        self.tree = tree
        self.address = daemon.address
        self.closing: list[Any] = []
        self.path = tree / f"{os.geteuid()}-user" / "bus"

    def kdbus(self, **more: Any) -> Kdbus:
        peer = Kdbus(self.path, **more)
        self.closing.append(peer)
        return peer

    def classic(self, **more: Any) -> RawClient:
        client = RawClient(self.address, **more)
        self.closing.append(client)
        client.hello()
        assert only(client, "NameAcquired")
        return client

    @property
    def log(self) -> str:
        return (self.daemon.directory / "log").read_text()


@contextmanager
def started(tmp_path: Path, **more: Any) -> Iterator[Both]:
    tree = tmp_path / "kdbus"
    words = [*buses.jitney_command(), f"--kdbus-mount={tree}"]
    with buses.running(words, **more) as daemon:
        # Not a test's measure: it only makes sure that nobody waits for ever.
        killer = subprocess.Popen(
            ["sh", "-c", f"sleep 50; kill -KILL {daemon.pid}"], start_new_session=True
        )
        both = Both(daemon, tree)
        try:
            yield both
        finally:
            for one in both.closing:
                one.close()
            os.killpg(killer.pid, signal.SIGKILL)
            killer.wait()
    assert eventually(lambda: not is_mounted(tree))


def eventually(true: Callable[[], object], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    with started(tmp_path) as found:
        yield found


def only(client: RawClient, member: str | None = None) -> Received:
    got = client.receive()
    assert got is not None
    if member is not None:
        assert got.member == member, got
    return got


def test_the_tree(both: Both) -> None:
    uid = os.geteuid()
    assert sorted(os.listdir(both.tree)) == [f"{uid}-user", "control"]
    status = os.stat(both.path)
    assert (status.st_uid, status.st_mode & 0o777) == (uid, 0o600)
    assert os.stat(both.tree / "control").st_mode & 0o777 == 0o600
    a, b, d = both.classic(), both.kdbus(), both.classic()
    numbers = [int(a.unique_name[3:]), b.id, int(d.unique_name[3:])]
    assert numbers == [2, 3, 4]


def test_calls_both_ways(both: Both) -> None:
    classic, peer = both.classic(), both.kdbus()
    peer.call(classic.unique_name.encode(), 5, signature=b"sas", values=["x", ["y", "z"]])
    got = only(classic, "M")
    assert (got.sender, got.body) == (peer.name.decode(), ["x", ["y", "z"]])
    classic.message(
        wire.RETURN, destination=peer.name, reply_serial=got.serial, signature="u", values=[3]
    )
    answer = peer.hear()
    assert (answer.reply_cookie, values(answer)) == (5, [3])
    assert answer.sender == classic.unique_name.encode()
    given = {"k": ("i", 1)}
    serial = classic.message(destination=peer.name, **CALL, signature="a{sv}", values=[given])
    said = peer.hear()
    assert values(said) == [given]
    peer.reply(said, signature=b"s", values=["done"])
    assert classic.reply_to(serial).body == ["done"]


def test_errors_are_errnos(both: Both) -> None:
    peer = both.kdbus()
    for to, number in ((NAME, errno.ESRCH), (b":1.77", errno.ENXIO)):
        with pytest.raises(Errno) as caught:
            peer.call(to)
        assert caught.value.errno == number


def test_a_synchronous_call_is_answered_by_a_socket(both: Both) -> None:
    classic, peer = both.classic(), both.kdbus()

    def serve() -> None:
        got = only(classic, "M")
        classic.message(
            wire.RETURN, destination=peer.name, reply_serial=got.serial, signature="s",
            values=["at once"],
        )  # fmt: skip

    server = threading.Thread(target=serve)
    server.start()
    data = peer.call(classic.unique_name.encode(), sync=True)
    server.join()
    offset, size = struct.unpack_from("<QQ", data, 32)
    assert values(parsed(Got(peer.map[offset : offset + size]), peer.id)) == ["at once"]


def test_deadline_and_ends(both: Both) -> None:
    classic, peer = both.classic(), both.kdbus()
    to = classic.unique_name.encode()
    peer.call(to, 4, timeout=time.monotonic_ns() + 50_000_000)
    assert peer.recv().kinds()[0] == c.ITEM_REPLY_TIMEOUT
    peer.call(to, 5)
    classic.close()
    got = peer.recv()
    assert (got.kinds()[0], got.timeout) == (c.ITEM_REPLY_DEAD, 5)
    other = both.classic()
    serial = other.message(destination=peer.name, **CALL)
    peer.hear()
    peer.close()
    both.closing.remove(peer)
    error = other.reply_to(serial)
    assert error.error_name == "org.freedesktop.DBus.Error.NoReply"
    assert error.body == ["Message recipient disconnected from message bus without replying"]


def test_names_and_signals(both: Both) -> None:
    classic, peer = both.classic(), both.kdbus()
    classic.reply_to(classic.driver(b"AddMatch", "s", "type='signal'"))
    peer.listen(Rule(type=4, interface=b"com.example.I"))
    peer.do("MATCH_ADD", 0, u64(2), item(c.ITEM_NAME_ADD, u64(c.MATCH_ANY, 0, c.MATCH_ANY, 0)))
    peer.acquire(NAME)
    changed = only(classic, "NameOwnerChanged")
    assert changed.body == [NAME.decode(), "", peer.name.decode()]
    assert peer.recv().get(c.ITEM_NAME_ADD) is not None
    owner = classic.reply_to(classic.driver(b"GetNameOwner", "s", NAME.decode()))
    assert owner.body == [peer.name.decode()]
    classic.message(wire.SIGNAL, destination=None, **(CALL | {"member": b"S"}))
    assert peer.hear().member == b"S"
    assert only(classic, "S").sender == classic.unique_name
    peer.say(dbus2(wire.SIGNAL, 4, **(CALL | {"member": b"T"}), signature=b"s", values=["w"]))
    got = only(classic, "T")
    assert (got.sender, got.body) == (peer.name.decode(), ["w"])


def test_credentials_either_way(both: Both) -> None:
    classic, peer = both.classic(), both.kdbus()
    found = classic.reply_to(
        classic.driver(b"GetConnectionCredentials", "s", peer.name.decode())
    ).body[0]
    assert found["ProcessID"] == ("u", os.getpid())
    assert found["UnixUserID"] == ("u", os.getuid())
    asked = classic.driver(b"GetConnectionUnixUser", "s", peer.name.decode())
    assert classic.reply_to(asked).body == [os.getuid()]
    classic.message(destination=peer.name, **CALL)
    got = peer.recv()
    creds, pids = got.get(c.ITEM_CREDS), got.get(c.ITEM_PIDS)
    assert creds is not None
    assert pids is not None
    assert struct.unpack("<8Q", creds)[1] == os.geteuid()
    assert struct.unpack("<3Q", pids)[0] == os.getpid()


def test_descriptors_from_kdbus(both: Both) -> None:
    classic, peer = both.classic(), both.kdbus()
    near, far = os.pipe()
    said = dbus2(
        wire.CALL, 3, destination=classic.unique_name.encode(), n_fds=1, signature=b"h",
        values=[0], **CALL,
    )  # fmt: skip
    buffer = b"".join(transcode.lay(said))
    kept = ctypes.create_string_buffer(buffer, len(buffer))
    items = item(c.ITEM_PAYLOAD_VEC, u64(len(buffer), ctypes.addressof(kept)))
    items += item(c.ITEM_FDS, struct.pack("<i", far))
    number = int(classic.unique_name[3:])
    peer.send(message(number, items, c.EXPECT_REPLY, 3, FAR, payload_type=transcode.PAYLOAD_DBUS))
    os.close(far)
    got = only(classic, "M")
    os.write(got.fds[0], b"through")
    assert os.read(near, 10) == b"through"
    got.close_fds()
    os.close(near)


def test_busctl_talks_to_kdbus(both: Both) -> None:
    if shutil.which("busctl") is None:
        pytest.skip("busctl is not installed")
    peer = both.kdbus()
    peer.acquire(NAME)
    words = ["busctl", f"--address={both.address}", "call", NAME.decode(), "/a", "com.example.I"]
    process = subprocess.Popen([*words, "M", "su", "x", "7"], stdout=subprocess.PIPE)
    said = peer.hear()
    assert values(said) == ["x", 7]
    peer.reply(said, signature=b"as", values=[["one", "two"]])
    out, _ = process.communicate(timeout=20)
    assert out == b'as 2 "one" "two"\n'


async def test_dbus_fast_talks_to_kdbus(both: Both) -> None:
    fast = pytest.importorskip("dbus_fast")
    from dbus_fast.aio import MessageBus

    bus = await MessageBus(bus_address=both.address).connect()
    peer = both.kdbus()
    server = threading.Thread(
        target=lambda: peer.reply(peer.hear(), signature=b"s", values=["from kdbus"])
    )
    server.start()
    reply = await bus.call(
        fast.Message(
            destination=peer.name.decode(), path="/a", interface="com.example.I", member="M"
        )
    )
    server.join()
    assert reply.body == ["from kdbus"]
    bus.disconnect()


def test_service_is_started_for_a_kdbus_client(both: Both) -> None:
    program = both.daemon.directory / "service.py"
    here = [str(Path(__file__).parents[2]), *sys.path]
    program.write_text(
        f"""import sys
sys.path[:0] = {here!r}
import os
from rawclient import RawClient
from jitney.compat import wire
client = RawClient(os.environ["DBUS_STARTER_ADDRESS"])
client.hello()
client.driver(b"RequestName", "su", {NAME.decode()!r}, 0)
while (got := client.receive()) is not None:
    if got.member == "M":
        client.message(wire.RETURN, destination=got.sender.encode(), reply_serial=got.serial,
                       signature="s", values=["started"])
"""
    )
    file = both.daemon.directory / "services" / f"{NAME.decode()}.service"
    file.write_text(f"[D-BUS Service]\nName={NAME.decode()}\nExec={sys.executable} {program}\n")
    classic = both.classic()
    asked = classic.driver(b"ListActivatableNames")
    assert NAME.decode() in classic.reply_to(asked).body[0] or eventually(
        lambda: NAME.decode() in classic.reply_to(classic.driver(b"ListActivatableNames")).body[0]
    )
    peer = both.kdbus()
    peer.call(NAME, 5)
    got = peer.recv(wait=30)
    assert got.kinds()[0] != c.ITEM_REPLY_DEAD, both.log
    answer = parsed(got, peer.id)
    assert (answer.reply_cookie, values(answer)) == (5, ["started"])


def test_flood_of_classic_messages_keeps_nobody_out(both: Both) -> None:
    """The thread of the sockets is never done; kdbus's clients get their turn all the same."""
    over = threading.Event()

    def flood() -> None:
        with RawClient(both.address) as client:
            client.hello()
            client.sock.setblocking(True)
            reader = threading.Thread(target=drain, args=(client,))
            reader.start()
            while not over.is_set():
                for _ in range(50):
                    client.driver(b"GetId")
            client.sock.shutdown(2)
            reader.join()

    def drain(client: RawClient) -> None:
        while client.sock.recv(1 << 16):
            pass

    flooders = [threading.Thread(target=flood) for _ in range(2)]
    for flooder in flooders:
        flooder.start()
    try:
        a, b = both.kdbus(), both.kdbus()
        for turn in range(1, 200):
            a.call(b.name, turn)
            b.reply(b.hear())
            assert a.hear().reply_cookie == turn
    finally:
        over.set()
        for flooder in flooders:
            flooder.join()


def test_reload_and_end(both: Both) -> None:
    classic, peer = both.classic(), both.kdbus()
    classic.reply_to(classic.driver(b"ReloadConfig"))
    peer.call(classic.unique_name.encode(), 5)
    assert only(classic, "M")
    os.kill(both.daemon.pid, signal.SIGTERM)
    assert classic.receive() is None
    assert eventually(lambda: not is_mounted(both.tree))
    with pytest.raises((Errno, OSError)):
        peer.call(classic.unique_name.encode(), 6)


def test_fork_serves_as_well(tmp_path: Path) -> None:
    tree = tmp_path / "kdbus"
    config = tmp_path / "bus.conf"
    config.write_text(buses.CONFIG.format(type="session", directory=tmp_path, extra=""))
    (tmp_path / "services").mkdir()
    words = [*buses.jitney_command(), f"--config-file={config}", "--fork", "--print-pid=1"]
    with (tmp_path / "pid").open("wb") as out:
        # Both are the daemon's as well, for as long as it runs.
        subprocess.run(
            [*words, f"--kdbus-mount={tree}"], stdout=out, stderr=out, timeout=30, check=True
        )
    pid = int((tmp_path / "pid").read_text().splitlines()[-1])
    try:
        a, b = (Kdbus(tree / f"{os.geteuid()}-user" / "bus") for _ in range(2))
        a.call(b.name)
        assert b.hear().member == b"M"
        a.close()
        b.close()
    finally:
        os.kill(pid, signal.SIGTERM)
    assert eventually(lambda: not is_mounted(tree))


def test_what_cannot_be_mounted_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = [*buses.jitney_command(), f"--kdbus-mount={tmp_path}/file"]
    with (
        pytest.raises(RuntimeError, match="Failed to mount kdbus's file system"),
        buses.running(words),
    ):
        pass


def test_bus_that_becomes_another_user_is_refused(tmp_path: Path) -> None:
    words = [*buses.jitney_command(), f"--kdbus-mount={tmp_path}/kdbus"]
    with (
        pytest.raises(RuntimeError, match="needs a bus that stays who it is"),
        buses.running(words, extra="<user>nobody</user>"),
    ):
        pass
    assert not (tmp_path / "kdbus").exists()


def test_system_bus_and_other_users(tmp_path: Path) -> None:
    """Who may open the bus is the file system's business, who may talk both policies'."""
    rules = """<policy user="root"><allow own="com.example.Name"/></policy>
    <policy context="default"><deny own="*"/>
    <deny send_interface="com.example.I" send_member="Secret"/></policy>"""
    with started(tmp_path, type="system", extra=rules) as both:
        both.path = both.tree / "0-system" / "bus"
        peer, nobody = both.kdbus(), both.classic(uid=65534)
        peer.acquire(NAME)
        assert denied(lambda: peer.acquire(b"com.example.Other")) == errno.EPERM
        serial = nobody.message(destination=NAME, **CALL)
        error = nobody.reply_to(serial)
        assert error.error_name == "org.freedesktop.DBus.Error.AccessDenied"
        # A policy holder of kdbus's lets everybody talk to the name.
        holder = os.open(both.path, os.O_RDWR | os.O_CLOEXEC)
        items = text(c.ITEM_NAME, NAME) + access(c.FOR_WORLD, c.TALK)
        hello = command("HELLO", c.HELLO_POLICY_HOLDER, u64(0, 0, 0, 0, 4096), items)
        ioctl(holder, "HELLO", hello)
        nobody.message(destination=NAME, **CALL)
        assert peer.hear().sender == nobody.unique_name.encode()
        serial = nobody.message(destination=NAME, **(CALL | {"member": b"Secret"}))
        error = nobody.reply_to(serial)
        assert "Rejected send message" in error.body[0]
        os.close(holder)


def denied(what: Callable[[], object]) -> int:
    with pytest.raises(Errno) as caught:
        what()
    return caught.value.errno


def test_other_loops_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not let go of the lock while they sleep."""
    monkeypatch.setenv("JITNEY_LOOP", "asyncio")
    with started(tmp_path) as both:
        assert eventually(lambda: "--kdbus-mount needs the bus's own event loop" in both.log)


def test_what_looks_at_the_bus_sees_both(both: Both) -> None:
    classic, peer = both.classic(), both.kdbus()
    peer.acquire(NAME)
    shown = subprocess.run(
        [sys.executable, "-c", RUN, "peers", "--address", both.address],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    assert classic.unique_name in shown
    assert peer.name.decode() in shown
    assert NAME.decode() in shown
