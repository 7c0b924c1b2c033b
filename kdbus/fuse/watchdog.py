"""Watchdog: a process of its own that frees clients if ours does not answer any more.

Invariant: it holds none of our descriptors but one end of a pipe. If that is closed, we are gone,
and with us the connection: it takes the dead mount away. If nothing comes through it for LIMIT
seconds, we hang: it ends the connection, which frees every client at once, and kills us.

A client in a system call of ours cannot be killed before it is answered or the connection ends;
so whoever waits for a process that hangs would wait for ever.
"""

from __future__ import annotations

import os
import select
import signal
import time

from .mount import unmount

BEAT = 1.0
LIMIT = 10.0


class Watchdog:
    """Started before there are threads; `beat()` is to be called every BEAT seconds."""

    def __init__(self, path: str, device: int, helper: bool, limit: float = LIMIT) -> None:
        ours, theirs = os.pipe()
        # The far end goes to the child; when all near ends are closed, it knows.
        watched = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                _close_all_but(ours)
                _watch(ours, watched, path, device, helper, limit)
            finally:
                os._exit(0)
        os.close(ours)
        os.set_inheritable(theirs, False)
        os.set_blocking(theirs, False)
        self.pipe = theirs

    def beat(self) -> None:
        try:
            os.write(self.pipe, b".")
        except OSError:
            pass  # it was killed, or is slow; nothing to be done

    def close(self) -> None:
        """We are done, and have unmounted."""
        try:
            os.write(self.pipe, b"q")
        except OSError:
            pass
        os.close(self.pipe)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass


def _close_all_but(kept: int) -> None:
    for entry in os.listdir("/proc/self/fd"):
        fd = int(entry)
        if fd not in (kept, 2):
            try:
                os.close(fd)
            except OSError:
                pass
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _watch(pipe: int, watched: int, path: str, device: int, helper: bool, limit: float) -> None:
    last = time.monotonic()
    while True:
        left = last + limit - time.monotonic()
        ready, _, _ = select.select([pipe], [], [], max(left, 0))
        if ready:
            data = os.read(pipe, 4096)
            if b"q" in data:
                return
            if not data:
                break
            last = time.monotonic()
        elif time.monotonic() - last >= limit:
            end_connection(device)
            unmount(path, device, helper)
            try:
                os.kill(watched, signal.SIGKILL)
            except OSError:
                pass
            break
    unmount(path, device, helper)


def end_connection(device: int) -> None:
    """Aborts FUSE's connection where we may; each request on it ends with an error."""
    number = os.minor(device)
    try:
        fd = os.open(f"/sys/fs/fuse/connections/{number}/abort", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(fd, b"1")
    except OSError:
        pass
    finally:
        os.close(fd)
