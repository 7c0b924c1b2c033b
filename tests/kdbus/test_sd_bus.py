"""sd-bus itself as a client of kdbus: over a mount and preloaded on sockets, alone and on one bus
with classic D-Bus.

Needs a libsystemd of the time when it knew kdbus, which nobody installs any more, and a compiler:

    JITNEY_SD_BUS="-I/systemd/src -L/systemd/.libs -Wl,-rpath,/systemd/.libs -l:libsystemd.so.0" \\
        pytest tests/kdbus/test_sd_bus.py

`sdbus.c` is what runs on it.

Invariant: the same program is service and user, on kdbus and on a unix socket, and cannot tell.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import kdbusmount
import kdbusshim
import nativeserver
import pytest
from worldsdaemon import Both, started

from jitney.kdbus import preload

FLAGS = "JITNEY_SD_BUS"
NAME = "com.example.Service"
DESCRIPTORS = {"Take": "Take: taken", "Give": "Give: given"}
USED = [
    "Repeat: ababab",
    "Refuse: com.example.Error.No: Never",
    "Unknown: org.freedesktop.DBus.Error.UnknownMethod: ...",
    "Repeat: org.freedesktop.DBus.Error.ServiceUnknown: ...",
    "Length: 1048576",
    "Who: me me",
    "Take: taken",
    "Give: given",
    "heard ouch",
    f"changed {NAME} owner nobody",
    "Repeat: org.freedesktop.DBus.Error.ServiceUnknown: ...",
]
"""What the user says of it all; "..." is in words that differ."""


def why_not() -> str:
    if not os.environ.get(FLAGS):
        return f"{FLAGS} is not set to how a compiler finds a libsystemd with kdbus"
    return "" if shutil.which("gcc") else "there is no gcc"


pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"sd-bus: {why_not()}")
WAYS = ["mount", "sockets"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sd-bus") / "sdbus"
    source = Path(__file__).with_name("sdbus.c")
    words = ["gcc", "-Wall", "-o", str(out), str(source), *shlex.split(os.environ[FLAGS])]
    subprocess.run(words, check=True)
    return out


def environment(way: str) -> dict[str, str]:
    if way == "mount":
        if kdbusmount.why_not():
            pytest.skip(kdbusmount.why_not())
        return dict(os.environ)
    if kdbusshim.why_not():
        pytest.skip(kdbusshim.why_not())
    shim = preload.library()
    assert shim is not None
    return preload.environment(shim)


@contextmanager
def serving(program: Path, address: str, way: str) -> Iterator[None]:
    process = subprocess.Popen(
        [str(program), address, "serve", NAME], env=environment(way), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def used(program: Path, address: str, way: str) -> list[str]:
    done = subprocess.run(
        [str(program), address, "use", NAME],
        env=environment(way), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    return [
        ": ".join([*line.split(": ")[:2], "..."]) if ".DBus.Error." in line else line
        for line in lines
    ]


def expected(way: str, service: str, user: str) -> list[str]:
    """What FUSE cannot give to who receives is -1 there."""
    out = list(USED)
    if way == "mount" and service == "kernel":
        out[6] = "Take: System.Error.EBADF: Bad file descriptor"
    if way == "mount" and user == "kernel":
        out[7] = "Give: -"
    return out


@pytest.mark.parametrize("way", WAYS)
def test_on_kdbus_alone(way: str, program: Path, tmp_path: Path) -> None:
    environment(way)
    tree = tmp_path / "kdbus"
    with ExitStack() as stack:
        bus: Any
        if way == "mount":
            stack.enter_context(kdbusmount.mounted(tree))
            bus = kdbusmount.Bus(tree)
        else:
            from nativeclient import Bus

            stack.enter_context(nativeserver.served(tree))
            bus = Bus(tree)
        stack.callback(bus.close)
        address = f"kernel:path={bus.path}"
        with serving(program, address, way):
            assert used(program, address, way) == expected(way, "kernel", "kernel")


@pytest.fixture(scope="module", params=WAYS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    environment(request.param)
    with started(tmp_path_factory.mktemp("both") / "kdbus", request.param) as found:
        yield found


def addresses(both: Both) -> dict[str, str]:
    return {"kernel": f"kernel:path={both.path}", "unix": both.address}


@pytest.mark.parametrize("service", ["kernel", "unix"])
@pytest.mark.parametrize("user", ["kernel", "unix"])
def test_on_one_bus(both: Both, program: Path, service: str, user: str) -> None:
    where = addresses(both)
    with serving(program, where[service], both.way):
        lines = used(program, where[user], both.way)
    assert lines == expected(both.way, service, user)


async def test_dbus_fast_uses_it(both: Both, program: Path) -> None:
    fast = pytest.importorskip("dbus_fast")
    from dbus_fast.aio import MessageBus

    with serving(program, addresses(both)["kernel"], both.way):
        bus = await MessageBus(bus_address=both.address, negotiate_unix_fd=True).connect()
        heard: asyncio.Queue[Any] = asyncio.Queue()
        node = await bus.introspect(NAME, "/a")
        proxy = bus.get_proxy_object(NAME, "/a", node).get_interface("com.example.I")
        proxy.on_poked(heard.put_nowait)
        assert await proxy.call_repeat("xy", 2) == "xyxy"
        with pytest.raises(fast.DBusError, match="Never"):
            await proxy.call_refuse()
        await proxy.call_poke()
        assert await asyncio.wait_for(heard.get(), 20) == "ouch"
        fd = await proxy.call_give()
        assert os.read(fd, 9) == b"given"
        os.close(fd)
        await proxy.call_quit()
        bus.disconnect()


async def test_it_uses_dbus_fast(both: Both, program: Path) -> None:
    fast = pytest.importorskip("dbus_fast")
    from dbus_fast.aio import MessageBus

    bus = await MessageBus(bus_address=both.address, negotiate_unix_fd=True).connect()
    await bus.request_name(NAME)

    def serve(msg: Any) -> Any:
        answer = fast.Message.new_method_return
        if msg.interface != "com.example.I":
            return None
        if msg.member == "Repeat":
            return answer(msg, "s", [msg.body[0] * msg.body[1]])
        if msg.member == "Refuse":
            return fast.Message.new_error(msg, "com.example.Error.No", "Never")
        if msg.member == "Length":
            return answer(msg, "u", [len(msg.body[0])])
        if msg.member == "Who":
            return asyncio.ensure_future(tell(msg)) and True
        if msg.member == "Take":
            text = os.read(msg.unix_fds[0], 100).decode()
            os.close(msg.unix_fds[0])
            return answer(msg, "s", [text])
        if msg.member == "Give":
            near, far = os.pipe()
            os.write(far, b"given")
            os.close(far)
            return answer(msg, "h", [0], [near])
        if msg.member == "Poke":
            bus.send(fast.Message.new_signal("/a", "com.example.I", "Poked", "s", ["ouch"]))
            return answer(msg)
        if msg.member == "Quit":
            bus.send(answer(msg))
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(leave()))
            return True
        return None

    async def leave() -> None:
        await bus.release_name(NAME)

    async def ask(member: str, name: str) -> Any:
        driver = "org.freedesktop.DBus"
        call = fast.Message(
            destination=driver, path="/org/freedesktop/DBus", interface=driver, member=member,
            signature="s", body=[name],
        )  # fmt: skip
        return (await bus.call(call)).body[0]

    async def tell(msg: Any) -> None:
        uid = await ask("GetConnectionUnixUser", msg.sender)
        pid = await ask("GetConnectionUnixProcessID", msg.sender)
        bus.send(fast.Message.new_method_return(msg, "uu", [uid, pid]))

    bus.add_message_handler(serve)
    loop = asyncio.get_running_loop()
    where = addresses(both)["kernel"]
    lines = await loop.run_in_executor(None, used, program, where, both.way)
    assert lines == expected(both.way, "unix", "kernel")
    bus.disconnect()
