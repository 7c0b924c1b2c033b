"""Mounting: /dev/fuse and a mount point become one, by whatever right there is.

Invariant: what was mounted here is unmounted here. With CAP_SYS_ADMIN in the mount's namespace
mount(2) does it; without, fusermount3 where it is installed, for the user alone.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import shutil
import socket
import subprocess

_libc = ctypes.CDLL(None, use_errno=True)

NOSUID, NODEV, NOEXEC = 2, 4, 8
FORCE, DETACH = 1, 2
TYPE = "fuse.kdbusfs"


class Mount:
    """A mounted tree. `device` is the number of the file system, and of FUSE's connection."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self.helper = False
        self.fd = -1
        try:
            self.fd = self.by_syscall()
        except PermissionError:
            if shutil.which("fusermount3") is None:
                raise
            self.fd = self.by_helper()
            self.helper = True
        self.device = device_of(self.path)

    def by_syscall(self) -> int:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = (
            f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},"
            "default_permissions,allow_other"
        )
        done = _libc.mount(
            b"kdbusfs",
            os.fsencode(self.path),
            TYPE.encode(),
            ctypes.c_ulong(NOSUID | NODEV | NOEXEC),
            options.encode(),
        )
        if done < 0:
            number = ctypes.get_errno()
            os.close(fd)
            raise OSError(number, os.strerror(number), self.path)
        return fd

    def by_helper(self) -> int:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            words = [
                "fusermount3",
                "-o",
                "fsname=kdbusfs,subtype=kdbusfs,default_permissions",
                "--",
            ]
            done = subprocess.run(
                [*words, self.path],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                check=False,
            )
            if done.returncode:
                raise OSError(errno.EPERM, "fusermount3 refused", self.path)
            _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
            fds = array.array("i")
            for _, _, data in ancillary:
                fds.frombytes(data[:4])
            os.set_inheritable(fds[0], False)
            return fds[0]

    def close(self) -> None:
        unmount(self.path, self.device, self.helper)


def unmount(path: str, device: int, helper: bool = False) -> None:
    """Takes a mount away, whatever state it is in; who has files of it open gets errors.

    Only if it is that one: another daemon may have taken the place meanwhile."""
    if not device or device_of(path) != device:
        return
    if helper:
        words = ["fusermount3", "-u", "-z", "-q", "--", path]
        subprocess.run(words, check=False, stderr=subprocess.DEVNULL)
        return
    # FORCE ends requests that nobody will answer; DETACH takes it out of sight.
    _libc.umount2(os.fsencode(path), FORCE)
    _libc.umount2(os.fsencode(path), DETACH)


def device_of(path: str) -> int:
    """The device number of what is mounted there, without asking the file system itself."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        found = 0
        for line in file:
            words = line.split(" ")
            where = words[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            if where == path:
                major, minor = words[2].split(":")
                found = os.makedev(int(major), int(minor))
    return found
