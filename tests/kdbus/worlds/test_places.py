"""Where clients of kdbus come in to a classic bus: who may, what cannot be, and the end.

Invariant: every test has a daemon of its own; what is served is gone when that ends.
"""

from __future__ import annotations

import errno
import os
import pwd
import signal
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import buses
import kdbusmount
import kdbusnative
import kernel
import nativeserver
import pytest
from kdbuskit import Errno, access, command, text, u64
from kdbusmount import is_mounted
from waiting import alive, comes, until
from worldsdaemon import (
    CALL,
    NAME,
    OPTIONS,
    WAYS,
    Both,
    ByFrame,
    ByIoctl,
    denied,
    gone,
    only,
    started,
)
from worldskit import values

from jitney.broker.kdbus import constants as c
from jitney.compat import wire

as_root = pytest.mark.skipif(bool(kdbusnative.why_not()), reason=kdbusnative.why_not() or "-")
can_mount = pytest.mark.skipif(bool(kdbusmount.why_not()), reason=kdbusmount.why_not() or "-")
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other users reach."""
    with tempfile.TemporaryDirectory(prefix="jitney-places-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@every_way
def test_reload_and_end(way: str, tmp_path: Path) -> None:
    with started(tmp_path / "kdbus", way) as both:
        classic, peer = both.classic(), both.kdbus()
        classic.reply_to(classic.driver(b"ReloadConfig"))
        peer.call(classic.unique_name.encode(), 5)
        assert only(classic, "M")
        os.kill(both.daemon.pid, signal.SIGTERM)
        assert classic.receive() is None
        assert comes(lambda: gone(way, both.tree))
        with pytest.raises((Errno, OSError, EOFError)):
            peer.call(classic.unique_name.encode(), 6)
    if way == "sockets":
        assert not both.tree.exists()


@every_way
def test_fork_serves_as_well(way: str, tmp_path: Path) -> None:
    tree = tmp_path / "kdbus"
    config = tmp_path / "bus.conf"
    config.write_text(buses.CONFIG.format(type="session", directory=tmp_path, extra=""))
    (tmp_path / "services").mkdir()
    words = [*buses.jitney_command(), f"--config-file={config}", "--fork", "--print-pid=1"]
    with (tmp_path / "pid").open("wb") as out:
        # Both are the daemon's as well, for as long as it runs.
        subprocess.run(
            [*words, f"{OPTIONS[way]}={tree}"], stdout=out, stderr=out, timeout=30, check=True
        )
    pid = int((tmp_path / "pid").read_text().splitlines()[-1])
    try:
        bus = tree / f"{os.geteuid()}-user" / "bus"
        a, b = ((ByFrame if way == "sockets" else ByIoctl)(bus) for _ in range(2))
        a.call(b.name)
        assert b.hear().member == b"M"
        a.close()
        b.close()
    finally:
        os.kill(pid, signal.SIGTERM)
    assert comes(lambda: gone(way, tree))


@can_mount
def test_what_cannot_be_mounted_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = [*buses.jitney_command(), f"--kdbus-mount={tmp_path}/file"]
    with (
        pytest.raises(RuntimeError, match="Failed to mount kdbus's file system"),
        buses.running(words),
    ):
        pass


def refusal(path: Path, **more: Any) -> str:
    """Why a bus with its sockets there does not start."""
    words = [*buses.jitney_command(), f"--kdbus-sockets={path}"]
    with pytest.raises(RuntimeError) as caught, buses.running(words, **more):
        pass
    said = str(caught.value)
    assert "Failed to start message bus: Failed to make kdbus's sockets" in said
    return said


def test_what_cannot_have_sockets_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refusal(tmp_path / "file")
    assert "No such file or directory" in refusal(tmp_path / "nowhere" / "kdbus")
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    assert "others may write to this directory" in refusal(folder)
    with nativeserver.served(tmp_path / "kdbus") as running:
        assert "served by another process" in refusal(running.path)
        assert (running.path / "control").exists()
    # A bus that could not be made leaves nothing, and takes nothing of others away.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / f"{os.geteuid()}-user").write_text("precious")
    assert "File exists" in refusal(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == [f"{os.geteuid()}-user"]


@as_root
def test_somebody_elses_directory_is_refused(open_path: Path) -> None:
    folder = open_path / "kdbus"
    folder.mkdir()
    os.chown(folder, 1000, 1000)
    assert "does not belong to the user with uid 0" in refusal(folder)
    user = "<user>nobody</user>"
    assert "does not belong to the user with uid 65534" in refusal(folder, extra=user)
    # One of root's that is in use for something is not given away.
    os.chown(folder, 0, 0)
    (folder / "file").write_text("")
    assert "does not belong to the user with uid 65534" in refusal(folder, extra=user)
    assert folder.stat().st_uid == 0


@can_mount
@pytest.mark.parametrize("user", ["nobody", "root"])
def test_mount_of_a_bus_that_becomes_another_user_is_refused(user: str, tmp_path: Path) -> None:
    """Or the same without capabilities."""
    words = [*buses.jitney_command(), f"--kdbus-mount={tmp_path}/kdbus"]
    with (
        pytest.raises(RuntimeError, match="needs a bus that stays who it is"),
        buses.running(words, extra=f"<user>{user}</user>"),
    ):
        pass
    assert not (tmp_path / "kdbus").exists()


RULES = """<policy user="root"><allow own="com.example.Name"/></policy>
<policy context="default"><deny own="*"/>
<deny send_interface="com.example.I" send_member="Secret"/></policy>"""


@as_root
@every_way
@pytest.mark.parametrize("user", ["", "<user>nobody</user>"], ids=["stays", "changes"])
def test_system_bus_and_other_users(way: str, user: str, open_path: Path) -> None:
    """Who may open the bus is the file system's business, who may talk both policies'."""
    if user and way == "mount":
        pytest.skip("a mount is refused")
    with started(open_path / "kdbus", way, type="system", extra=user + RULES) as both:
        assert both.path.stat().st_uid == 0
        peer, mailer = both.kdbus(), both.classic(uid=1000)
        peer.acquire(NAME)
        assert denied(lambda: peer.acquire(b"com.example.Other")) == errno.EPERM
        serial = mailer.message(destination=NAME, **CALL)
        error = mailer.reply_to(serial)
        assert error.error_name == "org.freedesktop.DBus.Error.AccessDenied"
        # A policy holder of kdbus's lets everybody talk to the name.
        items = text(c.ITEM_NAME, NAME) + access(c.FOR_WORLD, c.TALK)
        hello = command("HELLO", c.HELLO_POLICY_HOLDER, u64(0, 0, 0, 0, 4096), items)
        holder: Any
        if way == "mount":
            holder = os.open(both.path, os.O_RDWR | os.O_CLOEXEC)
            kdbusmount.ioctl(holder, "HELLO", hello)
        else:
            from nativeclient import Socket

            holder = Socket(both.path)
            holder.do("HELLO", hello)
        mailer.message(destination=NAME, **CALL)
        assert peer.hear().sender == mailer.unique_name.encode()
        serial = mailer.message(destination=NAME, **(CALL | {"member": b"Secret"}))
        error = mailer.reply_to(serial)
        assert "Rejected send message" in error.body[0]
        if way == "mount":
            os.close(holder)
        else:
            holder.close()


@as_root
def test_sockets_of_a_bus_that_becomes_another_user(open_path: Path) -> None:
    """As Debian's system bus does. Everybody gets in, and is known as who they are."""
    nobody = pwd.getpwuid(65534)
    tree = open_path / "kdbus"
    extra = f'<user>{nobody.pw_name}</user><policy context="default"><allow own="*"/></policy>'
    with started(tree, "sockets", type="system", extra=extra) as both:
        # The address is printed before.
        status = Path(f"/proc/{both.daemon.pid}/status")
        assert comes(lambda: f"Uid:\t{nobody.pw_uid}\t" in status.read_text())
        assert (tree.stat().st_uid, stat.S_IMODE(tree.stat().st_mode)) == (65534, 0o755)
        assert both.path == tree / "0-system" / "bus"
        assert stat.S_IMODE(both.path.stat().st_mode) == 0o666
        assert stat.S_IMODE((tree / "control").stat().st_mode) == 0o600
        root, classic = both.kdbus(), both.classic(uid=1)
        root.acquire(NAME)
        with kdbusnative.AsUser(1000, (4242,)):
            other, third = ByFrame(both.path), ByFrame(both.path)
            other.call(third.name, 3)
            assert denied(lambda: other.call(NAME, 4)) == errno.EPERM
        both.closing += [other, third]
        # What the kernel knows of those whom the bus may not look into.
        got = third.recv()
        creds, pids = got.get(c.ITEM_CREDS), got.get(c.ITEM_PIDS)
        assert creds is not None
        assert pids is not None
        assert struct.unpack("<8Q", creds)[:2] == (1000, 1000)
        assert struct.unpack("<3Q", pids)[0] == os.getpid()
        # A classic client is told of both, and talks to both.
        for peer, uid in ((root, 0), (other, 1000)):
            asked = classic.driver(b"GetConnectionUnixUser", "s", peer.name.decode())
            assert classic.reply_to(asked).body == [uid]
            with kdbusnative.AsUser(uid, ()):
                peer.call(classic.unique_name.encode(), 7, signature=b"s", values=["hello"])
            call = only(classic, "M")
            classic.message(
                wire.RETURN, destination=peer.name, reply_serial=call.serial, signature="s",
                values=["you"],
            )  # fmt: skip
            assert values(peer.hear()) == ["you"]
        assert "Traceback" not in both.log
    assert os.listdir(tree) == []


@as_root
def test_what_the_dead_left_of_another_user(open_path: Path) -> None:
    tree = open_path / "kdbus"
    extra = "<user>nobody</user>"
    with started(tree, "sockets", type="system", extra=extra) as both:
        os.kill(both.daemon.pid, signal.SIGKILL)
        # Until then it still has the place locked.
        until(lambda: not alive(both.daemon.pid), "it is dead")
        assert (tree / "control").exists()
        with started(tree, "sockets", type="system", extra=extra) as again:
            peer = again.kdbus()
            peer.call(peer.name, 4)
            assert peer.hear().member == b"M"


@can_mount
def test_other_loops_are_refused_with_a_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not let go of the lock while they sleep."""
    monkeypatch.setenv("JITNEY_LOOP", "asyncio")
    with started(tmp_path / "kdbus", "mount") as both:
        assert comes(lambda: "--kdbus-mount needs the bus's own event loop" in both.log)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_sockets_are_served_on_any_loop(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    monkeypatch.setenv("JITNEY_LOOP", loop)
    with started(tmp_path / "kdbus", "sockets") as both:
        classic, peer = both.classic(), both.kdbus()
        serial = classic.message(destination=peer.name, **CALL)
        peer.reply(peer.hear(), signature=b"s", values=["here"])
        assert classic.reply_to(serial).body == ["here"]


@can_mount
def test_mount_and_sockets_at_once(tmp_path: Path) -> None:
    tree = tmp_path / "sockets"
    mount = tmp_path / "mount"
    with started(tree, "sockets", f"--kdbus-mount={mount}") as both:
        classic, near = both.classic(), both.kdbus()
        far = ByIoctl(mount / f"{os.geteuid()}-user" / "bus")
        both.closing.append(far)
        near.acquire(NAME)
        for turn in range(1, 20):
            # Each to each; answers come from other threads than calls went to.
            far.call(NAME, turn, signature=b"u", values=[turn])
            near.reply(near.hear())
            assert far.hear().reply_cookie == turn
            near.call(far.name, turn)
            far.reply(far.hear())
            assert near.hear().reply_cookie == turn
            serial = classic.message(destination=far.name, **CALL)
            far.reply(far.hear())
            assert classic.reply_to(serial).type == wire.RETURN
            far.call(classic.unique_name.encode(), turn)
            got = only(classic, "M")
            classic.message(wire.RETURN, destination=far.name, reply_serial=got.serial)
            assert far.hear().reply_cookie == turn
        # A deadline, whichever of the two it came by.
        import time

        for peer in (near, far):
            peer.call(classic.unique_name.encode(), 99, timeout=time.monotonic_ns() + 50_000_000)
            assert peer.recv().kinds()[0] == c.ITEM_REPLY_TIMEOUT
        if kernel.GETFD:
            end, other = os.pipe()
            far.call(NAME, 77, signature=b"h", values=[0], fds=[other])
            near.hear()
            assert os.fstat(near.descriptors()[0]).st_ino == os.fstat(end).st_ino
            for fd in (end, other, *near.descriptors()):
                os.close(fd)
    assert comes(lambda: not is_mounted(mount))
    assert not tree.exists()


@every_way
def test_live_upgrade_is_refused(way: str, tmp_path: Path) -> None:
    with started(tmp_path / "kdbus", way) as both:
        both.classic()
        os.kill(both.daemon.pid, signal.SIGUSR2)
        refused = "Upgrade is not possible: there are clients of kdbus"
        assert comes(lambda: refused in both.log)
        peer = both.kdbus()
        peer.call(peer.name)
        assert peer.hear().member == b"M"


def test_jitneys_own_client(tmp_path: Path) -> None:
    """What `jitney.client` sends in sd-bus's form, a classic client hears, and back."""
    import asyncio

    from worldskit import dbus2

    from jitney.client import connect
    from jitney.kdbus import transcode

    def words(said: Any) -> bytes:
        return b"".join(map(bytes, transcode.lay(said)))

    async def talk(both: Both) -> None:
        classic = both.classic()
        async with await connect(both.path) as peer:
            await peer.acquire(NAME.decode())
            to = int(classic.unique_name[3:])
            kind = {"payload_type": transcode.PAYLOAD_DBUS}
            # The client gives cookies from 1 on, and the bus insists on the same in the payload.
            call = dbus2(
                wire.CALL, 1, destination=b":1.%d" % to, signature=b"s", values=["x"], **CALL
            )
            waiting = asyncio.create_task(peer.call(to, words(call), **kind))
            loop = asyncio.get_running_loop()
            got = await loop.run_in_executor(None, only, classic, "M")
            assert got.body == ["x"]
            near, far = os.pipe()
            classic.message(
                wire.RETURN, destination=NAME, reply_serial=got.serial, signature="h", values=[0],
                fds=[far],
            )  # fmt: skip
            with await waiting as answer:
                assert transcode.parse(bytes(answer.payload), 1).type == wire.RETURN
                os.write(answer.fds[0], b"x")
            os.close(far)
            assert os.read(near, 9) == b"x"
            os.close(near)
            serial = classic.message(destination=NAME, **CALL)
            message = await peer.receive()
            assert message is not None
            with message:
                said = dbus2(
                    wire.RETURN, 2, destination=b":1.%d" % to, reply_cookie=serial, signature=b"s",
                    values=["mine"],
                )  # fmt: skip
                await peer.reply(message, words(said), **kind)
            answer = await loop.run_in_executor(None, classic.reply_to, serial)
            assert answer.body == ["mine"]

    with started(tmp_path / "kdbus", "sockets") as both:
        asyncio.run(talk(both))
