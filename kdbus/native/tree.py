"""Tree: the directory with a listening socket for each node.

Invariant: a node is there before whoever made it is told so, and gone before its bus or endpoint
is. Directories belong to the server, so that what it does in them by name is done to its own
sockets; each socket has the owner and mode that kdbus gives the node, before it listens.

The directory is locked (flock) as long as it is served: nodes that are in it were left by the dead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
from collections.abc import Callable
from typing import Any

from jitney.broker.kdbus.bus import Bus
from jitney.broker.kdbus.endpoint import Endpoint
from jitney.broker.kdbus.errors import KdbusError

BACKLOG = 1024
PATH_MAX = 107
"""A socket's address has no room for more."""
CONTROL = b"control"
_LEFT = re.compile(r"[0-9]+-")
"""How the names of buses begin."""


class Node:
    """A listening socket; `endpoint` None: the control node."""

    def __init__(self, sock: socket.socket, endpoint: Endpoint | None) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.endpoint = endpoint


class Root:
    """The directory that nodes are in, locked; of `user` (uid, gid), who we may become later."""

    def __init__(self, path: str, user: tuple[int, int] | None = None) -> None:
        self.path = os.path.abspath(path)
        self.user = user if user is not None else (os.geteuid(), os.getegid())
        self.made = self.locked = False
        try:
            os.mkdir(self.path)
            os.chmod(self.path, 0o755)
            self.made = True
        except FileExistsError:
            pass
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.take()
        except BaseException:
            self.close()
            raise

    def take(self) -> None:
        """Makes sure that it is ours alone, and has no nodes."""
        found = os.fstat(self.fd)
        me = os.geteuid()
        if self.user[0] != me and found.st_uid == me and not os.listdir(self.fd):
            # What we have made, or somebody for us; nothing that is in use.
            os.fchown(self.fd, *self.user)
            found = os.fstat(self.fd)
        if found.st_uid != self.user[0]:
            text = f"the directory does not belong to the user with uid {self.user[0]}"
            raise OSError(errno.EPERM, text, self.path)
        if found.st_mode & 0o022:
            raise OSError(errno.EPERM, "others may write to this directory", self.path)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(errno.EADDRINUSE, "served by another process", self.path) from error
        self.locked = True
        self.clear()

    def clear(self) -> None:
        for name in os.listdir(self.fd):
            mode = os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode
            if stat.S_ISSOCK(mode) and name == CONTROL.decode():
                os.unlink(name, dir_fd=self.fd)
            elif stat.S_ISDIR(mode) and _LEFT.match(name):
                self.remove_folder(os.fsencode(name))

    def remove_folder(self, name: bytes) -> None:
        """With the sockets in it; if there is something else, it stays."""
        try:
            fd = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd
            )
            try:
                for entry in os.listdir(fd):
                    if stat.S_ISSOCK(os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode):
                        os.unlink(entry, dir_fd=fd)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=self.fd)
        except OSError:
            pass

    def close(self) -> None:
        """The nodes go; the directory as well, if we made it and may."""
        if self.fd < 0:
            return
        if self.locked:
            self.clear()
        os.close(self.fd)
        self.fd = -1
        if self.made:
            try:
                os.rmdir(self.path)
            except OSError:
                pass


class Tree:
    """`opened(node)` and `closed(node)` tell of each node that comes and goes. `control`: the mode
    of the control node."""

    def __init__(
        self,
        root: Root,
        kind: int,
        opened: Callable[[Node], None],
        closed: Callable[[Node], None],
        control: int,
    ) -> None:
        self.place = root
        self.path = root.path
        self.root = root.fd
        self.kind = kind
        self.opened = opened
        self.closed = closed
        self.nodes: dict[Any, Node] = {}
        self.folders: dict[Bus, int] = {}
        self.listen(self.root, CONTROL, None, control)

    # Nodes

    def listen(self, folder: int, name: bytes, endpoint: Endpoint | None, mode: int) -> None:
        sock = socket.socket(socket.AF_UNIX, self.kind)
        try:
            sock.setblocking(False)
            where = self.path.encode() if folder == self.root else None
            if endpoint is not None:
                where = os.path.join(self.path.encode(), endpoint.bus.name)
            address = os.path.join(where or b"", name)
            if len(address) > PATH_MAX:
                address = b"/proc/self/fd/%d/%s" % (folder, name)
            sock.bind(address)
            try:
                # Nobody can connect before it listens, and nobody else writes to this directory.
                os.chmod(name, mode, dir_fd=folder)
                if endpoint is not None:
                    self.give(folder, name, (endpoint.uid, endpoint.gid), mode)
                if hasattr(socket, "SO_PASSCRED"):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                sock.listen(BACKLOG)
            except BaseException:
                os.unlink(name, dir_fd=folder)
                raise
        except BaseException:
            sock.close()
            raise
        node = self.nodes[endpoint] = Node(sock, endpoint)
        self.opened(node)

    def give(self, folder: int, name: bytes, owner: tuple[int, int], mode: int) -> None:
        if owner == (os.geteuid(), os.getegid()):
            return
        try:
            os.chown(name, *owner, dir_fd=folder, follow_symlinks=False)
            os.chmod(name, mode, dir_fd=folder)
        except PermissionError:
            # Whose it is makes no difference where everybody may connect.
            if mode & 0o666 != 0o666:
                raise

    def made(self, bus: Bus, endpoint: Endpoint | None) -> None:
        """The domain has one more; KdbusError if it cannot be shown."""
        try:
            if endpoint is None:
                os.mkdir(bus.name, 0o755, dir_fd=self.root)
                self.folders[bus] = os.open(
                    bus.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.root
                )
                os.fchmod(self.folders[bus], 0o755)
                endpoint = bus.default
            self.listen(self.folders[bus], endpoint.name, endpoint, endpoint.mode)
        except OSError as error:
            raise KdbusError(error.errno or errno.EIO) from error

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
                os.rmdir(bus.name, dir_fd=self.root)
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
        self.unlink(CONTROL, self.root)
        self.place.close()
