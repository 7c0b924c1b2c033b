"""The directory of sockets: nodes that come and go, whose they are, and what was left by others."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kdbuskit import command, item, text, u64
from kdbusnative import AsUser, why_not
from nativeclient import Bus, Errno, Peer, Socket, answered
from nativeserver import command_line, served

from jitney.broker.kdbus import constants as c

as_root = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


def shape(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    assert stat.S_ISSOCK(found.st_mode)
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


@pytest.mark.parametrize(
    ("flags", "mode"),
    [(0, 0o600), (c.ACCESS_GROUP, 0o660), (c.ACCESS_WORLD, 0o666), (3, 0o666)],
)
def test_nodes(server: Any, flags: int, mode: int) -> None:
    bus = Bus(server.path, "nodes", flags)
    assert shape(bus.path) == (mode, os.geteuid(), os.getegid())
    door = Socket(bus.path)
    items = text(c.ITEM_MAKE_NAME, b"%d-door" % os.geteuid())
    door.do("ENDPOINT_MAKE", command("ENDPOINT_MAKE", flags, items=items))
    node = bus.path.parent / f"{os.geteuid()}-door"
    assert shape(node) == (mode, os.geteuid(), os.getegid())
    peer = Peer(node)
    assert {path.name for path in bus.path.parent.iterdir()} == {"bus", node.name}
    door.close()
    with pytest.raises(EOFError):
        peer.get()
    assert not node.exists()
    bus.close()


def test_control_is_for_all(server: Any) -> None:
    assert shape(server.path / "control")[0] == (0o666 if os.geteuid() == 0 else 0o600)


@as_root
def test_who_may_connect(server: Any) -> None:
    closed = Bus(server.path, "closed", 0)
    with AsUser(1000, ()), pytest.raises(PermissionError):
        Socket(closed.path)
    with AsUser(1000, ()):
        control = Socket(server.path / "control")
        items = text(c.ITEM_MAKE_NAME, b"1000-mine") + item(c.ITEM_BLOOM_PARAMETER, u64(64, 1))
        control.do("BUS_MAKE", command("BUS_MAKE", c.ACCESS_GROUP, items=items))
        node = server.path / "1000-mine" / "bus"
        assert shape(node) == (0o660, 1000, 1000)
        Peer(node)
        # The directory is not the user's to put things into.
        with pytest.raises(PermissionError):
            os.symlink("/etc", node.parent / "1000-door")
        with pytest.raises(PermissionError):
            os.unlink(node)
    with AsUser(1001, ()), pytest.raises(PermissionError):
        Socket(node)
    closed.close()
    control.close()


def test_long_paths(tmp_path: Path) -> None:
    """A socket's address has room for 107 bytes; a bus's name may be 63 long."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir(0o755)
    with served(deep / "kdbus") as running:
        fd = os.open(deep, os.O_PATH)
        near = Path(f"/proc/self/fd/{fd}/kdbus")
        bus = Bus(near, "n" * (62 - len(str(os.geteuid()))))
        assert answered(bus.path)
        assert stat.S_ISSOCK((running.path / bus.path.parent.name / "bus").lstat().st_mode)
        os.close(fd)


def test_what_the_dead_left(tmp_path: Path) -> None:
    root = tmp_path / "kdbus"
    with served(root) as running:
        Bus(root, "left")
        running.process.kill()
        running.process.wait()
        running.process.returncode = 0
        assert (root / "control").exists()
        (root / "a-file").write_text("not ours")
    with served(root):
        assert not (root / f"{os.geteuid()}-left").exists()
        assert answered(Bus(root, "left").path)
    assert [path.name for path in root.iterdir()] == ["a-file"]


def test_one_server_a_directory(tmp_path: Path) -> None:
    root = tmp_path / "kdbus"
    with served(root):
        second = subprocess.run(command_line(root), capture_output=True, check=False)
        assert second.returncode == 1
        assert b"served by another process" in second.stderr
        assert answered(Bus(root).path)


def test_a_directory_that_others_write_to(tmp_path: Path) -> None:
    root = tmp_path / "kdbus"
    root.mkdir()
    root.chmod(0o777)
    second = subprocess.run(command_line(root), capture_output=True, check=False)
    assert second.returncode == 1
    assert b"others may write" in second.stderr


def test_background(tmp_path: Path) -> None:
    root = tmp_path / "kdbus"
    words = [word for word in command_line(root) if word != "--foreground"]
    subprocess.run(words, check=True, timeout=20)
    bus = Bus(root)
    pid = struct_pid(bus.control)
    try:
        assert answered(bus.path)
    finally:
        os.kill(pid, 15)
    with pytest.raises((EOFError, ConnectionResetError)):
        bus.control.get()


def struct_pid(peer: Socket) -> int:
    import struct

    data = peer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("=iII", data)[0])


def test_a_node_that_cannot_be_made(tmp_path: Path) -> None:
    """What stands in the way of a bus's directory makes BUS_MAKE fail, and nothing else."""
    root = tmp_path / "kdbus"
    with served(root):
        (root / f"{os.geteuid()}-there").write_text("")
        with pytest.raises(Errno, match="EEXIST"):
            Bus(root, "there")
        (root / f"{os.geteuid()}-there").unlink()
        assert answered(Bus(root, "there").path)
