"""Calls, answers, errors and ends between a client of kdbus and a classic one, on one bus.

Invariant: whatever ends a call, each side is told once, in its own words, and nothing is left in
either world's table of awaited replies.
"""

from __future__ import annotations

import errno
import os
import struct

import corebus
import pytest
from corebus import received
from kdbuskit import Client, FakeFd, access, item, message, text, u64
from unnamed import unnamed
from worldskit import (
    Shared,
    answer,
    call,
    dbus2,
    hear,
    notices,
    reply_to,
    send,
    tell,
    unique,
    values,
)

from jitney.broker.fds import FdSet
from jitney.broker.kdbus import constants as c
from jitney.compat import wire
from jitney.compat.errors import ACCESS_DENIED, LIMITS_EXCEEDED, NO_REPLY
from jitney.kdbus import transcode
from jitney.kdbus.transcode import Dbus2Message

NAME = b"com.example.Name"
CALL = {"path": b"/a", "interface": b"com.example.I", "member": b"M"}


@pytest.fixture
def shared() -> Shared:
    return Shared()


def is_idle(shared: Shared) -> bool:
    """Whether nobody waits for anybody in either world."""
    return (
        len(shared.core.replies) == 0
        and shared.bus.replies.n_linked == 0
        and not shared.worlds.calls.of
    )


def error_of(msg: corebus.Message) -> tuple[str, int, str]:
    assert msg.type == wire.ERROR
    return (msg.error_name or b"").decode(), msg.reply_serial, (msg.string_arg(0) or b"").decode()


# From kdbus to classic


def test_call_to_classic_and_its_answer(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    assert call(client, unique(classic), 5, signature=b"su", values=["x", 7]) == 0
    (msg,) = received(classic)
    assert (msg.type, msg.serial, msg.sender) == (wire.CALL, 5, unique(client))
    assert (msg.path, msg.interface, msg.member) == (b"/a", b"com.example.I", b"M")
    assert wire.unmarshal(msg.signature, msg.body(), False) == ["x", 7]
    tell(shared, classic, reply_to(msg, signature="s", values=["y"]))
    said = hear(client)
    assert (said.type, said.reply_cookie, said.sender) == (wire.RETURN, 5, unique(classic))
    assert values(said) == ["y"]
    assert is_idle(shared)


def test_call_by_name(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    shared.core.request_name(classic, NAME, 0)
    assert call(client, NAME) == 0
    (msg,) = received(classic)
    assert msg.destination == NAME
    tell(shared, classic, reply_to(msg))
    assert hear(client).reply_cookie == 1


def test_error_from_classic(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    call(client, unique(classic), 8)
    (msg,) = received(classic)
    error = corebus.message(
        wire.ERROR, 9, flags=1, error_name=b"com.example.Error.Odd", destination=unique(client),
        reply_serial=msg.serial, signature="s", values=["why"],
    )  # fmt: skip
    tell(shared, classic, error)
    said = hear(client)
    assert (said.type, said.error_name, said.reply_cookie) == (
        wire.ERROR, b"com.example.Error.Odd", 8,
    )  # fmt: skip
    assert values(said) == ["why"]
    assert is_idle(shared)


def test_wide_cookies_come_back(shared: Shared) -> None:
    """A cookie that is no serial, and one that is awaited already."""
    classic, client = shared.classic(), shared.kdbus()
    wide = (1 << 40) + 3
    for cookie in (wide, 3, 3 + (1 << 32)):
        assert call(client, unique(classic), cookie) == 0
    msgs = received(classic)
    assert len({msg.serial for msg in msgs}) == 3
    for msg in reversed(msgs):
        tell(shared, classic, reply_to(msg))
    assert [hear(client).reply_cookie for _ in msgs] == [3 + (1 << 32), 3, wide]
    assert is_idle(shared)


def test_synchronous_call(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    assert call(client, unique(classic), sync=True) == -1
    (msg,) = received(classic)
    tell(shared, classic, reply_to(msg, signature="s", values=["now"]))
    assert client.answers == [0]
    assert is_idle(shared)


@pytest.mark.parametrize("sync", [False, True])
def test_classic_peer_vanishes(shared: Shared, sync: bool) -> None:
    classic, client = shared.classic(), shared.kdbus()
    call(client, unique(classic), 6, sync=sync)
    shared.core.disconnect(classic)
    if sync:
        assert client.answers == [errno.EPIPE]
    else:
        assert notices(client) == [(c.ITEM_REPLY_DEAD, 6)]
    assert is_idle(shared)


@pytest.mark.parametrize("sync", [False, True])
def test_deadline_of_a_call_to_classic(shared: Shared, sync: bool) -> None:
    classic, client = shared.classic(), shared.kdbus()
    call(client, unique(classic), 6, timeout=shared.now + 10**9, sync=sync)
    (msg,) = received(classic)
    shared.wait(2)
    if sync:
        assert client.answers == [errno.ETIMEDOUT]
    else:
        assert notices(client) == [(c.ITEM_REPLY_TIMEOUT, 6)]
    assert is_idle(shared)
    tell(shared, classic, reply_to(msg))
    assert notices(client) == []


def test_timeout_of_the_classic_bus(shared: Shared) -> None:
    slow = Shared(reply_timeout=20)
    moment = 100.0
    slow.core.clock = lambda: moment
    classic, client = slow.classic(), slow.kdbus()
    call(client, unique(classic), 6)
    moment = 101.0
    slow.core.expire()
    assert notices(client) == [(c.ITEM_REPLY_TIMEOUT, 6)]
    assert is_idle(slow)


def test_kdbus_caller_vanishes(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    call(client, unique(classic))
    (msg,) = received(classic)
    client.handle.close()
    assert is_idle(shared)
    shared.front.take()
    tell(shared, classic, reply_to(msg))
    assert is_idle(shared)


def test_nobody_else_answers(shared: Shared) -> None:
    """The classic policy of a session lets anybody send anything; an answer is not anybody's."""
    classic, other, client = shared.classic(), shared.classic(), shared.kdbus()
    call(client, unique(classic), 4)
    (msg,) = received(classic)
    forged = corebus.message(
        wire.RETURN, 3, flags=1, destination=unique(client), reply_serial=msg.serial
    )
    tell(shared, other, forged)
    assert notices(client) == []
    tell(shared, classic, reply_to(msg))
    assert hear(client).sender == unique(classic)


def test_refusals_are_errnos_at_once(shared: Shared) -> None:
    classic, client = shared.classic(fds=False), shared.kdbus()
    client.memory.fds[3] = RealFd(unnamed())
    assert call(client, b":1.999") == errno.ENXIO
    assert call(client, NAME) == errno.ESRCH
    assert call(client, b"org.freedesktop.DBus") == errno.ESRCH
    assert call(client, unique(classic), fds=(3,), signature=b"h", values=[0], n_fds=1) == (
        errno.ECOMM
    )
    said = dbus2(wire.CALL, 2, destination=unique(classic), **CALL)
    assert send(client, said, payload_type=7) == errno.EBADMSG
    assert send(client, said, pieces=(b"rubbish of some length",)) == errno.EBADMSG
    assert send(client, said, cookie=3) == errno.EBADMSG
    assert received(classic) == []
    assert is_idle(shared)


def test_full_queue_and_too_many_calls() -> None:
    shared = Shared(max_outgoing_bytes=4000, max_replies_per_connection=3)
    classic, client = shared.classic(), shared.kdbus()
    assert [call(client, unique(classic), n) for n in range(1, 5)] == [0, 0, 0, errno.ENOBUFS]
    other = shared.kdbus()
    full = 0
    while not (full := call(other, unique(classic), signature=b"s", values=["x" * 500], flags=1)):
        pass
    assert full == errno.ENOBUFS


def test_answer_that_nobody_waits_for(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    assert answer(client, unique(classic), 5) == errno.EBADSLT
    assert received(classic) == []


def test_kinds_that_contradict_the_envelope(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    said = dbus2(wire.RETURN, 4, destination=unique(classic), reply_cookie=3)
    said.flags = 0  # as if an answer waited for one
    assert send(client, said) == errno.EBADMSG
    said = dbus2(9, 4, destination=unique(classic), **CALL)
    assert send(client, said) == errno.EBADMSG
    assert received(classic) == []
    assert is_idle(shared)


# From classic to kdbus


def test_call_to_kdbus_and_its_answer(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    msg = corebus.call(unique(client), 12, signature="as", values=[["a", "b"]])
    tell(shared, classic, msg)
    said = hear(client)
    assert (said.type, said.cookie, said.sender) == (wire.CALL, 12, unique(classic))
    assert said.destination == unique(client)
    assert values(said) == [["a", "b"]]
    assert answer(client, unique(classic), 12, signature=b"u", values=[9]) == 0
    (reply,) = received(classic)
    assert (reply.type, reply.reply_serial, reply.sender) == (wire.RETURN, 12, unique(client))
    assert wire.unmarshal(reply.signature, reply.body(), False) == [9]
    assert is_idle(shared)
    assert answer(client, unique(classic), 12) == errno.EBADSLT


def test_call_to_a_name_of_kdbus(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    client.acquire(NAME)
    tell(shared, classic, corebus.call(NAME, 3))
    assert hear(client).destination == NAME


def test_call_without_an_answer(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    tell(shared, classic, corebus.call(unique(client), 3, 1))
    assert hear(client).flags & wire.NO_REPLY
    assert is_idle(shared)


def test_kdbus_peer_vanishes(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    tell(shared, classic, corebus.call(unique(client), 12))
    hear(client)
    tell(shared, classic, corebus.call(unique(client), 13))
    client.handle.close()
    told = [error_of(msg) for msg in received(classic)]
    words = "Message recipient disconnected from message bus without replying"
    assert sorted(told) == [(NO_REPLY, 12, words), (NO_REPLY, 13, words)]
    assert is_idle(shared)


def test_kdbus_peer_drops_the_call(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    tell(shared, classic, corebus.call(unique(client), 12))
    client.do("RECV", c.RECV_DROP)
    assert [error_of(msg)[:2] for msg in received(classic)] == [(NO_REPLY, 12)]
    assert is_idle(shared)


def test_classic_caller_vanishes(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    tell(shared, classic, corebus.call(unique(client), 12))
    said = hear(client)
    shared.core.disconnect(classic)
    assert is_idle(shared)
    assert answer(client, said.sender or b"", 12) == errno.ENXIO
    assert not shared.worlds.guests


def test_timeout_of_a_classic_call() -> None:
    shared = Shared(reply_timeout=20)
    moment = 100.0
    shared.core.clock = lambda: moment
    classic, client = shared.classic(), shared.kdbus()
    tell(shared, classic, corebus.call(unique(client), 12))
    hear(client)
    moment = 101.0
    shared.core.expire()
    assert [error_of(msg)[:2] for msg in received(classic)] == [(NO_REPLY, 12)]
    assert answer(client, unique(classic), 12) == errno.EBADSLT
    assert is_idle(shared)


def test_full_pool_is_an_error_to_the_classic_sender(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    sent = 0
    while not shared.front.take("refused"):
        sent += 1
        tell(shared, classic, corebus.call(unique(client), sent, signature="s", values=["x" * 999]))
    errors = [error_of(msg) for msg in received(classic)]
    assert [(name, serial) for name, serial, _ in errors] == [(LIMITS_EXCEEDED, sent)]
    assert 1 < sent < 1000
    # The one that was refused waits for nothing; the others go on.
    assert len(shared.core.replies) == shared.bus.replies.n_linked == sent - 1
    for serial in range(1, sent):
        assert hear(client).cookie == serial


def test_too_many_values_are_an_error_both_ways(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    many = [""] * 40_000
    tell(shared, classic, corebus.call(unique(client), 2, signature="as", values=[many]))
    assert [error_of(msg)[:2] for msg in received(classic)] == [(LIMITS_EXCEEDED, 2)]
    said = dbus2(wire.CALL, 3, destination=unique(classic), signature=b"as", values=[many], **CALL)
    assert send(client, said) == errno.E2BIG
    assert is_idle(shared)


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("values", [[["x" * 200_000]], [["" for _ in range(40_000)]]])
def test_answer_that_cannot_be_given(shared: Shared, sync: bool, values: list[object]) -> None:
    """Too long for the caller's pool, or too many values: the caller waits no longer."""
    classic = shared.classic()
    client = shared.open().hello(pool=1 << 16)
    call(client, unique(classic), 4, sync=sync)
    (msg,) = received(classic)
    tell(shared, classic, reply_to(msg, signature="as", values=values))
    if sync:
        assert client.answers in ([errno.ENOBUFS], [errno.EXFULL], [errno.EREMOTEIO])
    else:
        assert notices(client) == [(c.ITEM_REPLY_DEAD, 4)]
    assert is_idle(shared)


def test_bytes_in_bulk_pass(shared: Shared) -> None:
    classic = shared.classic()
    client = shared.open().hello(pool=1 << 25)
    bulk = os.urandom(3_000_000)
    tell(shared, classic, corebus.call(unique(client), 2, signature="ay", values=[bulk]))
    said = hear(client)
    assert bytes(values(said)[0]) == bulk
    back = dbus2(wire.RETURN, 4, destination=unique(classic), reply_cookie=2)
    back.signature, back.body = said.signature, said.body
    assert send_in_memfd(client, classic, back, timeout=2) == 0
    (reply,) = received(classic)
    assert bytes(wire.unmarshal(reply.signature, reply.body(), False)[0]) == bulk


def send_in_memfd(client: Client, to: corebus.Connection, said: Dbus2Message, **fields: int) -> int:
    """SEND with the body in a memfd, behind two bytes of something else."""
    laid = transcode.lay(said)
    client.memory.fds[4] = FakeFd(b"__" + laid.body)
    head, footer = (client.memory.put(part) for part in (laid.head, laid.footer))
    items = item(c.ITEM_PAYLOAD_VEC, u64(len(laid.head), head))
    items += item(c.ITEM_PAYLOAD_MEMFD, struct.pack("<QQiI", 2, len(laid.body), 4, 0))
    items += item(c.ITEM_PAYLOAD_VEC, u64(len(laid.footer), footer))
    more = {"cookie": said.cookie, "payload_type": transcode.PAYLOAD_DBUS} | fields
    return client.send(message(to.id, items, **more))


# Policy


def test_kdbus_policy_for_a_classic_sender(shared: Shared) -> None:
    """Another user's connection without a policy that lets one talk to it."""
    stranger, friend, client = shared.classic(1000), shared.classic(1001), shared.kdbus(uid=1001)
    tell(shared, stranger, corebus.call(unique(client), 2))
    assert [error_of(msg)[:2] for msg in received(stranger)] == [(ACCESS_DENIED, 2)]
    tell(shared, friend, corebus.call(unique(client), 2))
    assert hear(client).sender == unique(friend)
    assert len(shared.core.replies) == 1


def test_classic_policy_for_a_kdbus_sender(shared: Shared) -> None:
    classic = shared.classic()
    shared.front.policy = NoCalls()
    client = shared.kdbus()
    assert call(client, unique(classic)) == errno.EPERM
    assert client.acquire(NAME) == -errno.EPERM
    assert received(classic) == []
    assert is_idle(shared)


def test_driver_cannot_be_played(shared: Shared) -> None:
    assert shared.kdbus().acquire(b"org.freedesktop.DBus") == -errno.EPERM


def test_custom_endpoint_leads_only_where_it_says(shared: Shared) -> None:
    classic, other = shared.classic(), shared.classic()
    shared.core.request_name(classic, NAME, 0)
    owner = shared.open()
    owner.do("ENDPOINT_MAKE", c.ACCESS_WORLD, items=text(c.ITEM_MAKE_NAME, b"0-door"))
    door = shared.bus.endpoints[b"0-door"]
    owner.do(
        "ENDPOINT_UPDATE",
        items=text(c.ITEM_NAME, NAME) + access(c.FOR_WORLD, c.TALK),
    )
    client = Client(shared.domain, door, 1000).hello()
    assert call(client, NAME) == 0
    assert call(client, unique(other)) == errno.EPERM
    assert len(received(classic)) == 1
    assert shared.core.connections[client.id].user.uid == 1000


class NoCalls:
    """A policy that lets nothing out."""

    number = 2
    matched = 1
    log = False
    send_open = False
    receive_open = True
    send_types = 0
    receive_types = 0b11110
    rule = None

    def may_own(self, name: bytes) -> bool:
        return False

    def may_send(self, *_: object) -> bool:
        return False

    def types_to(self, _: object) -> int:
        return 0


# Descriptors


class RealFd(FakeFd):
    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd


def test_descriptors_to_kdbus(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus(installs=True)
    near, far = os.pipe()
    msg = corebus.call(unique(client), 2, signature="h", values=[0], n_fds=1)
    msg.fds = FdSet([far])
    tell(shared, classic, msg)
    msg.fds = None
    conn = client.handle.conn
    assert conn is not None
    received_, _ = conn.recv(0, 0)
    assert received_ is not None
    ((handle, _),) = received_.fds
    os.write(handle.fd, b"!")
    assert os.read(near, 1) == b"!"
    handle.drop()
    del received_, handle
    # Nobody holds it any more.
    assert os.read(near, 1) == b""
    os.close(near)


def test_descriptors_to_one_who_cannot_be_given_any(shared: Shared) -> None:
    classic, client, deaf = shared.classic(), shared.kdbus(), shared.kdbus(0)
    for to in (client, deaf):
        msg = corebus.call(unique(to), 2, 1, signature="h", values=[0], n_fds=1)
        msg.fds = FdSet([unnamed()])
        tell(shared, classic, msg)
    assert hear(client).n_fds == 1
    assert client.msg_flags == c.RECV_INCOMPLETE_FDS
    assert notices(deaf) == []
    name, serial, words = error_of(received(classic)[0])
    assert (name, serial) == ("org.freedesktop.DBus.Error.NotSupported", 2)
    assert "descriptors" in words


def test_descriptors_to_classic(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    near, far = os.pipe()
    client.memory.fds[3] = RealFd(far)
    assert call(client, unique(classic), fds=(3,), signature=b"h", values=[0], n_fds=1) == 0
    ((_, fds),) = classic.queue.runs()
    assert len(fds) == 1
    os.write(fds[0], b"!")
    assert os.read(near, 1) == b"!"
    os.close(far)
    assert len(received(classic)) == 1
    # The bus's own copy went with the message.
    assert os.read(near, 1) == b""
    os.close(near)


def test_memfds_are_read_for_classic(shared: Shared) -> None:
    classic, client = shared.classic(), shared.kdbus()
    said = dbus2(
        wire.CALL, 2, destination=unique(classic), signature=b"s", values=["x" * 5000], **CALL
    )
    assert send_in_memfd(client, classic, said, flags=c.EXPECT_REPLY, timeout=1 << 62) == 0
    (msg,) = received(classic)
    assert wire.unmarshal(msg.signature, msg.body(), False) == ["x" * 5000]
