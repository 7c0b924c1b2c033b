"""Clients that mean harm, and daemons that die: nobody else has to wait for them.

Each test ends with a call of another client that is answered.
"""

from __future__ import annotations

import errno as e
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kdbusmount import (
    ASK_NOTHING,
    Bus,
    Errno,
    Mounted,
    Peer,
    answered,
    client,
    is_mounted,
    mounted,
    why_not,
)
from waiting import stop, until

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"kdbusfs: {why_not()}")


@pytest.fixture(params=["store", "auto", "auto, the long way"])
def tree(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mounted]:
    pool, _, way = request.param.partition(",")
    if not way:
        monkeypatch.setenv(ASK_NOTHING, "1")
    with mounted(tmp_path / "kdbus", pool) as mount:
        yield mount


def gone(process: subprocess.Popen[bytes]) -> bytes:
    """Waits for the end of a client; what it said."""
    try:
        out, _ = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return out


def ended(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        process.kill()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()


def test_own_pool_as_payload(tree: Mounted) -> None:
    """To read its memory means that it asks us for it."""
    bus = Bus(tree.path)
    receiver = Peer(bus.path)
    process = client("self_pool", str(bus.path), str(receiver.id))
    assert answered(bus.path)
    assert gone(process).endswith(b"sent\n")
    assert answered(bus.path)


def test_memory_that_never_comes(tree: Mounted) -> None:
    bus = Bus(tree.path)
    receiver = Peer(bus.path)
    process = client("userfaults", str(bus.path), str(receiver.id), "12")
    if process.first == b"no userfaultfd\n":  # type: ignore[attr-defined]
        ended(process)
        pytest.skip("no userfaultfd here")
    for _ in range(3):
        assert answered(bus.path)
    assert process.poll() is None
    ended(process)
    assert answered(bus.path)
    with pytest.raises(Errno):
        receiver.recv(wait=0)


def fits(sender: Peer, receiver: Peer, size: int) -> bool:
    try:
        sender.say(receiver.id, bytes(size))
    except Errno as error:
        if error.errno == e.ENOBUFS:
            return False
        raise
    return True


def test_large_payload_that_never_comes(tree: Mounted) -> None:
    """Where it would have been copied to is free again when its sender is gone."""
    bus = Bus(tree.path)
    receiver = Peer(bus.path)
    process = client("userfaults", str(bus.path), str(receiver.id), "3", str(64 << 10))
    if process.first == b"no userfaultfd\n":  # type: ignore[attr-defined]
        ended(process)
        pytest.skip("no userfaultfd here")
    assert answered(bus.path)
    sender = Peer(bus.path)
    payload = bytes(range(256)) * 256
    sender.say(receiver.id, payload)
    assert receiver.recv().payload == payload
    ended(process)
    # Half of the pool is for others, and a third of it for one user. The daemon's thread comes back
    # when the process is gone for good, which is a moment later.
    until(lambda: fits(sender, receiver, 160 << 10), "there is room")
    receiver.recv()
    assert answered(bus.path)


def test_many_whose_memory_never_comes(tree: Mounted) -> None:
    bus = Bus(tree.path)
    receiver = Peer(bus.path)
    hostile = [client("userfaults", str(bus.path), str(receiver.id), "8") for _ in range(4)]
    assert answered(bus.path)
    threads = len(os.listdir(f"/proc/{tree.pid}/task"))
    assert threads < 4 * 8 + 16
    ended(*hostile)
    assert answered(bus.path)


def test_one_that_tries_it_with_many_descriptors(tree: Mounted) -> None:
    """It is told to stop, and the others of its user are not."""
    bus = Bus(tree.path)
    receiver = Peer(bus.path)
    process = client("userfaults", str(bus.path), str(receiver.id), "60")
    assert process.stdout is not None
    if process.first == b"no userfaultfd\n":  # type: ignore[attr-defined]
        ended(process)
        pytest.skip("no userfaultfd here")
    told = 0
    while told < 30:
        told += process.stdout.readline().strip() == b"EBUSY"
    assert len(os.listdir(f"/proc/{tree.pid}/task")) < 40
    assert answered(bus.path)
    ended(process)
    assert answered(bus.path)


def test_stopped_client(tree: Mounted) -> None:
    bus = Bus(tree.path)
    process = client("reader", str(bus.path))
    to = int(process.first)  # type: ignore[attr-defined]
    stop(process.pid)
    sender = Peer(bus.path)
    number = 0
    while not number:
        try:
            sender.say(to, bytes(20_000))
        except Errno as error:
            number = error.errno
    assert number == e.ENOBUFS
    assert answered(bus.path)
    process.send_signal(signal.SIGCONT)
    assert b"read" in gone(process)
    assert answered(bus.path)


def test_death_halfway(tree: Mounted) -> None:
    bus = Bus(tree.path)
    receiver = Peer(bus.path)
    waiting = client("sync_call", str(bus.path), str(receiver.id))
    reading = client("reader", str(bus.path))
    sending = client("self_pool", str(bus.path), str(receiver.id))
    ended(waiting, reading, sending)
    assert answered(bus.path)


def free(process: subprocess.Popen[bytes], words: tuple[bytes, ...]) -> None:
    out = gone(process)
    assert any(word in out for word in words), out


def test_killed_daemon_frees_everybody(tmp_path: Path) -> None:
    with mounted(tmp_path / "kdbus") as mount:
        bus = Bus(mount.path)
        service = Peer(bus.path)
        calling = client("sync_call", str(bus.path), str(service.id))
        reading = client("reader", str(bus.path))
        service.recv()
        mount.process.kill()
        mount.process.wait(30)
        free(calling, (b"ECONNABORTED", b"ENOTCONN"))
        free(reading, (b"OSError", b"Errno"))
        # The watchdog takes the dead mount away, and another daemon can have the place.
        until(lambda: not is_mounted(mount.path), "the mount is gone")
    with mounted(tmp_path / "kdbus") as mount:
        assert answered(Bus(mount.path).path)


def test_hanging_daemon_frees_everybody(tmp_path: Path) -> None:
    with mounted(tmp_path / "kdbus", watchdog=2.0) as mount:
        bus = Bus(mount.path)
        service = Peer(bus.path)
        calling = client("sync_call", str(bus.path), str(service.id))
        service.recv()
        mount.process.send_signal(signal.SIGSTOP)
        free(calling, (b"ECONNABORTED", b"ENOTCONN"))
        mount.process.wait(20)
    with mounted(tmp_path / "kdbus") as mount:
        assert answered(Bus(mount.path).path)
