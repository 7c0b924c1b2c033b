"""A bus whose process is killed goes on with the connections that its service manager kept: here a
datagram socket that keeps descriptors, and starts the bus with them."""

from __future__ import annotations

import array
import json
import os
import random
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import buses
import pytest
from rawclient import RawClient
from upgrading import joined, settled, upgrade
from waiting import alive, until

from jitney.compat import wire

NO_REPLY = "org.freedesktop.DBus.Error.NoReply"


class Manager:
    """What systemd does for a unit with FileDescriptorStoreMax= and Restart=."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored: dict[str, int] = {}
        self.main = 0
        self.ready = 0
        self.most = 1000
        self.files = 1024
        self.forgetful = True
        self.path = str(folder / "notify")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.sock.settimeout(0.1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(folder / "bus"))
        self.listening.listen(128)
        self.address = f"unix:path={folder}/bus"
        (folder / "services").mkdir()
        config = buses.CONFIG.format(type="session", directory=folder, extra="")
        (folder / "bus.conf").write_text(config)
        self.ending = False
        self.silences = 0
        """How often nobody has said anything for a while, and all that was said is done."""
        self.processes: list[subprocess.Popen[bytes]] = []
        self.thread = threading.Thread(target=self.listen)
        self.thread.start()

    def listen(self) -> None:
        while not self.ending:
            try:
                data, control, _, _ = self.sock.recvmsg(4096, 4096)
            except TimeoutError:
                self.hung_up()
                self.silences += 1
                continue
            fds = array.array("i")
            for _, _, payload in control:
                fds.frombytes(payload)
            said = dict(line.split("=", 1) for line in data.decode().split("\n"))
            if "FDSTORE" in said:
                old = self.stored.pop(said["FDNAME"], None)
                if old is not None:
                    os.close(old)
                if len(self.stored) < self.most:
                    self.stored[said["FDNAME"]] = fds[0]
                else:
                    os.close(fds[0])
            elif "FDSTOREREMOVE" in said and self.forgetful:
                fd = self.stored.pop(said["FDNAME"], None)
                if fd is not None:
                    os.close(fd)
            if "MAINPID" in said:
                self.main = int(said["MAINPID"])
            if "READY" in said:
                self.ready += 1

    def hung_up(self) -> None:
        """FDPOLL=1: what has ended is not kept."""
        poll = select.poll()
        for name, fd in list(self.stored.items()):
            poll = select.poll()
            poll.register(fd, 0)
            if poll.poll(0):
                os.close(self.stored.pop(name))

    def start(self, *options: str) -> None:
        names = sorted(self.stored, key=lambda name: ("journal" in name, name))
        fds = [self.listening.fileno(), *(self.stored[name] for name in names)]
        # As sd_listen_fds(3) wants them; the numbers above are out of the way.
        command = [*buses.jitney_command(), f"--config-file={self.folder}/bus.conf", "--nofork",
                   "--address=systemd:", "--fd-store", *options]  # fmt: skip
        before = self.ready
        high = [os.dup2(fd, 500 + i) for i, fd in enumerate(fds)]
        script = "".join(f"exec {3 + i}<&{500 + i} {500 + i}<&-\n" for i in range(len(fds)))
        script += f'ulimit -Sn {self.files}; export LISTEN_PID=$$; exec "$@"'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=high,
            env={
                **os.environ,
                "NOTIFY_SOCKET": self.path,
                "LISTEN_FDS": str(len(fds)),
                "LISTEN_FDNAMES": ":".join(["dbus.socket", *names]),
            },
        )
        for fd in high:
            os.close(fd)
        self.processes.append(process)
        self.main = process.pid
        until(lambda: self.ready > before or process.poll() is not None, "it is ready")
        assert process.poll() is None

    def crash(self, killed: bool = False) -> None:
        if not killed:
            os.kill(self.main, signal.SIGKILL)
        until(lambda: not alive(self.main))
        # One may have begun before its last words.
        heard = self.silences
        until(lambda: self.silences > heard + 1, "its last words are heard")
        self.start()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                process.wait(30)
        if self.main and alive(self.main):
            os.kill(self.main, 15)
        self.ending = True
        self.thread.join()
        for fd in self.stored.values():
            os.close(fd)
        self.sock.close()
        self.listening.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_what_is_saved(manager: Manager) -> None:
    one, two, watcher, slow, tracer = (joined(manager.address) for _ in range(5))
    bus_id = one.reply_to(one.driver(b"GetId")).body
    for client in (one, two):
        client.reply_to(client.driver(b"RequestName", "su", "com.example.N", 0))
    one.reply_to(one.driver(b"RequestName", "su", "com.example.M", 0))
    one.reply_to(one.driver(b"ReleaseName", "s", "com.example.M"))
    watcher.reply_to(watcher.driver(b"AddMatch", "s", "member='Seen'"))
    watcher.reply_to(watcher.driver(b"AddMatch", "s", "member='NameOwnerChanged'"))
    watcher.reply_to(watcher.driver(b"AddMatch", "s", "member='Other'"))
    watcher.reply_to(watcher.driver(b"RemoveMatch", "s", "member='Other'"))
    tracer.reply_to(tracer.driver(b"Start", "a{sv}", {}, interface=b"org.jitney.Trace1"))
    for _ in range(60):
        one.message(
            wire.SIGNAL, destination=slow.unique_name.encode(), path=b"/", interface=b"a.b",
            member=b"F", signature="ay", values=[bytes(60000)],
        )  # fmt: skip
    settled(one)
    settled(watcher)
    for crash in range(2):
        manager.crash()
        assert one.reply_to(one.driver(b"GetId")).body == bus_id
        queued = one.reply_to(one.driver(b"ListQueuedOwners", "s", "com.example.N")).body[0]
        assert queued == [one.unique_name, two.unique_name]
        assert not one.reply_to(one.driver(b"NameHasOwner", "s", "com.example.M")).body[0]
        two.message(wire.SIGNAL, destination=None, path=b"/", interface=b"a.b", member=b"Seen")
        two.message(wire.SIGNAL, destination=None, path=b"/", interface=b"a.b", member=b"Other")
        settled(two)
        heard = [(m.member, m.body) for m in settled(watcher)]
        assert ("Seen", []) in heard
        # Who got half a message, or what cannot be saved, has left, and others hear of it.
        left = [("NameOwnerChanged", [slow.unique_name, slow.unique_name, ""])]
        assert [change for change in heard if "NameOwner" in change[0]] == left * (crash == 0)
        # It works as before, descriptors and all.
        call = one.message(destination=two.unique_name.encode(), path=b"/", member=b"M", fds=[0])
        got = [m for m in settled(two) if m.member == "M"]
        assert len(got[0].fds) == 1
        got[0].close_fds()
        two.message(wire.RETURN, destination=one.unique_name.encode(), reply_serial=call)
        assert one.reply_to(call).sender == two.unique_name
    until(lambda: slow.closed or slow.receive() is None)
    until(lambda: tracer.closed or tracer.receive() is None)
    newcomer = joined(manager.address)
    assert newcomer.unique_name == ":1.5"


def test_who_leaves_is_not_kept(manager: Manager) -> None:
    one, two = joined(manager.address), joined(manager.address)
    two.reply_to(two.driver(b"RequestName", "su", "com.example.N", 0))
    two.close()
    until(lambda: not one.reply_to(one.driver(b"NameHasOwner", "s", ":1.1")).body[0])
    calls = f"jitney-calls-{manager.main}"
    journals = {"jitney-journal-0", "jitney-journal-1"}
    until(lambda: set(manager.stored) == {"jitney-1", calls, *journals})
    manager.crash()
    assert not one.reply_to(one.driver(b"NameHasOwner", "s", "com.example.N")).body[0]
    # And who leaves while nobody is there, has left.
    three = joined(manager.address)
    until(lambda: "jitney-3" in manager.stored)
    os.kill(manager.main, signal.SIGKILL)
    until(lambda: not alive(manager.main))
    three.close()
    until(lambda: "jitney-3" not in manager.stored)
    manager.start()
    until(lambda: not one.reply_to(one.driver(b"NameHasOwner", "s", ":1.2")).body[0])


def test_an_upgraded_bus_is_kept_as_well(manager: Manager) -> None:
    one, two = joined(manager.address), joined(manager.address)
    one.reply_to(one.driver(b"RequestName", "su", "com.example.N", 0))
    pid = upgrade(two)["pid"]
    until(lambda: manager.main == pid)
    two.reply_to(two.driver(b"RequestName", "su", "com.example.N", 0))
    until(lambda: "jitney-journal-2" in manager.stored and "jitney-journal-1" not in manager.stored)
    manager.crash()
    queued = one.reply_to(one.driver(b"ListQueuedOwners", "s", "com.example.N")).body[0]
    assert queued == [one.unique_name, two.unique_name]
    upgrade(two)
    assert one.reply_to(one.driver(b"GetNameOwner", "s", "com.example.N")).body == [":1.0"]
    until(lambda: f"jitney-calls-{manager.main}" in manager.stored)
    assert len([name for name in list(manager.stored) if name.startswith("jitney-calls-")]) == 1


def test_replies_are_still_awaited(manager: Manager) -> None:
    """Over a crash, and over an upgrade before it."""
    one, two, three = (joined(manager.address) for _ in range(3))
    to = two.unique_name.encode()
    calls = [one.message(destination=to, path=b"/", member=b"M") for _ in range(4)]
    settled(one)
    assert len(settled(two)) == 4
    two.message(wire.RETURN, destination=b":1.0", reply_serial=calls[0])
    assert one.reply_to(calls[0]).type == wire.RETURN
    for i, again in enumerate((manager.crash, lambda: upgrade(three), manager.crash)):
        # The round in which the callee has spoken is over.
        settled(one)
        again()
        peer = one.reply_to(one.driver(b"GetPeer", "s", "", interface=b"org.jitney.Inspect1"))
        assert json.loads(peer.body[0])["calls"] == 3 - i
        two.message(wire.RETURN, destination=b":1.0", reply_serial=calls[i + 1])
        assert one.reply_to(calls[i + 1]).type == wire.RETURN
    # Nobody is told of what has come to its end, and whoever leaves without a reply is told of.
    last = one.message(destination=to, path=b"/", member=b"M")
    settled(one)
    assert len(settled(two)) == 1
    settled(one)
    manager.crash()
    assert not settled(one)
    two.close()
    assert one.reply_to(last).error_name == NO_REPLY


def test_who_is_lost_owes_no_reply(manager: Manager) -> None:
    one, slow = joined(manager.address), joined(manager.address)
    to = slow.unique_name.encode()
    calls = []
    for _ in range(60):
        calls.append(
            one.message(
                destination=to, path=b"/", member=b"M", signature="ay", values=[bytes(60000)]
            )
        )
    settled(one)
    manager.crash()
    found = {m.reply_serial: m.error_name for m in settled(one)}
    assert found == dict.fromkeys(calls, NO_REPLY)


def test_the_limit_on_replies_goes_on(manager: Manager) -> None:
    config = manager.folder / "bus.conf"
    limit = '<limit name="reply_timeout">1500</limit></busconfig>'
    config.write_text(config.read_text().replace("</busconfig>", limit))
    one, two = joined(manager.address), joined(manager.address)
    call = one.message(destination=two.unique_name.encode(), path=b"/", member=b"M")
    settled(one)
    manager.crash()
    assert one.reply_to(call).error_name == NO_REPLY


def opened(client: RawClient, manager: Manager, *lines: str) -> str:
    serial = client.driver(
        b"Add", "ssasa{sv}", "box", f"{manager.folder}/box", lines, {},
        interface=b"org.jitney.Endpoints1",
    )  # fmt: skip
    return str(client.reply_to(serial).body[0])


@pytest.mark.parametrize("again", [False, True], ids=["journal", "state"])
def test_clients_of_endpoints_leave(manager: Manager, again: bool) -> None:
    """In the ordinary way, be they in the journal or in the state that it begins with; and the
    endpoint that is no more is in nobody's way."""
    one, watcher = joined(manager.address), joined(manager.address)
    inside = joined(opened(one, manager, "own com.example.In"))
    assert inside.reply_to(inside.driver(b"RequestName", "su", "com.example.In", 0)).body == [1]
    watcher.reply_to(watcher.driver(b"AddMatch", "s", "member='NameOwnerChanged'"))
    if again:
        upgrade(one)
    settled(watcher)
    manager.crash()
    assert inside.receive() is None
    number = inside.unique_name
    left = [m.body for m in settled(watcher) if m.member == "NameOwnerChanged"]
    assert left == [["com.example.In", number, ""], [number, number, ""]]
    newcomer = joined(manager.address)
    assert newcomer.unique_name != number
    address = opened(one, manager, "own com.example.In")
    inside = joined(address)
    assert upgrade(one)["connections"] == 4
    assert inside.reply_to(inside.driver(b"RequestName", "su", "com.example.In", 0)).body == [1]


def test_a_policy_for_groups(manager: Manager) -> None:
    """Of whom could not be saved nobody can say in which groups he is."""
    config = manager.folder / "bus.conf"
    rule = '<policy group="0"><allow own="com.example.N"/></policy></busconfig>'
    config.write_text(config.read_text().replace("</busconfig>", rule))
    one, tracer = joined(manager.address), joined(manager.address)
    tracer.reply_to(tracer.driver(b"Start", "a{sv}", {}, interface=b"org.jitney.Trace1"))
    manager.crash()
    assert one.reply_to(one.driver(b"GetId")).type == wire.RETURN


def test_a_store_that_is_full(manager: Manager) -> None:
    """Whoever is in it stays in it, and the journal, when another one begins."""
    manager.most = 5
    one, two = joined(manager.address), joined(manager.address)
    settled(two)
    three = joined(manager.address)
    until(lambda: "jitney-2" in manager.stored)
    for journal in (2, 3):
        upgrade(one)
        until(lambda number=journal: f"jitney-journal-{number}" in manager.stored)
        until(lambda: "jitney-journal-0" in manager.stored)
    assert len(manager.stored) == 5
    manager.crash()
    for client in (one, two):
        assert client.reply_to(client.driver(b"GetId")).type == wire.RETURN
    assert three.receive() is None
    assert not one.reply_to(one.driver(b"NameHasOwner", "s", three.unique_name)).body[0]


def test_as_many_as_a_process_can_start_with(manager: Manager) -> None:
    """More descriptors than may be open, and Python finds no place for its own files."""
    manager.files = 128
    manager.crash()
    clients = [joined(manager.address) for _ in range(140)]
    settled(clients[-1])
    manager.crash()
    first, last = clients[0], clients[-1]
    assert first.reply_to(first.driver(b"GetId")).type == wire.RETURN
    assert last.receive() is None
    stored = [name for name in manager.stored if name[7:].isdecimal()]
    assert len(stored) == 64


def test_who_is_ended_hears_of_it_from_us(manager: Manager) -> None:
    """Not from the manager, who has his socket as well, and may be slow or busy."""
    one = joined(manager.address)
    until(lambda: "jitney-1" in manager.stored)
    manager.forgetful = False
    one.send(b"nonsense that is no message")
    assert one.receive() is None


def test_an_orderly_end_keeps_nothing(manager: Manager) -> None:
    one = joined(manager.address)
    until(lambda: "jitney-1" in manager.stored)
    os.kill(manager.main, signal.SIGTERM)
    assert one.receive() is None
    until(lambda: not manager.stored)


def test_killed_at_random(manager: Manager) -> None:
    """Whoever was not in the midst of something is there again, each time, with names and rules."""
    random.seed(5)
    quiet = [joined(manager.address) for _ in range(5)]
    for i, client in enumerate(quiet):
        client.reply_to(client.driver(b"RequestName", "su", f"com.example.Q{i}", 0))
        client.reply_to(client.driver(b"AddMatch", "s", f"member='For{i}'"))
        settled(client)
    for _ in range(5):
        stop = threading.Event()
        worker = threading.Thread(target=busy, args=(manager.address, stop))
        worker.start()
        time.sleep(random.uniform(0.01, 0.4))
        manager.crash()
        stop.set()
        worker.join()
        asker = joined(manager.address)
        for i, client in enumerate(quiet):
            owner = asker.reply_to(asker.driver(b"GetNameOwner", "s", f"com.example.Q{i}"))
            assert owner.body == [client.unique_name]
            asker.message(
                wire.SIGNAL, destination=None, path=b"/", interface=b"a.b", member=b"For%d" % i
            )
            settled(asker)
            assert [m.member for m in settled(client) if m.sender == asker.unique_name] == [
                f"For{i}"
            ]
        asker.close()


def test_calls_at_random(manager: Manager) -> None:
    """Whoever is killed at whatever moment: of each call that came to its receiver, the caller gets
    the reply or is told that there is none."""
    random.seed(7)
    server = joined(manager.address)
    callers = [joined(manager.address) for _ in range(8)]
    to = server.unique_name.encode()
    told = answered = unheard = 0
    for turn in range(6):
        ending = time.monotonic() + random.uniform(0.02, 0.3)
        killer = threading.Timer(random.uniform(0, 0.02), os.kill, (manager.main, 9))
        waiting: dict[RawClient, int] = {}
        seen: set[int] = set()
        number = 1000 * turn
        started = False
        while time.monotonic() < ending or alive(manager.main):
            for client in callers:
                if client not in waiting:
                    number += 1
                    waiting[client] = number
                    client.message(destination=to, path=b"/", member=b"M", serial=number * 100)
                elif arrived(client):
                    got = client.receive()
                    assert got is not None
                    if got.reply_serial == 100 * waiting[client]:
                        del waiting[client]
            while arrived(server):
                serve(server, seen)
            if time.monotonic() >= ending and not started:
                started = True
                killer.start()
        killer.join()
        manager.crash(killed=True)
        # What was in the callers' sockets goes to the server, which answers all that has come.
        found = {client: settled(client) for client in callers}
        for _ in range(2):
            asked = server.driver(b"GetId")
            while serve(server, seen) != asked:
                pass
        for client, last in waiting.items():
            came = {m.reply_serial: m for m in found[client] + settled(client)}
            serial = 100 * last
            if serial in came:
                told += came[serial].error_name == NO_REPLY
                answered += came[serial].error_name is None
            else:
                assert serial not in seen, "it came, and nobody is told"
                unheard += 1
    assert told + answered > 5 * unheard


def arrived(client: RawClient) -> bool:
    poll = select.poll()
    poll.register(client.sock, select.POLLIN)
    return bool(client._unread) or bool(poll.poll(0))


def serve(server: RawClient, seen: set[int]) -> int:
    """Answers a call, if it is one; what it is a reply to."""
    message = server.receive()
    assert message is not None
    if message.type == wire.CALL:
        seen.add(message.serial)
        assert message.sender is not None
        server.message(
            wire.RETURN, destination=message.sender.encode(), reply_serial=message.serial
        )
    return message.reply_serial


def busy(address: str, stop: threading.Event) -> None:
    """Comes, does this and that, and goes, until the bus is gone."""
    while not stop.is_set():
        try:
            client = RawClient(address, timeout=2)
            client.hello()
            client.driver(b"RequestName", "su", "com.example.Busy", 0)
            client.driver(b"AddMatch", "s", "interface='a.b'")
            for _ in range(20):
                client.message(
                    wire.SIGNAL, destination=None, path=b"/", interface=b"a.b", member=b"Noise",
                    signature="ay", values=[bytes(3000)],
                )  # fmt: skip
            client.reply_to(client.driver(b"GetId"))
            client.close()
        except (OSError, AttributeError):
            continue
