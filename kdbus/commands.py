"""Commands: one table of what each does, and to whom it is open.

Invariant: `admit()` and `run()` are called with the domain's lock held and never block; all that
touches a client's memory is in `request`. An errno of kdbus's is a result like any other.

A handle is what opening a node gives: of the control node it can become a bus, of an endpoint a
connection or the owner of another endpoint; what it became it stays.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus import info
from jitney.broker.kdbus.connection import Connection, Greeting, Transport
from jitney.broker.kdbus.domain import Domain
from jitney.broker.kdbus.endpoint import Endpoint
from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.match import Rule, bloom_masks
from jitney.broker.kdbus.metadata import KEEP, Caller, Creds, Facts

from .request import Parsed, Request
from .uapi import NAME_CHANGES, RETURN_FLAGS, U64

Rules = list[tuple[bytes, list[tuple[int, int, int]]]]

SETUP = frozenset(("BUS_MAKE", "ENDPOINT_MAKE", "HELLO"))

ORDINARY, MONITOR, ACTIVATOR, HOLDER = 1, 2, 4, 8
ALL = ORDINARY | MONITOR | ACTIVATOR | HOLDER
OPEN_TO = {
    "BYEBYE": ORDINARY, "NAME_ACQUIRE": ORDINARY, "NAME_RELEASE": ORDINARY, "LIST": ALL,
    "CONN_INFO": ALL, "BUS_CREATOR_INFO": ALL, "UPDATE": ALL, "MATCH_ADD": ORDINARY,
    "MATCH_REMOVE": ORDINARY, "SEND": ORDINARY, "RECV": ORDINARY | MONITOR | ACTIVATOR,
    "FREE": ORDINARY | MONITOR | ACTIVATOR,
}  # fmt: skip
"""Which kinds of connections may give a command."""


class Handle:
    """An open node: the domain's control node (`endpoint` None) or an endpoint.

    `opener`: the credentials of who opened it, which count for what is done with it later."""

    def __init__(self, domain: Domain, endpoint: Endpoint | None, opener: Creds) -> None:
        self.domain = domain
        self.endpoint = endpoint
        self.opener = opener
        self.owns: Any = None
        self.conn: Connection | None = None
        self.transport = Transport()

    def close(self) -> None:
        if self.conn is not None:
            self.conn.close()
        elif self.owns is not None:
            self.owns.close()


def admit(handle: Handle, name: str) -> tuple[int, int]:
    """Whether the handle is one for this command: (its connection's id, the bus's bloom size)."""
    conn = handle.conn
    if name in SETUP:
        if conn is not None or handle.owns is not None:
            raise KdbusError(errno.EBADFD)
        if (name == "BUS_MAKE") != (handle.endpoint is None):
            raise KdbusError(errno.EBADFD)
        if handle.endpoint is not None:
            handle.endpoint.need_active()
            if name == "ENDPOINT_MAKE" and not handle.endpoint.is_owner(handle.opener):
                raise KdbusError(errno.EPERM)
        return 0, 0
    if name == "ENDPOINT_UPDATE":
        if not isinstance(handle.owns, Endpoint):
            raise KdbusError(errno.EBADFD)
        handle.owns.need_active()
        return 0, 0
    if conn is None:
        raise KdbusError(errno.EBADFD)
    conn.need_active()
    kind = ORDINARY
    if not conn.ordinary:
        kind = MONITOR if conn.monitor else ACTIVATOR if conn.activator else HOLDER
    if not OPEN_TO[name] & kind:
        raise KdbusError(errno.EOPNOTSUPP)
    return conn.id, conn.bus.bloom_size


def run(
    handle: Handle,
    caller: Caller,
    request: Request,
    finished: Callable[[Request], None],
    admitted: bool = False,
) -> None:
    """Does what was fetched. Afterwards `request.error` is an errno or 0, or None where the answer
    comes later: then `finished(request)` is called, once, with the lock held.

    `admitted`: the lock was held since `admit()`, so that nothing can be different now."""
    command = request.command
    if command is None or request.error:
        return
    if request.negotiates:
        command.finish_flags()
        if request.envelope is not None:
            request.envelope.finish_flags()
        return
    try:
        if not admitted:
            admit(handle, request.form.name)
        COMMANDS[request.form.name](handle, caller, request, command, finished)
    except KdbusError as error:
        request.error = error.errno
    except OSError as error:
        # Of ours, for want of memory or descriptors.
        request.error = error.errno or errno.ENOMEM


# What goes with items


def policy_rules(command: Parsed) -> Rules:
    """Names, each with the rights that follow it."""
    rules: Rules = []
    for kind, at, size in command.order:
        if kind == c.ITEM_NAME:
            rules.append((bytes(command.data[at : at + size - 1]), []))
        elif kind == c.ITEM_POLICY_ACCESS:
            if not rules:
                raise KdbusError(errno.EINVAL)
            whom, right, number = struct.unpack_from("<3Q", command.data, at)
            rules[-1][1].append((whom, right, number))
    return rules


def fake_facts(command: Parsed, caller: Caller) -> Facts | None:
    """What a bus's owner says about whom it stands for."""
    creds = command.get(c.ITEM_CREDS)
    pids = command.get(c.ITEM_PIDS)
    label = command.text(c.ITEM_SECLABEL)
    if creds is None and pids is None and label is None:
        return None
    facts = Facts()
    spaces = caller.namespaces
    if creds is not None:
        numbers = struct.unpack("<8Q", creds)
        uids = [KEEP if n == KEEP else spaces.host_uid(n) for n in numbers[:4]]
        gids = [KEEP if n == KEEP else spaces.host_gid(n) for n in numbers[4:]]
        if None in uids or None in gids:
            raise KdbusError(errno.EINVAL)
        facts.uids = tuple(uids)  # type: ignore[assignment]
        facts.gids = tuple(gids)  # type: ignore[assignment]
    if pids is not None:
        found = [spaces.host_pid(pid) if pid else 0 for pid in struct.unpack("<3Q", pids)]
        if None in found:
            raise KdbusError(errno.EINVAL)
        facts.pids = tuple(found)  # type: ignore[assignment]
    facts.seclabel = label
    return facts


def match_rules(command: Parsed, bloom_size: int) -> list[Rule]:
    from jitney.broker.kdbus.validity import is_name

    rules = []
    for kind, at, size in command.order:
        data = bytes(command.data[at : at + size])
        if kind == c.ITEM_BLOOM_MASK:
            rules.append(Rule(kind, masks=bloom_masks(data, bloom_size)))
        elif kind == c.ITEM_NAME:
            if not is_name(data[:-1], False):
                raise KdbusError(errno.EINVAL)
            rules.append(Rule(kind, name=data[:-1]))
        elif kind in (c.ITEM_ID, c.ITEM_DST_ID, c.ITEM_ID_ADD):
            rules.append(Rule(kind, new=U64.unpack_from(data)[0]))
        elif kind == c.ITEM_ID_REMOVE:
            rules.append(Rule(kind, old=U64.unpack_from(data)[0]))
        elif kind in NAME_CHANGES:
            old, _, new, _ = struct.unpack_from("<4Q", data)
            rules.append(Rule(kind, data[32:-1] if size > 32 else None, old, new))
    return rules


# Setting up a handle


def bus_make(handle: Handle, caller: Caller, request: Request, command: Parsed, _: Any) -> None:
    bloom = command.get(c.ITEM_BLOOM_PARAMETER)
    attach = command.get(c.ITEM_ATTACH_FLAGS_SEND)
    assert bloom is not None
    size, hashes = struct.unpack("<2Q", bloom)
    handle.owns = handle.domain.make_bus(
        caller,
        command.text(c.ITEM_MAKE_NAME) or b"",
        command.flags,
        (size, hashes),
        U64.unpack(attach)[0] if attach is not None else 0,
    )


def endpoint_make(handle: Handle, caller: Caller, _: Request, command: Parsed, __: Any) -> None:
    assert handle.endpoint is not None
    name = command.text(c.ITEM_MAKE_NAME) or b""
    handle.owns = handle.endpoint.make_endpoint(caller, name, command.flags)


def endpoint_update(handle: Handle, caller: Caller, _: Request, command: Parsed, __: Any) -> None:
    handle.owns.update(caller, policy_rules(command))


def hello(handle: Handle, caller: Caller, _: Request, command: Parsed, __: Any) -> None:
    greeting = Greeting(command.flags, command.u64(56))
    greeting.attach_send = command.u64(24)
    greeting.attach_recv = command.u64(32)
    greeting.name = command.text(c.ITEM_NAME)
    greeting.description = command.text(c.ITEM_DESCRIPTION)
    greeting.fake = fake_facts(command, caller)
    if command.flags & (c.HELLO_ACTIVATOR | c.HELLO_POLICY_HOLDER):
        greeting.rules = policy_rules(command)
    conn = Connection(handle.endpoint, caller, handle.opener, greeting, handle.transport)
    try:
        offset, size = info.bloom(conn)
    except KdbusError:
        conn.close()
        raise
    handle.conn = conn
    bus = conn.bus
    command.put(40, bus.flags, conn.id)
    command.put(64, offset, size)
    command.data[80:96] = bus.id128
    command.ranges.append((80, 16))


# Connections


def byebye(handle: Handle, *_: Any) -> None:
    assert handle.conn is not None
    handle.conn.byebye()


def update(handle: Handle, caller: Caller, _: Request, command: Parsed, __: Any) -> None:
    assert handle.conn is not None
    send = command.get(c.ITEM_ATTACH_FLAGS_SEND)
    recv = command.get(c.ITEM_ATTACH_FLAGS_RECV)
    policy = c.ITEM_NAME in command.found or c.ITEM_POLICY_ACCESS in command.found
    handle.conn.update(
        U64.unpack(send)[0] if send is not None else None,
        U64.unpack(recv)[0] if recv is not None else None,
        policy_rules(command) if policy and handle.conn.holder else [] if policy else None,
        caller,
    )


def free(handle: Handle, _: Caller, __: Request, command: Parsed, ___: Any) -> None:
    assert handle.conn is not None
    handle.conn.free(command.u64(24))


def conn_info(handle: Handle, caller: Caller, _: Request, command: Parsed, __: Any) -> None:
    name = command.text(c.ITEM_NAME)
    found = info.connection(handle.conn, command.u64(24), name, command.u64(32), caller)
    command.put(40, *found)


def creator_info(handle: Handle, _: Caller, __: Request, command: Parsed, ___: Any) -> None:
    command.put(40, *info.creator(handle.conn, command.u64(32)))


def listing(handle: Handle, caller: Caller, _: Request, command: Parsed, __: Any) -> None:
    command.put(24, *info.listing(handle.conn, command.flags, caller))


def name_acquire(handle: Handle, caller: Caller, _: Request, command: Parsed, __: Any) -> None:
    assert handle.conn is not None
    name = command.text(c.ITEM_NAME) or b""
    command.put(RETURN_FLAGS, handle.conn.acquire(name, command.flags & c.NAME_ASKED, caller))


def name_release(handle: Handle, _: Caller, __: Request, command: Parsed, ___: Any) -> None:
    assert handle.conn is not None
    handle.conn.release(command.text(c.ITEM_NAME) or b"")


def match_add(handle: Handle, _: Caller, __: Request, command: Parsed, ___: Any) -> None:
    assert handle.conn is not None
    rules = match_rules(command, handle.conn.bus.bloom_size)
    handle.conn.add_match(command.u64(24), rules, bool(command.flags & c.MATCH_REPLACE))


def match_remove(handle: Handle, _: Caller, __: Request, command: Parsed, ___: Any) -> None:
    assert handle.conn is not None
    handle.conn.remove_match(command.u64(24))


def send(
    handle: Handle,
    caller: Caller,
    request: Request,
    command: Parsed,
    finished: Callable[[Request], None],
) -> None:
    conn = handle.conn
    assert conn is not None
    assert request.message is not None
    if not command.flags & c.SEND_SYNC_REPLY:
        conn.bus.send(conn, request.message, caller, None)
        command.put(32, conn.pool.empty, 0, 0)
        return

    request.error = None

    def done(number: int, received: Any) -> None:
        request.error = number
        request.received = received
        if received is not None:
            command.put(32, received.offset, received.size, received.return_flags)
        if request.pending is not None:
            finished(request)

    request.pending = conn.bus.send(conn, request.message, caller, done)


def recv(handle: Handle, _: Caller, request: Request, command: Parsed, __: Any) -> None:
    conn = handle.conn
    assert conn is not None
    priority = struct.unpack_from("<q", command.data, 24)[0]
    received, lost = conn.recv(command.flags, priority)
    if lost:
        command.put(RETURN_FLAGS, c.RECV_DROPPED_MSGS)
    command.put(32, lost)
    if received is None or received.return_flags < 0:
        command.put(40, conn.pool.empty, 0, 0)
        if received is not None:
            request.error = errno.EAGAIN
        return
    request.received = received
    command.put(40, received.offset, received.size, received.return_flags)


COMMANDS: dict[str, Callable[..., None]] = {
    "BUS_MAKE": bus_make,
    "ENDPOINT_MAKE": endpoint_make,
    "ENDPOINT_UPDATE": endpoint_update,
    "HELLO": hello,
    "UPDATE": update,
    "BYEBYE": byebye,
    "FREE": free,
    "CONN_INFO": conn_info,
    "BUS_CREATOR_INFO": creator_info,
    "LIST": listing,
    "SEND": send,
    "RECV": recv,
    "NAME_ACQUIRE": name_acquire,
    "NAME_RELEASE": name_release,
    "MATCH_ADD": match_add,
    "MATCH_REMOVE": match_remove,
}
