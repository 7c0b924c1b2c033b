"""Root: the directory that a tree of sockets is in, and the sockets and folders in it.

Invariant: as long as it is open it is locked (flock), and nodes in it that we did not make were
left by the dead. It belongs to whom it is served by, so that what is done in it by name is done to
our own sockets; but while we are root and make nodes for a user whom we will become, it is root's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat

BACKLOG = 1024
PATH_MAX = 107
"""A socket's address has no room for more."""
CONTROL = b"control"
_LEFT = re.compile(r"[0-9]+-")
"""How the names of buses begin."""


class Root:
    """`user`: (uid, gid) of whom we will become. OSError if it cannot be ours."""

    def __init__(
        self, path: str, kind: int = socket.SOCK_SEQPACKET, user: tuple[int, int] | None = None
    ) -> None:
        self.path = os.path.abspath(path)
        self.kind = kind
        self.user = user
        self.made = self.locked = False
        # Folders and sockets that were made before there was anybody to serve them.
        self.folders: dict[bytes, int] = {}
        self.sockets: dict[tuple[bytes, bytes], socket.socket] = {}
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
        whose = self.user[0] if self.user is not None else me
        # One of root's is handed over where nobody uses it for anything else.
        if found.st_uid != whose and (found.st_uid != me or os.listdir(self.fd)):
            text = f"the directory does not belong to the user with uid {whose}"
            raise OSError(errno.EPERM, text, self.path)
        if found.st_mode & 0o022:
            raise OSError(errno.EPERM, "others may write to this directory", self.path)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(errno.EADDRINUSE, "served by another process", self.path) from error
        self.locked = True
        if found.st_uid != me:
            os.fchown(self.fd, me, -1)
        self.clear()

    def clear(self) -> None:
        """Removes all nodes."""
        for name in os.listdir(self.fd):
            mode = os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode
            if stat.S_ISSOCK(mode) and name == CONTROL.decode():
                os.unlink(name, dir_fd=self.fd)
            elif stat.S_ISDIR(mode) and _LEFT.match(name):
                self.remove(os.fsencode(name))

    def remove(self, name: bytes) -> None:
        """A folder with the sockets in it; if there is something else, it stays."""
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

    # Nodes

    def folder(self, name: bytes) -> int:
        """A bus's directory, open."""
        found = self.folders.pop(name, -1)
        if found >= 0:
            return found
        os.mkdir(name, 0o755, dir_fd=self.fd)
        found = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        os.fchmod(found, 0o755)
        return found

    def socket(
        self, folder: int, bus: bytes, name: bytes, mode: int, owner: tuple[int, int] | None = None
    ) -> socket.socket:
        """One that listens; `folder` is the bus's (b"": the root itself)."""
        made = self.sockets.pop((bus, name), None)
        if made is not None:
            # From now on those who connect see that it is ours.
            made.listen(BACKLOG)
            return made
        sock = socket.socket(socket.AF_UNIX, self.kind)
        try:
            sock.setblocking(False)
            address = os.path.join(self.path.encode(), bus, name)
            if len(address) > PATH_MAX or self.user is not None:
                # Nor is a path to be trusted that leads through somebody else's directory.
                address = b"/proc/self/fd/%d/%s" % (folder, name)
            sock.bind(address)
            try:
                # Nobody can connect before it listens, and nobody else writes to this directory.
                os.chmod(name, mode, dir_fd=folder)
                if owner not in (None, (os.geteuid(), os.getegid())):
                    assert owner is not None
                    os.chown(name, *owner, dir_fd=folder, follow_symlinks=False)
                    os.chmod(name, mode, dir_fd=folder)
                if hasattr(socket, "SO_PASSCRED"):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                sock.listen(BACKLOG)
            except BaseException:
                os.unlink(name, dir_fd=folder)
                raise
        except BaseException:
            sock.close()
            raise
        return sock

    def prepare(self, control: int, bus: bytes, mode: int, owner: tuple[int, int]) -> None:
        """Makes the control node and a bus's default endpoint, for a server that will come, and
        gives all to the user whom we will become."""
        self.sockets[b"", CONTROL] = self.socket(self.fd, b"", CONTROL, control, self.user)
        folder = self.folder(bus)
        self.folders[bus] = folder
        self.sockets[bus, b"bus"] = self.socket(folder, bus, b"bus", mode, owner)
        if self.user is not None:
            os.fchown(folder, *self.user)
            os.fchown(self.fd, *self.user)
            self.user = None

    def close(self) -> None:
        """The nodes go; the directory as well, if we made it and may."""
        if self.fd < 0:
            return
        for folder in self.folders.values():
            os.close(folder)
        for sock in self.sockets.values():
            sock.close()
        if self.locked:
            self.clear()
            if self.user is not None:
                os.fchown(self.fd, *self.user)
        os.close(self.fd)
        self.fd = -1
        if self.made:
            try:
                os.rmdir(self.path)
            except OSError:
                pass
