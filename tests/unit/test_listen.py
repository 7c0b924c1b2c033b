"""Listening: addresses in, sockets and the printed address out, no files left behind."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import kernel
import pytest

from jitney.compat import listen as listening
from jitney.compat.errors import ADDRESS_IN_USE, BAD_ADDRESS, FAILED, NOT_SUPPORTED, DBusError
from jitney.compat.listen import Server, listen, open_servers, printed_address

GUID = re.compile(r"[0-9a-f]{32}")

Open = Callable[[str], Server]


@pytest.fixture
def start() -> Iterator[Open]:
    """Listen on an address; no warnings allowed; closed at the end."""
    servers: list[Server] = []

    def warn(text: str) -> None:
        pytest.fail(text)

    def start(address: str) -> Server:
        servers.append(listen(address, warn))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def refused(address: str) -> DBusError:
    with pytest.raises(DBusError) as caught:
        listen(address, pytest.fail)
    return caught.value


def connects(name: object, family: int = socket.AF_UNIX) -> bool:
    with socket.socket(family) as sock:
        return sock.connect_ex(name) == 0  # type: ignore[arg-type]


def test_path(start: Open, tmp_path: Path) -> None:
    server = start(f"unix:path={tmp_path}/a%20b")
    assert server.address == f"unix:path={tmp_path}/a%20b,guid={server.guid}"
    assert GUID.fullmatch(server.guid)
    (listener,) = server.listeners
    assert (listener.kind, listener.nonce) == ("unix", b"")
    assert (listener.address, listener.guid) == (server.address, server.guid)
    assert not listener.sock.getblocking()
    assert not listener.sock.get_inheritable()
    path = tmp_path / "a b"
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    assert connects(str(path))
    server.close()
    assert not path.exists()
    server.close()


def test_guid_ends_with_the_time() -> None:
    import time

    assert abs(int(listening.new_guid()[24:], 16) - time.time()) < 5
    assert listening.new_guid()[:24] != listening.new_guid()[:24]


def test_stale_socket_is_replaced(start: Open, tmp_path: Path) -> None:
    path = tmp_path / "bus"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    start(f"unix:path={path}")
    assert connects(str(path))


def test_plain_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "bus"
    path.write_text("precious")
    error = refused(f"unix:path={path}")
    assert error.name == ADDRESS_IN_USE
    assert error.text == f'Failed to bind socket "{path}": Address already in use'
    assert path.read_text() == "precious"


def test_somebody_elses_socket_stays(start: Open, tmp_path: Path) -> None:
    path = tmp_path / "bus"
    first = start(f"unix:path={path}")
    second = start(f"unix:path={path}")
    first.close()
    assert connects(str(path))
    second.close()
    assert not path.exists()


def test_file_goes_even_if_we_have_moved(
    start: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = start("unix:path=bus")
    monkeypatch.chdir("/")
    server.close()
    assert not (tmp_path / "bus").exists()


@kernel.needs_linux_ways
def test_abstract(start: Open) -> None:
    name = f"/tmp/jitney test {os.getpid()}"
    server = start(f"unix:abstract={name.replace(' ', '%20')}")
    assert server.address.startswith(f"unix:abstract={name.replace(' ', '%20')},guid=")
    assert connects("\0" + name)


@pytest.mark.parametrize("key", ["dir", "tmpdir"])
def test_directory(start: Open, tmp_path: Path, key: str) -> None:
    server = start(f"unix:{key}={tmp_path}")
    match = re.fullmatch(rf"unix:path=({tmp_path}/dbus-[A-Za-z0-9]{{10}}),guid=.*", server.address)
    assert match
    assert connects(match.group(1))


def test_runtime(start: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert start("unix:runtime=yes").address.startswith(f"unix:path={tmp_path}/bus,guid=")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    error = refused("unix:runtime=yes")
    assert (error.name, error.text) == (NOT_SUPPORTED, '"XDG_RUNTIME_DIR" is not set')


LONG = "x" * 99


@pytest.mark.parametrize(
    ("address", "name", "text"),
    [
        ("foo:path=/x", BAD_ADDRESS, "Unknown address type 'foo'"),
        ("foo:;bar:", BAD_ADDRESS, "Unknown address type 'foo'"),
        ("unixexec:path=foo", BAD_ADDRESS, "Unknown address type 'unixexec'"),
        ("autolaunch:", BAD_ADDRESS, "Unknown address type 'autolaunch'"),
        (
            "unix:",
            BAD_ADDRESS,
            (
                "Server address of type unix was missing argument "
                "path or tmpdir or abstract or runtime or dir"
            ),
        ),
        (
            "unix:path=a,dir=b",
            BAD_ADDRESS,
            (
                'Could not parse server address: cannot specify two of "path", "tmpdir", '
                '"abstract", "runtime" and "dir" at the same time'
            ),
        ),
        (
            "unix:runtime=no",
            BAD_ADDRESS,
            (
                'Could not parse server address: if given, the only value allowed for "runtime" is '
                '"yes"'
            ),
        ),
        (f"unix:path=/{LONG}", BAD_ADDRESS, "Socket name too long"),
        pytest.param(
            f"unix:abstract={LONG}",
            BAD_ADDRESS,
            "Abstract socket name too long",
            marks=kernel.needs_linux_ways,
        ),
        ("tcp:family=ipv9", BAD_ADDRESS, "Unknown address family ipv9"),
        (
            "tcp:host=nosuch.invalid",
            FAILED,
            'Failed to lookup host/port: "nosuch.invalid:0": ',
        ),
        (
            "tcp:host=localhost,port=abc",
            FAILED,
            (
                'Failed to lookup host/port: "localhost:abc": '
                "Servname not supported for ai_socktype (-8)"
            ),
        ),
        (
            "tcp:host=192.0.2.1,port=1",
            FAILED,
            'Failed to bind socket "192.0.2.1" port 1: Cannot assign requested address',
        ),
        (
            "unix:path=/nonexistent/a",
            "org.freedesktop.DBus.Error.FileNotFound",
            'Failed to bind socket "/nonexistent/a": No such file or directory',
        ),
        ("systemd:", BAD_ADDRESS, "No socket received."),
        ("", BAD_ADDRESS, "Empty address ''"),
    ],
)
def test_refused(address: str, name: str, text: str) -> None:
    error = refused(address)
    assert error.name == name
    assert error.text.startswith(text)


def test_first_entry_that_works(start: Open, tmp_path: Path) -> None:
    server = start(f"foo:;unix:path=/nonexistent/a;unix:path={tmp_path}/b;unix:path={tmp_path}/c")
    assert server.address.startswith(f"unix:path={tmp_path}/b,")
    assert os.listdir(tmp_path) == ["b"]


def test_first_failure_is_told(tmp_path: Path) -> None:
    text = refused("unix:path=/nonexistent/a;tcp:family=ipv9").text
    assert text.startswith('Failed to bind socket "/nonexistent/a"')
    # ... but a plain mistake ends the search at once.
    text = refused(f"unix:path=/nonexistent/a;unix:;unix:path={tmp_path}/b").text
    assert text.startswith("Server address of type unix was missing")


def test_several_servers(tmp_path: Path) -> None:
    servers = open_servers([f"unix:path={tmp_path}/{name}" for name in "abc"], pytest.fail)
    assert len({server.guid for server in servers}) == 3
    addresses = printed_address(servers).split(";")
    assert [address.split(",")[0][-1] for address in addresses] == ["c", "b", "a"]
    for server in servers:
        server.close()


def test_all_or_none(tmp_path: Path) -> None:
    with pytest.raises(DBusError):
        open_servers([f"unix:path={tmp_path}/a", "foo:"], pytest.fail)
    assert not os.listdir(tmp_path)


def test_tcp(start: Open) -> None:
    server = start("tcp:host=127.0.0.1")
    match = re.fullmatch(
        r"tcp:host=127\.0\.0\.1,port=(\d+),family=ipv4,guid=[0-9a-f]{32}", server.address
    )
    assert match
    (listener,) = server.listeners
    assert (listener.kind, listener.nonce) == ("tcp", b"")
    assert listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert not listener.sock.getblocking()
    assert connects(("127.0.0.1", int(match.group(1))), socket.AF_INET)


def test_tcp_host_is_what_clients_are_told(start: Open) -> None:
    address = start("tcp:host=bus.example,bind=*,port=0,family=ipv4").address
    assert re.match(r"tcp:host=bus\.example,port=\d+,family=ipv4,guid=", address)


def test_tcp_all_families_share_one_port(start: Open) -> None:
    server = start("tcp:host=x,bind=*")
    ports = {listener.sock.getsockname()[1] for listener in server.listeners}
    assert len(ports) == 1
    families = {listener.sock.family for listener in server.listeners}
    assert (len(families) == 1) == (",family=" in server.address)


def test_tcp_in_use(start: Open) -> None:
    server = start("tcp:host=127.0.0.1")
    port = server.listeners[0].sock.getsockname()[1]
    error = refused(f"tcp:host=127.0.0.1,port={port}")
    assert error.name == ADDRESS_IN_USE
    assert error.text == f'Failed to bind socket "127.0.0.1" port {port}: Address already in use'


def test_nonce(start: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = start("nonce-tcp:host=127.0.0.1")
    match = re.match(
        rf"nonce-tcp:host=127\.0\.0\.1,port=\d+,family=ipv4,"
        rf"noncefile=({tmp_path}/dbus_nonce-\w{{8}}/nonce),guid=",
        server.address,
    )
    assert match
    file = Path(match.group(1))
    assert file.read_bytes() == server.listeners[0].nonce
    assert len(file.read_bytes()) == 16
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    server.close()
    assert not os.listdir(tmp_path)


def test_nonce_without_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    assert refused("nonce-tcp:host=127.0.0.1").text.startswith("Failed to create directory ")


SYSTEMD = """
import os, socket, sys
from jitney.compat.listen import listen
from jitney.compat.errors import DBusError
path, mode = sys.argv[1:]
first, second = socket.socket(socket.AF_UNIX), socket.socket()
first.bind(path)
second.bind(("127.0.0.1", 0))
port = second.getsockname()[1]
if mode != "deaf":
    first.listen()
    second.listen()
if mode == "datagram":
    second = socket.socket(type=socket.SOCK_DGRAM)
spare = [os.dup(first.fileno()), os.dup(second.fileno())]
spare = [os.dup2(fd, 20 + n) for n, fd in enumerate(spare)]
first.detach(), second.detach()
os.dup2(20, 3), os.dup2(21, 4)
os.environ["LISTEN_FDS"] = "2"
os.environ["LISTEN_FDNAMES"] = "a:b"
os.environ["LISTEN_PID"] = str(os.getpid() + (mode == "other"))
try:
    server = listen("systemd:", print)
except DBusError as error:
    print(error.text)
else:
    print(server.address.replace(str(port), "PORT").replace(server.guid, "GUID"))
    socks = [listener.sock for listener in server.listeners]
    print([(s.fileno(), s.getblocking(), s.get_inheritable()) for s in socks])
    print([listener.kind for listener in server.listeners])
    server.close()
    print(os.path.exists(path))
print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
try:
    listen("systemd:", print)
except DBusError as error:
    print(error.text)
"""


def systemd(path: Path, mode: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SYSTEMD, str(path), mode],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.stdout.splitlines()


def test_systemd(tmp_path: Path) -> None:
    path = tmp_path / "bus"
    assert systemd(path, "good") == [
        f"unix:path={path};tcp:family=ipv4,port=PORT,host=127.0.0.1,guid=GUID",
        "[(3, False, False), (4, False, False)]",
        "['unix', 'tcp']",
        "True",  # the service manager's file
        "[]",
        "No socket received.",
    ]


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("other", "No socket received."),
        ("deaf", "Passed socket has wrong type."),
        ("datagram", "Passed socket has wrong type."),
    ],
)
def test_systemd_refused(tmp_path: Path, mode: str, text: str) -> None:
    assert systemd(tmp_path / "bus", mode) == [text, "[]", "No socket received."]


def test_mode_that_cannot_be_set_is_only_worth_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, mode: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chmod", refuse)
    warnings: list[str] = []
    server = listen(f"unix:path={tmp_path}/bus", warnings.append)
    server.close()
    assert warnings == [f"Could not set mode 0777 on socket {tmp_path}/bus"]
