"""Every kind of address is listened on, printed so that a client finds it, and cleaned up."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import buses
import kernel
import pytest
from rawclient import RawClient

from jitney.compat import ways
from jitney.compat.address import Address, parse

CONFIG = """<busconfig><type>{type}</type>{extra}
<policy context="default"><allow user="*"/><allow send_destination="*"/><allow eavesdrop="true"/>
<allow own="*"/></policy>
</busconfig>"""

IDENTITY = str(os.getuid()).encode().hex().encode()


def dial(entry: Address) -> socket.socket:
    """A socket to where the entry says, its nonce sent."""
    if entry.method == "unix":
        sock = socket.socket(socket.AF_UNIX)
        path = entry.get("path")
        sock.connect(path if path is not None else "\0" + str(entry.get("abstract")))
    else:
        sock = socket.create_connection((entry.get("host"), int(str(entry.get("port")))))
    sock.settimeout(30)
    if entry.method == "nonce-tcp":
        sock.sendall(Path(str(entry.get("noncefile"))).read_bytes())
    return sock


def say(sock: socket.socket, line: bytes) -> bytes:
    """The answer to a line of the authentication protocol, b"" for the end of the connection."""
    sock.sendall(line + b"\r\n")
    answer = b""
    try:
        while not answer.endswith(b"\r\n"):
            byte = sock.recv(1)
            if not byte:
                break
            answer += byte
    except ConnectionResetError:
        return b""
    return answer.removesuffix(b"\r\n")


def client(sock: socket.socket) -> RawClient:
    """What talks over an authenticated connection."""
    made = RawClient.__new__(RawClient)
    made.timeout, made.serial, made.closed = 10.0, 0, False
    made.sock, made._unread, made._fds = sock, b"", []
    return made


def listen(*addresses: str, auth: str = "") -> str:
    return "".join(f"<listen>{address}</listen>" for address in addresses) + auth


ANYBODY = "<auth>EXTERNAL</auth><auth>ANONYMOUS</auth><allow_anonymous/>"


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ("unix:path={}/some%20where", "unix:path={}/some%20where,guid="),
        pytest.param(
            "unix:abstract={}/abstract",
            "unix:abstract={}/abstract,guid=",
            marks=kernel.needs_linux_ways,
        ),
        ("unix:dir={}", "unix:path={}/dbus-"),
        ("unix:tmpdir={}", "unix:path={}/dbus-"),
        ("unix:runtime=yes", "unix:path={}/bus,guid="),
        ("tcp:host=127.0.0.1", "tcp:host=127.0.0.1,port="),
        ("tcp:host=localhost,port=0,family=ipv4", "tcp:host=localhost,port="),
        ("nonce-tcp:host=127.0.0.1", "nonce-tcp:host=127.0.0.1,port="),
        ("tcp:host=no.such.host.invalid;unix:path={}/second", "unix:path={}/second,guid="),
    ],
)
def test_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, start: str) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    extra = listen(given.format(tmp_path), auth=ANYBODY)
    with buses.running(buses.jitney_command(), config=CONFIG, extra=extra) as bus:
        assert bus.address.startswith(start.format(tmp_path))
        (entry,) = parse(bus.address)
        with client(dial(entry)) as made:
            unix = entry.method == "unix"
            mechanism = b"EXTERNAL " + IDENTITY if unix else b"ANONYMOUS"
            ok = b"OK " + str(entry.get("guid")).encode()
            assert say(made.sock, b"\0AUTH " + mechanism) == ok
            agreed = say(made.sock, b"NEGOTIATE_UNIX_FD")
            assert agreed == b"AGREE_UNIX_FD" if unix else agreed.startswith(b"ERROR")
            made.sock.sendall(b"BEGIN\r\n")
            assert made.hello().startswith(":1.")
    assert os.listdir(tmp_path) == []


SYSTEMD = """
import os, socket, sys
def open_socket(family, name):
    sock = socket.socket(family)
    sock.bind(name)
    sock.listen()
    return os.dup(sock.detach())
first = open_socket(socket.AF_UNIX, sys.argv[1])
second = open_socket(socket.AF_INET, ("127.0.0.1", 0))
os.dup2(first, 103)
os.dup2(second, 104)
os.dup2(103, 3)
os.dup2(104, 4)
os.environ.update(LISTEN_FDS="2", LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def test_sockets_of_the_service_manager(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    command = [sys.executable, "-c", SYSTEMD, path, *buses.jitney_command()]
    extra = listen("systemd:", auth=ANYBODY)
    with buses.running(command, config=CONFIG, extra=extra) as bus:
        unix, tcp = parse(bus.address)
        assert (unix.method, unix.get("path"), tcp.method) == ("unix", path, "tcp")
        for entry, mechanism in ((unix, b"EXTERNAL " + IDENTITY), (tcp, b"ANONYMOUS")):
            with client(dial(entry)) as made:
                guid = str(tcp.get("guid")).encode()
                assert say(made.sock, b"\0AUTH " + mechanism) == b"OK " + guid
                made.sock.sendall(b"BEGIN\r\n")
                assert made.hello().startswith(":1.")
    assert os.path.exists(path), "the socket is the service manager's"


def test_several_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bus behind all addresses, each with a guid of its own; the last one stands first."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    given = [
        f"unix:path={tmp_path}/a",
        f"unix:abstract={tmp_path}/b" if ways.LINUX else f"unix:dir={tmp_path}",
        "nonce-tcp:host=127.0.0.1",
        f"unix:tmpdir={tmp_path}",
    ]
    extra = listen(*given, auth=ANYBODY)
    with buses.running(buses.jitney_command(), config=CONFIG, extra=extra) as bus:
        entries = parse(bus.address)
        assert [entry.method for entry in entries] == ["unix", "nonce-tcp", "unix", "unix"]
        assert len({entry.get("guid") for entry in entries}) == 4
        made = []
        for entry in entries:
            sock = dial(entry)
            mechanism = b"ANONYMOUS" if entry.method != "unix" else b"EXTERNAL " + IDENTITY
            guid = str(entry.get("guid")).encode()
            assert say(sock, b"\0AUTH " + mechanism) == b"OK " + guid
            sock.sendall(b"BEGIN\r\n")
            made.append(client(sock))
            made[-1].hello()
        names = made[0].reply_to(made[0].driver(b"ListNames")).body[0]
        assert {one.unique_name for one in made} <= set(names)
        ids = {one.reply_to(one.driver(b"GetId")).body[0] for one in made}
        assert len(ids) == 1
        for one in made:
            one.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("wrong", [b"", b"\0" * 16, b"short"])
def test_wrong_nonce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bytes) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    extra = listen("nonce-tcp:host=127.0.0.1", auth=ANYBODY)
    with buses.running(buses.jitney_command(), config=CONFIG, extra=extra) as bus:
        (entry,) = parse(bus.address)
        with dial(Address("tcp", entry.params)) as sock:
            assert say(sock, wrong + b"\0AUTH ANONYMOUS") == b""
        nonce = Path(str(entry.get("noncefile"))).read_bytes()
        with dial(Address("tcp", entry.params)) as sock:
            # In pieces, the last one with the start of what follows.
            for piece in (nonce[:1], nonce[1:9]):
                sock.sendall(piece)
            assert say(sock, nonce[9:] + b"\0AUTH ANONYMOUS").startswith(b"OK ")


@pytest.mark.parametrize(
    ("configured", "offered"),
    [
        (["EXTERNAL"], b"EXTERNAL"),
        (["ANONYMOUS"], b"ANONYMOUS"),
        (["DBUS_COOKIE_SHA1"], b"DBUS_COOKIE_SHA1"),
        (["ANONYMOUS", "EXTERNAL"], b"EXTERNAL ANONYMOUS"),
        ([], b"EXTERNAL DBUS_COOKIE_SHA1 ANONYMOUS"),
    ],
)
def test_mechanisms_are_those_configured(
    tmp_path: Path, configured: list[str], offered: bytes
) -> None:
    auth = "".join(f"<auth>{name}</auth>" for name in configured)
    extra = listen(f"unix:path={tmp_path}/bus", auth=auth)
    with buses.running(buses.jitney_command(), config=CONFIG, extra=extra) as bus:
        (entry,) = parse(bus.address)
        with dial(entry) as sock:
            sock.sendall(b"\0")
            assert say(sock, b"AUTH") == b"REJECTED " + offered
            for mechanism in (b"EXTERNAL " + IDENTITY, b"DBUS_COOKIE_SHA1 30", b"ANONYMOUS 61"):
                if mechanism.split()[0] not in offered.split():
                    assert say(sock, b"AUTH " + mechanism) == b"REJECTED " + offered


@pytest.mark.parametrize("allowed", [False, True])
def test_anonymous_peers_only_where_allowed(tmp_path: Path, allowed: bool) -> None:
    """The mechanism proves nothing: without <allow_anonymous/> it leads nowhere."""
    auth = "<auth>ANONYMOUS</auth>" + ("<allow_anonymous/>" if allowed else "")
    extra = listen(f"unix:path={tmp_path}/bus", auth=auth)
    with buses.running(buses.jitney_command(), config=CONFIG, extra=extra) as bus:
        (entry,) = parse(bus.address)
        with client(dial(entry)) as made:
            assert say(made.sock, b"\0AUTH ANONYMOUS").startswith(b"OK ")
            made.sock.sendall(b"BEGIN\r\n")
            if allowed:
                assert made.hello().startswith(":1.")
            else:
                with pytest.raises((ConnectionError, BrokenPipeError)):
                    made.hello()
