"""Keeper: what becomes of the first process of a bus when another one goes on, so that whoever
knows the bus by its pid still does.

Invariant: it lives as long as the bus, passes on the signals that it gets, ends as the bus ended,
and tells the bus how processes ended that are no longer the bus's children. When it is killed, the
bus ends. It runs as a script of its own, without jitney and without site-packages; it needs nothing
that an upgrade may have replaced.

    keeper.py DESCRIPTOR PID

The descriptor is one end of a SOCK_SEQPACKET pair. From the bus: "PID", who is the bus from now on;
to the bus: "PID STATUS", a process that ended, with the status of waitpid(2).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from typing import NoReturn

HEIR_AFTER = 300
"""Hundredths of a second after which a process that is no child of ours never becomes one."""

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Keeper:
    """Keeps the bus `pid`, which has the other end of `fd`."""

    def __init__(self, fd: int, pid: int) -> None:
        self.fd = fd
        self.pid = pid
        self.ended: dict[int, int] = {}
        self.inward, outward = os.pipe()
        for end in (fd, self.inward, outward):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(outward, warn_on_full_buffer=False)
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        # Whoever was this process before has blocked them, so that none is lost.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def run(self) -> NoReturn:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        poll.register(self.inward, select.POLLIN)
        self.reap()
        while True:
            poll.poll()
            self.listen()
            try:
                for number in os.read(self.inward, 256):
                    if number != signal.SIGCHLD:
                        os.kill(self.pid, number)
            except OSError:
                pass  # nothing there, or nobody to pass it on to any more
            self.reap()

    def listen(self) -> None:
        """Who is the bus now."""
        while True:
            try:
                packet = os.read(self.fd, 64)
            except OSError:
                return
            if not packet:
                leave(self.last())
            self.pid = int(packet)

    def last(self) -> int:
        """How the bus ended. The kernel closes a process's descriptors before it tells of its end,
        and before we become the parent of its children."""
        for _ in range(HEIR_AFTER):
            try:
                return os.waitpid(self.pid, 0)[1]
            except ChildProcessError:
                if self.pid in self.ended:
                    return self.ended[self.pid]
                time.sleep(0.01)
        return 0

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            if pid == self.pid:
                self.ended[pid] = status
            else:
                try:
                    os.write(self.fd, b"%d %d" % (pid, status))
                except OSError:
                    pass  # a bus that is behind hears of it in another way, or not at all
        if self.pid in self.ended:
            # Unless there is another one by now.
            self.listen()
            if self.pid in self.ended:
                leave(self.ended[self.pid])


def leave(status: int) -> NoReturn:
    """Ends as somebody did who ended with this status."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        try:
            signal.signal(-code, signal.SIG_DFL)
        except OSError:
            pass  # SIGKILL needs none
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    Keeper(int(sys.argv[1]), int(sys.argv[2])).run()
