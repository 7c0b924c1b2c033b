"""Tree: a listening socket for each node of a domain.

Invariant: a node is there before whoever made it is told so, and gone before its bus or endpoint
is. Directories belong to the server (see `root`); each socket has the owner and mode that kdbus
gives the node, before it listens.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from jitney.broker.kdbus.bus import Bus
from jitney.broker.kdbus.endpoint import Endpoint
from jitney.broker.kdbus.errors import KdbusError

from .root import CONTROL, Root


class Node:
    """A listening socket; `endpoint` None: the control node."""

    def __init__(self, sock: socket.socket, endpoint: Endpoint | None) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.endpoint = endpoint


class Tree:
    """`opened(node)` and `closed(node)` tell of each node that comes and goes. `control`: the mode
    of the control node."""

    def __init__(
        self,
        root: Root,
        opened: Callable[[Node], None],
        closed: Callable[[Node], None],
        control: int,
    ) -> None:
        self.root = root
        self.opened = opened
        self.closed = closed
        self.nodes: dict[Any, Node] = {}
        self.folders: dict[Bus, int] = {}
        self.add(root.socket(root.fd, b"", CONTROL, control), None)

    # Nodes

    def add(self, sock: socket.socket, endpoint: Endpoint | None) -> None:
        node = self.nodes[endpoint] = Node(sock, endpoint)
        self.opened(node)

    def made(self, bus: Bus, endpoint: Endpoint | None) -> None:
        """The domain has one more; KdbusError if it cannot be shown."""
        try:
            if endpoint is None:
                self.folders[bus] = self.root.folder(bus.name)
                endpoint = bus.default
            folder, owner = self.folders[bus], (endpoint.uid, endpoint.gid)
            sock = self.root.socket(folder, bus.name, endpoint.name, endpoint.mode, owner)
        except OSError as error:
            raise KdbusError(error.errno or errno.EIO) from error
        self.add(sock, endpoint)

    def removed(self, bus: Bus, endpoint: Endpoint | None) -> None:
        if endpoint is not None:
            node = self.nodes.pop(endpoint, None)
            if node is not None:
                self.drop(node)
                self.unlink(endpoint.name, self.folders[bus])
            return
        folder = self.folders.pop(bus, None)
        if folder is not None:
            os.close(folder)
            try:
                os.rmdir(bus.name, dir_fd=self.root.fd)
            except OSError:
                pass

    def drop(self, node: Node) -> None:
        self.closed(node)
        node.sock.close()

    def unlink(self, name: bytes, folder: int) -> None:
        try:
            os.unlink(name, dir_fd=folder)
        except OSError:
            pass

    def close(self) -> None:
        for bus in list(self.folders):
            for endpoint in [key for key in self.nodes if key is not None and key.bus is bus]:
                self.removed(bus, endpoint)
            self.removed(bus, None)
        self.drop(self.nodes.pop(None))
        self.root.close()
