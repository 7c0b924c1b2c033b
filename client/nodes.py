"""Nodes: making a bus or an endpoint, which lasts as long as who made it holds on to it.

Invariant: when `close()` returns, the bus is about to end what was made; it does so too when the
process ends.
"""

from __future__ import annotations

import os
import struct

from jitney.broker.kdbus import constants as c

from . import frames, items
from .errors import error_of
from .link import Link, close_all, open_socket
from .rules import Policy, pack_policy


class Node:
    """What `make_bus()` and `make_endpoint()` give. `path` is where its clients connect to."""

    def __init__(self, link: Link, name: str, path: str) -> None:
        self._link = link
        self.name = name
        self.path = path

    async def __aenter__(self) -> Node:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it, with all of its connections. Nothing happens the second time."""
        self._link.close()

    async def update(self, policy: Policy) -> None:
        """ENDPOINT_UPDATE: the endpoint's policy from now on (kdbus.endpoint(7)).

        BusError EBADFD for a bus, EINVAL and EEXIST for a policy that cannot be."""
        data = frames.command("ENDPOINT_UPDATE", items=pack_policy(policy))
        await _do(self._link, "ENDPOINT_UPDATE", data)


async def _do(link: Link, name: str, data: bytes) -> None:
    answer, fds = await link.ask(frames.OPS[name], [data])
    close_all(fds)
    if answer.error:
        raise error_of(answer.error, name)


async def _make(path: str, command: str, name: str, access: int, more: bytes) -> Link:
    link = Link(await open_socket(path))
    try:
        data = items.text(c.ITEM_MAKE_NAME, name.encode()) + more
        await _do(link, command, frames.command(command, access, items=data))
        return link
    except BaseException:
        link.close()
        raise


async def make_bus(
    directory: str | os.PathLike[str],
    name: str,
    *,
    bloom_size: int = 64,
    bloom_hashes: int = 8,
    attach: int = 0,
    group: bool = False,
    world: bool = False,
) -> Node:
    """BUS_MAKE (kdbus.bus(7)) in a directory of `jitney sockets`: the bus "UID-`name`".

    `bloom_size`: bytes of a filter, a multiple of 8 up to 4096; what sd-bus knows is 64 and 8.
    `attach`: what BUS_CREATOR_INFO tells about us. `group` and `world` may open it as well; by
    default only its user may. NameTaken, TooManyDescriptors (16 buses a user), BusError EINVAL."""
    full = f"{os.geteuid()}-{name}"
    more = items.pack(c.ITEM_BLOOM_PARAMETER, struct.pack("<2Q", bloom_size, bloom_hashes))
    more += items.pack(c.ITEM_ATTACH_FLAGS_SEND, struct.pack("<Q", attach))
    control = os.path.join(os.fspath(directory), "control")
    link = await _make(control, "BUS_MAKE", full, _access(group, world), more)
    return Node(link, full, os.path.join(os.fspath(directory), full, "bus"))


async def make_endpoint(
    bus: str | os.PathLike[str],
    name: str,
    policy: Policy = (),
    *,
    group: bool = False,
    world: bool = False,
) -> Node:
    """ENDPOINT_MAKE (kdbus.endpoint(7)): another door to the bus at this path, "UID-`name`".

    Nothing is seen, called or owned through it but what `policy` allows. NotPermitted for who does
    not own the bus, NameTaken, BusError EINVAL."""
    full = f"{os.geteuid()}-{name}"
    link = await _make(os.fspath(bus), "ENDPOINT_MAKE", full, _access(group, world), b"")
    node = Node(link, full, os.path.join(os.path.dirname(os.fspath(bus)), full))
    try:
        if policy:
            await node.update(policy)
    except BaseException:
        node.close()
        raise
    return node


def _access(group: bool, world: bool) -> int:
    return (c.ACCESS_GROUP if group else 0) | (c.ACCESS_WORLD if world else 0)
