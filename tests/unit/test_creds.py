"""Credentials: what the kernel says, and that nothing it may refuse does any harm."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import kernel
import pytest

from jitney.compat import creds, sysio
from jitney.compat.creds import Credentials

real_option = sysio.option


@pytest.fixture
def pair() -> Iterator[tuple[int, socket.socket]]:
    """A socket as the hub has it, by its descriptor, and the other end."""
    one, two = socket.socketpair()
    fd = sysio.attach(one)
    with two:
        yield fd, two
    sysio.close_socket(fd)


@pytest.fixture(autouse=True)
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Fake may stand for a descriptor."""
    monkeypatch.setattr(
        creds, "option", lambda fd, *more: getattr(fd, "option", partial(real_option, fd))(*more)
    )


class Fake:
    """Answers one option and refuses all others with an errno."""

    def __init__(self, refusal: int, **answers: bytes | Callable[[int], bytes]) -> None:
        self.refusal = refusal
        self.answers: dict[int, Any] = {getattr(creds, k): v for k, v in answers.items()}
        self.asked: list[int] = []

    def option(self, option: int, size: int) -> bytes | int:
        self.asked.append(option)
        answer = self.answers.get(option)
        if answer is None:
            return self.refusal
        return bytes(answer(size) if callable(answer) else answer)


def fake(refusal: int = errno.ENOPROTOOPT, **answers: bytes | Callable[[int], bytes]) -> Any:
    return Fake(refusal, **answers)


pytestmark = kernel.needs_linux_ways

CRED = struct.pack("=iII", 77, 65534, 65534)


def test_of_a_real_peer(pair: tuple[int, socket.socket]) -> None:
    who = Credentials(pair[0])
    assert (who.uid, who.gid, who.pid) == (os.geteuid(), os.getegid(), os.getpid())
    groups = who.groups()
    assert groups is not None
    assert os.getegid() in groups
    assert set(os.getgroups()) <= set(groups)
    assert groups == sorted(groups)


def test_pidfd_of_a_real_peer(pair: tuple[int, socket.socket]) -> None:
    try:
        expected = pair[1].getsockopt(socket.SOL_SOCKET, creds.SO_PEERPIDFD, 4)
    except OSError:
        assert Credentials(pair[0]).pidfd() is None
        return
    os.close(struct.unpack("=i", expected)[0])
    fd = Credentials(pair[0]).pidfd()
    assert fd is not None
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            assert f"Pid:\t{os.getpid()}\n" in file.read()
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_over_tcp_nothing_is_known() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()[:2]),
    ):
        peer, _ = server.accept()
        fd = sysio.attach(peer)
        who = Credentials(fd)
        assert (who.uid, who.gid, who.pid) == (None, None, None)
        assert who.groups() is None
        assert who.pidfd() is None
        sysio.close_socket(fd)


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_any_errno_means_unknown(number: int) -> None:
    who = Credentials(fake(number))
    assert (who.uid, who.gid, who.pid) == (None, None, None)
    assert (who.groups(), who.label(), who.pidfd()) == (None, None, None)


def test_closed_socket() -> None:
    one, two = socket.socketpair()
    fd = sysio.attach(one)
    who = Credentials(fd)
    sysio.close_socket(fd)
    who.close()
    two.close()
    assert who.uid == os.geteuid()
    assert (who.label(), who.pidfd()) == (None, None)


def test_peer_of_another_pid_namespace() -> None:
    assert Credentials(fake(SO_PEERCRED=struct.pack("=iII", 0, 5, 6))).pid is None


def test_primary_group_is_added_and_all_are_sorted() -> None:
    sock = fake(SO_PEERCRED=CRED, SO_PEERGROUPS=struct.pack("=3I", 100, 4, 27))
    assert Credentials(sock).groups() == [4, 27, 100, 65534]


def test_groups_are_asked_for_once() -> None:
    sock = fake(SO_PEERCRED=CRED, SO_PEERGROUPS=struct.pack("=I", 4))
    who = Credentials(sock)
    assert who.groups() == who.groups() == [4, 65534]
    assert sock.asked.count(creds.SO_PEERGROUPS) == 1


def test_groups_of_old_kernels_come_from_the_user_database() -> None:
    sock = fake(SO_PEERCRED=struct.pack("=iII", 1, 0, 12345))
    who = Credentials(sock)
    groups = who.groups()
    assert groups == sorted({*os.getgrouplist("root", 12345)})
    # Not for others to be told.
    assert who.kernel_groups() is None


def test_groups_of_a_user_nobody_knows() -> None:
    sock = fake(SO_PEERCRED=struct.pack("=iII", 1, 3999999999, 12345))
    assert Credentials(sock).groups() is None


def test_more_groups_than_getsockopt_can_fetch(
    pair: tuple[int, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(creds, "_SMALL", 1)  # ERANGE, if there is a group at all
    groups = Credentials(pair[0]).groups()
    assert groups is not None
    assert set(os.getgroups()) <= set(groups)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (b"unconfined\0", b"unconfined"),
        (b"/usr/bin/x (enforce)", b"/usr/bin/x (enforce)"),
        (b"", None),
        (b"\0", None),
        (b"a\0b\0", None),
    ],
)
def test_label(answer: bytes, label: bytes | None) -> None:
    assert Credentials(fake(SO_PEERSEC=answer)).label() == label


def test_short_answers() -> None:
    who = Credentials(fake(SO_PEERCRED=b"\0", SO_PEERGROUPS=b"\1\2\3", SO_PEERPIDFD=b"\1"))
    assert (who.uid, who.groups(), who.pidfd()) == (None, None, None)
    assert Credentials(fake(SO_PEERPIDFD=struct.pack("=i", -1))).pidfd() is None
