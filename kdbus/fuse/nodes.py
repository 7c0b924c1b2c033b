"""Nodes: the tree that a client sees, and the numbers by which FUSE knows what is in it.

Invariant: a number is never used twice. A directory and the control node have one number as long
as they exist; an endpoint gets a fresh one each time it is looked up, because page cache and
backing file belong to a number, and each opened endpoint has a pool of its own.
"""

from __future__ import annotations

import stat
from typing import Any

from jitney.broker.kdbus.bus import Bus
from jitney.broker.kdbus.domain import Domain
from jitney.broker.kdbus.endpoint import Endpoint

from . import protocol as p

CONTROL = b"control"


class Node:
    """`what`: the Domain (root), "control", a Bus or an Endpoint. `size`: of the opened pool."""

    __slots__ = ("ino", "lookups", "number", "size", "what")

    def __init__(self, number: int, what: Any, ino: int) -> None:
        self.number = number
        self.what = what
        self.ino = ino
        self.lookups = 0
        self.size = 0


class Nodes:
    """All nodes that the kernel knows of."""

    def __init__(self, domain: Domain, uid: int, gid: int) -> None:
        self.domain = domain
        self.uid = uid
        self.gid = gid
        self.last = p.ROOT + 1
        # Who may make buses.
        self.control_mode = 0o666
        self.root = Node(p.ROOT, domain, 1)
        self.control = Node(p.ROOT + 1, CONTROL, 2)
        self.by_number: dict[int, Node] = {p.ROOT: self.root, p.ROOT + 1: self.control}
        self.of_bus: dict[Bus, Node] = {}

    def get(self, number: int) -> Node | None:
        return self.by_number.get(number)

    def make(self, what: Any, ino: int) -> Node:
        self.last += 1
        node = Node(self.last, what, ino)
        self.by_number[node.number] = node
        return node

    def lookup(self, parent: Node, name: bytes) -> Node | None:
        found: Node | None = None
        if parent is self.root:
            if name == CONTROL:
                found = self.control
            else:
                bus = self.domain.buses.get(name)
                if bus is not None:
                    found = self.of_bus.get(bus)
                    if found is None:
                        found = self.of_bus[bus] = self.make(bus, bus.id << 16)
        elif isinstance(parent.what, Bus) and parent.what.active:
            endpoint = parent.what.endpoints.get(name)
            if endpoint is not None:
                found = self.make(endpoint, _ino(endpoint))
        if found is not None:
            found.lookups += 1
        return found

    def forget(self, number: int, count: int) -> None:
        node = self.by_number.get(number)
        if node is None or node in (self.root, self.control):
            return
        node.lookups -= count
        if node.lookups <= 0:
            del self.by_number[number]
            if isinstance(node.what, Bus):
                self.of_bus.pop(node.what, None)

    def is_directory(self, node: Node) -> bool:
        return node is self.root or isinstance(node.what, Bus)

    def attributes(self, node: Node) -> bytes:
        what = node.what
        links = 1
        uid, gid = self.uid, self.gid
        if node is self.root:
            mode = stat.S_IFDIR | 0o555
            links = 2
        elif isinstance(what, Bus):
            mode = stat.S_IFDIR | what.mode
            uid, gid = what.uid, what.gid
            links = 2
        elif isinstance(what, Endpoint):
            mode = stat.S_IFREG | what.mode
            uid, gid = what.uid, what.gid
        else:
            mode = stat.S_IFREG | self.control_mode
        return p.ATTR.pack(
            node.ino, node.size, 0, 0, 0, 0, 0, 0, 0, mode, links, uid, gid, 0, 4096, 0
        )

    def listing(self, node: Node) -> list[tuple[bytes, int, int]]:
        """(name, inode, type) of what is in a directory."""
        out = [(b".", node.ino, 4), (b"..", 1, 4)]
        if node is self.root:
            out.append((CONTROL, 2, 8))
            for name, bus in self.domain.buses.items():
                out.append((name, bus.id << 16, 4))
        else:
            for name, endpoint in node.what.endpoints.items():
                out.append((name, _ino(endpoint), 8))
        return out


def _ino(endpoint: Endpoint) -> int:
    number = endpoint.user[1] if endpoint.custom else 0
    return int(endpoint.bus.id << 16 | (number + 1) & 0xFFFF)
