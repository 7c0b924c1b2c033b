"""A real daemon with a FUSE mount, with sockets, or both: programs of both worlds on one bus.

Invariant: the classic clients are sockets, busctl and dbus-fast, those of kdbus as in
`worldsdaemon.py`; nobody here shares anything with the daemon but the bus. Those who share one
daemon leave nothing of themselves on it. Who may, and what cannot be, is in `test_places.py`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kdbusshim
import kernel
import pytest
from foreground import RUN
from kdbuskit import Errno, item, u64
from rawclient import RawClient
from waiting import comes
from worldsdaemon import (
    CALL,
    NAME,
    TEST_WITH_SHIM,
    WAYS,
    Both,
    only,
    started,
)
from worldskit import dbus2, parsed, values

from jitney.broker.kdbus import constants as c
from jitney.broker.match import Rule
from jitney.compat import wire
from jitney.kdbus import preload


@pytest.fixture(scope="module", params=WAYS)
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with started(tmp_path_factory.mktemp("worlds") / "kdbus", request.param) as found:
        yield found


@pytest.fixture
def both(daemon: Both) -> Iterator[Both]:
    yield daemon
    daemon.clear()


@pytest.fixture
def passing(both: Both) -> Both:
    """The same where kdbus's clients get descriptors."""
    if both.way == "mount":
        pytest.skip("FUSE cannot give a descriptor to who receives")
    return both


@pytest.mark.skipif(TEST_WITH_SHIM in os.environ, reason="is the one")
@pytest.mark.skipif(bool(kdbusshim.why_not()), reason=f"the shim: {kdbusshim.why_not()}")
@pytest.mark.timeout(300)
def test_with_the_shim() -> None:
    """All of these again, where programs that give ioctls are on sockets."""
    shim = preload.library()
    assert shim is not None
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**preload.environment(shim), TEST_WITH_SHIM: "1", "PYTHONPATH": paths}
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "shim]",
        __file__,
    ]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tree(both: Both) -> None:
    uid = os.geteuid()
    assert sorted(os.listdir(both.tree)) == [f"{uid}-user", "control"]
    status = os.stat(both.path)
    assert (status.st_uid, status.st_mode & 0o777) == (uid, 0o600)
    assert os.stat(both.tree / "control").st_mode & 0o777 == 0o600
    a, b, d = both.classic(), both.kdbus(), both.classic()
    first = int(a.unique_name[3:])
    assert (b.id, int(d.unique_name[3:])) == (first + 1, first + 2)


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
    assert values(peer.answer_in(data)) == ["at once"]


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
    peer.give("MATCH_ADD", 0, u64(2), item(c.ITEM_NAME_ADD, u64(c.MATCH_ANY, 0, c.MATCH_ANY, 0)))
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
    assert struct.unpack("<8Q", creds)[1] == os.geteuid()
    # The classic side may not be told it.
    assert (None if pids is None else ("u", struct.unpack("<3Q", pids)[0])) == kernel.MY_PID


def test_descriptors_from_kdbus(both: Both) -> None:
    classic, peer = both.classic(), both.kdbus()
    near, far = os.pipe()
    if both.way == "mount" and not kernel.GETFD:
        with pytest.raises(Errno) as caught:
            peer.call(classic.unique_name.encode(), signature=b"h", values=[0], fds=[far])
        assert caught.value.errno == errno.EOPNOTSUPP
        return
    peer.call(classic.unique_name.encode(), 3, signature=b"h", values=[0], fds=[far])
    os.close(far)
    got = only(classic, "M")
    os.write(got.fds[0], b"through")
    assert os.read(near, 10) == b"through"
    got.close_fds()
    # That was the last one who had it.
    assert os.read(near, 10) == b""
    os.close(near)


def test_descriptors_to_kdbus(passing: Both) -> None:
    classic, peer = passing.classic(), passing.kdbus()
    near, far = os.pipe()
    serial = classic.message(
        destination=peer.name, **CALL, signature="ah", values=[[0, 0]], fds=[far]
    )
    os.close(far)
    said = peer.hear()
    assert values(said) == [[0, 0]]
    (fd,) = peer.descriptors()
    os.write(fd, b"through")
    assert os.read(near, 10) == b"through"
    os.close(fd)
    assert os.read(near, 10) == b""
    # And back, in an answer.
    peer.reply(said, fds=[near], signature=b"h", values=[0])
    answer = classic.reply_to(serial)
    assert os.fstat(answer.fds[0]).st_ino == os.fstat(near).st_ino
    answer.close_fds()
    os.close(near)


def test_descriptors_in_an_answer_at_once(passing: Both) -> None:
    classic, peer = passing.classic(), passing.kdbus()
    near, far = os.pipe()

    def serve() -> None:
        got = only(classic, "M")
        classic.message(
            wire.RETURN, destination=peer.name, reply_serial=got.serial, signature="h",
            values=[0], fds=[far],
        )  # fmt: skip

    server = threading.Thread(target=serve)
    server.start()
    data = peer.call(classic.unique_name.encode(), sync=True)
    server.join()
    os.close(far)
    got = peer.slice(*struct.unpack_from("<QQ", data, 32))
    numbers = got.get(c.ITEM_FDS)
    assert numbers is not None
    fd = peer.fds[0] if passing.way == "sockets" else struct.unpack("<i", numbers)[0]
    os.write(fd, b"x")
    os.close(fd)
    assert os.read(near, 2) == b"x"
    assert os.read(near, 2) == b""
    os.close(near)


def test_who_takes_no_descriptors(both: Both) -> None:
    classic, peer = both.classic(), both.kdbus(flags=0)
    near, far = os.pipe()
    serial = classic.message(destination=peer.name, **CALL, signature="h", values=[0], fds=[far])
    assert classic.reply_to(serial).error_name == "org.freedesktop.DBus.Error.NotSupported"
    without = both.classic(fds=False)
    with pytest.raises(Errno) as caught:
        peer.call(without.unique_name.encode(), signature=b"h", values=[0], fds=[far])
    untaken = both.way == "mount" and not kernel.GETFD
    assert caught.value.errno == (errno.EOPNOTSUPP if untaken else errno.ECOMM)
    os.close(far)
    # What could not be passed was let go of.
    assert os.read(near, 1) == b""
    os.close(near)


@pytest.mark.parametrize("memfd", [False, True])
def test_long_bodies(both: Both, memfd: bool) -> None:
    """By memory, in a memfd or an outbox, as the way has it."""
    classic, peer = both.classic(), both.kdbus()
    text = "long " * 20000
    peer.call(classic.unique_name.encode(), 5, signature=b"s", values=[text], memfd=memfd)
    got = only(classic, "M")
    assert got.body == [text]
    classic.message(
        wire.RETURN, destination=peer.name, reply_serial=got.serial, signature="s", values=[text]
    )
    assert values(peer.hear()) == [text]


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


async def test_dbus_fast_serves_kdbus(both: Both) -> None:
    fast = pytest.importorskip("dbus_fast")
    from dbus_fast.aio import MessageBus

    bus = await MessageBus(bus_address=both.address, negotiate_unix_fd=True).connect()
    await bus.request_name(NAME.decode())

    def serve(msg: Any) -> Any:
        if msg.member != "M":
            return None
        if msg.body == ["no"]:
            return fast.Message.new_error(msg, "com.example.Error.No", "never")
        bus.send(fast.Message.new_signal("/a", "com.example.I", "S", "s", msg.body))
        return fast.Message.new_method_return(msg, "s", ["from dbus-fast"])

    bus.add_message_handler(serve)
    peer = both.kdbus()
    peer.listen(Rule(type=4, interface=b"com.example.I", sender=NAME))

    def use() -> list[Any]:
        peer.call(NAME, 4, signature=b"s", values=["x"])
        signal, answer = peer.hear(), peer.hear()
        error = peer.answer_in(peer.call(NAME, 5, sync=True, signature=b"s", values=["no"]))
        return [values(signal), values(answer), error.error_name, values(error)]

    said = await asyncio.get_running_loop().run_in_executor(None, use)
    assert said == [["x"], ["from dbus-fast"], b"com.example.Error.No", ["never"]]
    bus.disconnect()


def test_service_is_started_for_a_kdbus_client(both: Both) -> None:
    program = both.daemon.directory / "service.py"
    here = [str(Path(__file__).parents[2]), *sys.path]
    program.write_text(
        f"""import sys
sys.path[:0] = {here!r}
import os
from rawclient import RawClient
from waiting import comes
from jitney.compat import wire
client = RawClient(os.environ["DBUS_STARTER_ADDRESS"])
client.hello()
client.driver(b"RequestName", "su", {NAME.decode()!r}, 0)
while (got := client.receive()) is not None:
    if got.member == "M":
        client.message(wire.RETURN, destination=got.sender.encode(), reply_serial=got.serial,
                       signature="s", values=["started"])
        break
"""
    )
    file = both.daemon.directory / "services" / f"{NAME.decode()}.service"
    file.write_text(f"[D-BUS Service]\nName={NAME.decode()}\nExec={sys.executable} {program}\n")
    classic = both.classic()

    def known() -> bool:
        asked = classic.driver(b"ListActivatableNames")
        return NAME.decode() in classic.reply_to(asked).body[0]

    assert comes(known)
    peer = both.kdbus()
    peer.call(NAME, 5)
    got = peer.recv(wait=30)
    assert got.kinds()[0] != c.ITEM_REPLY_DEAD, both.log
    answer = parsed(got, peer.id)
    assert (answer.reply_cookie, values(answer)) == (5, ["started"])
    file.unlink()
    assert comes(lambda: not known())


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
