"""`jitney endpoint` and `jitney proxy`, as they are typed and as sandbox launchers run them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import buses
import pytest
from rawclient import RawClient

from jitney.compat.endpoints.policy import BadGrant, parse, read
from jitney.compat.endpoints.proxy import Line, Wrong

JITNEY = [
    sys.executable,
    "-c",
    "import sys; from jitney.compat.command import main; sys.exit(main(sys.argv[1:]))",
]
INSTALLED = Path("/usr/libexec/installed-tests/xdg-dbus-proxy/test-proxy")
PROGRAM = """
import os, sys
sys.path[:0] = %r
from rawclient import RawClient
client = RawClient(os.environ["DBUS_SESSION_BUS_ADDRESS"])
client.hello()
client.driver(b"AddMatch", "s", "member='NameOwnerChanged',arg0namespace='com.example.Seen'")
client.driver(b"AddMatch", "s", "type='signal'")
client.driver(b"NameHasOwner", "s", "org.example.Asked")
client.driver(b"RequestName", "su", "com.example.Mine", 0)
client.driver(b"GetNameOwner", "s", "com.example.Mine")
client.message(destination=b"com.example.Svc", path=b"/o", interface=b"com.example.I",
               member=sys.argv[1].encode(), flags=1)
client.reply_to(client.driver(b"GetId"))
sys.exit(3)
"""


def run(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*JITNEY, *words], capture_output=True, text=True, timeout=30, check=False, **more
    )


def names(address: str) -> list[str]:
    with RawClient(address) as client:
        client.hello()
        found: list[str] = client.reply_to(client.driver(b"ListNames")).body[0]
        return found


def started(words: Sequence[str]) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([*JITNEY, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


# endpoint


def test_an_endpoint_lasts_as_long_as_the_command(bus: buses.Daemon) -> None:
    path = bus.directory / "door"
    policy = bus.directory / "policy"
    policy.write_text("# who is who\n\nsee com.example.*   # and all below\n")
    process, address = started(
        ["endpoint", "add", "box", "--address", bus.address, "--listen", str(path),
         "--policy", str(policy)]
    )  # fmt: skip
    assert address.startswith(f"unix:path={path},guid=")
    assert names(address)[0] == "org.freedesktop.DBus"
    assert len(names(address)) == 2
    listed = run("endpoint", "list", "--address", bus.address)
    assert "box" in listed.stdout
    assert "1 lines" in listed.stdout
    (record,) = json.loads(run("endpoint", "list", "--address", bus.address, "--json").stdout)
    assert record["policy"] == ["see com.example.*"]
    assert "(by endpoint" not in run("peers", "--address", bus.address).stdout
    with RawClient(address) as client:
        client.hello()
        assert "(by endpoint box)" in run("peers", "--address", bus.address).stdout
        assert "endpoint  box" in run("peers", "--address", bus.address, client.unique_name).stdout
        told = run(
            "explain", "--address", bus.address, "--sender", client.unique_name,
            "--destination", "com.example.Seen", "--interface", "com.example.I", "--member", "M",
        )  # fmt: skip
        assert "endpoint box, whose policy is asked first: it lets it see com.example.Seen" in (
            told.stdout
        )
    assert run("endpoint", "remove", "box", "--address", bus.address).returncode == 0
    assert process.wait(30) == 2  # its endpoint is gone
    assert not path.exists()
    assert process.stdout is not None
    process.stdout.close()


def test_a_persistent_one_outlasts_it(bus: buses.Daemon) -> None:
    path = str(bus.directory / "door")
    done = run("endpoint", "add", "box", "--address", bus.address, "--listen", path, "--persistent")
    assert done.returncode == 0
    assert len(names(f"unix:path={path}")) == 2
    done = run("endpoint", "add", "box", "--address", bus.address, "--listen", path, "--persistent")
    assert done.returncode == 2
    assert done.stderr == "jitney endpoint: There is an endpoint box already\n"


def test_mistakes_in_a_policy_have_a_place(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.write_text("see a.b\n\n talk a.b.*  # fine\ncall a.b=x y\n")
    done = run(
        "endpoint", "add", "box", "--address", "unix:path=/nowhere", "--listen", "/x",
        "--policy", str(policy),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"jitney endpoint: {policy}:4: 'x y' is not INTERFACE.MEMBER, INTERFACE.* or *\n"
    )


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("see a.b", (b"a.b", 1, False, 3, None, False, None, None)),
        ("own a.b.*", (b"a.b", 3, True, 3, None, False, None, None)),
        ("call a.b=*", (b"a.b", 2, False, 1, None, False, None, None)),
        ("call a.b=", (b"a.b", 2, False, 1, None, False, None, None)),
        ("call a.b=c.d.*@/e/*", (b"a.b", 2, False, 1, b"/e", True, b"c.d", None)),
        ("broadcast a.b.*=c.d.E@/", (b"a.b", 2, True, 2, b"/", False, b"c.d", b"E")),
        ("call a.b=@/*", (b"a.b", 2, False, 1, None, False, None, None)),
    ],
)
def test_lines(line: str, want: tuple[Any, ...]) -> None:
    grant = parse(line)
    assert (
        grant.name, grant.level, grant.subtree, grant.what, grant.path, grant.below,
        grant.interface, grant.member,
    ) == want  # fmt: skip


@pytest.mark.parametrize(
    "line", ["", "see", "see a", "see a.b c.d", "call a.b=@x", "call a.b=c..d", "talk a.*", "own *"]
)
def test_what_is_no_line(line: str) -> None:
    with pytest.raises(BadGrant):
        parse(line)


def test_learns_what_a_program_needs(bus: buses.Daemon) -> None:
    written = bus.directory / "learned"
    service = RawClient(bus.address)
    service.hello()
    service.reply_to(service.driver(b"RequestName", "su", "com.example.Svc", 0))
    program = [sys.executable, "-c", PROGRAM % (sys.path,), "M"]
    environ = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": bus.address}
    done = run(
        "endpoint", "learn", "--listen", str(bus.directory / "door"), "--write", str(written),
        "--", *program, env=environ,
    )  # fmt: skip
    assert done.returncode == 3  # what the program said
    assert read(written.read_text(), str(written)) == [
        "own com.example.Mine", "see com.example.Seen.*", "call com.example.Svc=com.example.I.M",
        "see org.example.Asked",
    ]  # fmt: skip
    # With that as the policy it gets as far, and nothing else does.
    again = bus.directory / "again"
    done = run(
        "endpoint", "learn", "--listen", str(bus.directory / "door"), "--policy", str(written),
        "--write", str(again), "--", *program, env=environ,
    )  # fmt: skip
    assert again.read_text() == written.read_text()
    other = [*program[:-1], "N"]
    run(
        "endpoint", "learn", "--listen", str(bus.directory / "door"), "--policy", str(written),
        "--write", str(again), "--", *other, env=environ,
    )  # fmt: skip
    assert "# call com.example.Svc=com.example.I.N" in again.read_text().splitlines()
    service.close()


# proxy


def test_a_command_line_is_xdg_dbus_proxy_s() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"--see=a.b\0unix:path=/c\0/d\0--log")
    os.close(write_end)
    line = Line(["--fd=7", "unix:path=/a", "/b", "--filter", f"--args={read_end}", "--own=e.f.*"])
    os.close(read_end)
    first, second = line.proxies
    assert (line.fd, first.address, first.path) == (7, "unix:path=/a", "/b")
    assert first.lines == ["see a.b"]
    assert first.options == {"filter": True}
    assert second.lines == ["own e.f.*"]
    assert second.options == {"filter": False, "log": True}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--filter"], "Unknown argument --filter"),
        (["unix:path=/a"], "No socket path given"),
        (["unix:path=/a", "--filter"], "No socket path given"),
        (["unix:path=/a", "/b", "--talk=a"], "'a' is not a valid dbus name"),
        (["unix:path=/a", "/b", "--call=a.b"], "'a.b' is not a valid name + rule"),
        (["unix:path=/a", "/b", "--nonsense"], "Unknown argument --nonsense"),
        (["--fd=x"], "'x' is no file descriptor"),
        (["--fd=3"], "No proxies specified"),
    ],
)
def test_what_is_no_command_line(words: list[str], text: str) -> None:
    with pytest.raises(Wrong, match=f"^{text}$".replace("+", r"\+")):
        Line(words)


@pytest.mark.skipif(buses.REFERENCE is None, reason="no dbus-daemon")
def test_another_bus_opens_no_endpoints() -> None:
    assert buses.REFERENCE is not None
    with buses.running([buses.REFERENCE]) as daemon:
        done = run("proxy", daemon.address, str(daemon.directory / "door"), "--filter")
        assert done.returncode == 1
        assert done.stderr == (
            f"jitney proxy: {daemon.address} is no jitney, or an old one: it opens no endpoints\n"
        )


def test_two_at_once_and_both_go_with_the_descriptor(bus: buses.Daemon) -> None:
    doors = [str(bus.directory / name) for name in ("a", "b")]
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [*JITNEY, "proxy", f"--fd={write_end}", bus.address, doors[0], "--filter", bus.address,
         doors[1]],
        pass_fds=[write_end],
    )  # fmt: skip
    os.close(write_end)
    assert os.read(read_end, 1) == b"x"
    assert len(names(f"unix:path={doors[0]}")) == 2
    assert len(names(f"unix:path={doors[1]}")) == 4
    os.close(read_end)
    assert process.wait(30) == 0
    assert not any(os.path.exists(door) for door in doors)


@pytest.mark.skipif(not INSTALLED.exists(), reason="no xdg-dbus-proxy-tests")
def test_the_proxy_s_own_tests(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    daemon, proxy = folder / "dbus-daemon", folder / "proxy"
    python = f"exec {sys.executable}"
    daemon.write_text(f'#!/bin/sh\n{python} -m jitney.compat "$@"\n')
    code = "import sys; from jitney.compat.command import main; sys.exit(main(sys.argv[1:]))"
    proxy.write_text(f'#!/bin/sh\n{python} -c "{code}" proxy "$@"\n')
    for file in (daemon, proxy):
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    # It makes sockets there, and hangs where their names would be too long.
    with tempfile.TemporaryDirectory(prefix="jitney-") as short:
        environ = {
            **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "DBUS_PROXY": str(proxy),
            "TMPDIR": short,
        }  # fmt: skip
        done = subprocess.run(
            [INSTALLED, "--tap"], capture_output=True, text=True, timeout=50, check=False,
            env=environ,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok 1 /basics" in done.stdout
    assert "not ok" not in done.stdout
