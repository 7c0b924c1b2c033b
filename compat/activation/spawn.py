"""Starts the processes of services and learns how they end.

Invariants: the bus never waits, neither for exec nor for an exit; a process gets no descriptor of
the bus but 1 and 2; only processes started here are ever reaped here, and each exactly once.

dbus-daemon puts a second process, the "babysitter", between itself and the service. Here the
service is a direct child that a pidfd watches; where the kernel has none (before Linux 5.3), a
thread waits for it. What the babysitter reports comes through a pipe that exec closes.

As from dbus-daemon, a service stays in the bus's session and process group, has the limit of open
files that the bus itself was started with, does not inherit the bus's protection from the
out-of-memory killer, and ignores SIGPIPE.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import resource
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from .. import capabilities, errors, ways
from ..errors import DBusError
from . import journal

OOM_SCORE = "/proc/self/oom_score_adj"


@dataclass(slots=True, eq=False)
class Child:
    """A started process.

    `name`: what messages call it; `exec_errno`: why exec failed, 0 while or where it did not;
    `running`: it has not been reaped; `status`: what waitpid(2) said after that, or None if
    somebody else took it away; `on_exit`: whom to tell, None if nobody cares any more.
    """

    name: str
    pid: int
    on_exit: Callable[[Child], None] | None
    report: int  # read end of the pipe; -1 once it was read
    pidfd: int = -1  # or of /proc/PID, which stands for the process as well
    exec_errno: int = 0
    running: bool = True
    status: int | None = None

    def kill(self) -> None:
        """SIGKILL. Before the process is reaped its pid can't be anybody else's."""
        if self.running:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except OSError:
                pass  # a set-uid program that the bus may not kill


def failure(child: Child) -> DBusError | None:
    """How a child that ended failed, in dbus-daemon's words; None after exit status 0."""
    name, status = child.name, child.status
    if child.exec_errno:
        reason = os.strerror(child.exec_errno)
        return DBusError(errors.SPAWN_EXEC_FAILED, f"Failed to execute program {name}: {reason}")
    if status is None:
        return DBusError(errors.FAILED, f"Process {name} exited, reason unknown")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return DBusError(errors.SPAWN_CHILD_SIGNALED, f"Process {name} received signal {number}")
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    return DBusError(errors.SPAWN_CHILD_EXITED, f"Process {name} exited with status {code}")


class Spawner:
    """Starts processes; `children` holds those that have not been reaped, by pid."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.children: dict[int, Child] = {}

    def start(
        self,
        name: str,
        argv: list[bytes],
        environment: dict[bytes, bytes],
        on_exit: Callable[[Child], None],
        nofile: tuple[int, int] | None = None,
        to_journal: bool = False,
    ) -> Child:
        """Starts `argv[0]`, a path; that it cannot be executed comes as the child's end.

        `nofile`: soft and hard limit of open files for it; `to_journal`: its output shall go to the
        systemd journal if there is one. Raises DBusError if no process can be made.
        """
        try:
            report, report_end = _pipe()
        except OSError as error:
            raise DBusError(
                errors.SPAWN_FAILED,
                "Failed to create pipe for communicating with child process "
                f"({os.strerror(error.errno or 0)})",
            ) from None
        out = journal.stream(name, journal.INFO) if to_journal else None
        err = journal.stream(name, journal.WARNING) if to_journal else None
        streams = (out.fileno() if out else -1, err.fileno() if err else -1)
        try:
            pid = _fork(argv, environment, report_end, streams, nofile)
        except OSError as error:
            os.close(report)
            reason = os.strerror(error.errno or 0)
            raise DBusError(errors.SPAWN_FORK_FAILED, f"Failed to fork ({reason})") from None
        finally:
            os.close(report_end)
            for stream in (out, err):
                if stream is not None:
                    stream.close()
        child = Child(name, pid, on_exit, report)
        self.children[pid] = child
        try:
            self.loop.add_reader(report, self._read_report, child)
        except OSError:
            pass  # no room in the poller: it is read when the child ends
        self._watch(child)
        return child

    def close(self) -> None:
        """Lets go of all children without ending them."""
        for child in list(self.children.values()):
            child.on_exit = None
            self._read_report(child)
            self._unwatch(child)
        self.children.clear()

    # The pipe: empty and closed after exec, or an errno.

    def _read_report(self, child: Child) -> None:
        if child.report < 0:
            return
        try:
            data = os.read(child.report, 4)
        except OSError:
            data = b""
        child.exec_errno = int.from_bytes(data, "little")
        self.loop.remove_reader(child.report)
        os.close(child.report)
        child.report = -1

    # The end of a process

    def _watch(self, child: Child) -> None:
        try:
            child.pidfd = os.pidfd_open(child.pid)
            self.loop.add_reader(child.pidfd, self._ended, child)
        except (OSError, AttributeError):
            # An old kernel or C library, a sandbox, or no descriptor left.
            if child.pidfd < 0:
                child.pidfd = _place_of(child.pid)
            threading.Thread(
                target=_wait, args=(self.loop, child, self._waited), daemon=True, name=child.name
            ).start()

    def _unwatch(self, child: Child) -> None:
        if child.pidfd >= 0:
            self.loop.remove_reader(child.pidfd)
            os.close(child.pidfd)
            child.pidfd = -1

    def _waited(self, child: Child) -> None:
        """The thread has waited; if it could not, there is one look a second."""
        self._ended(child)
        if child.running:
            self.loop.call_later(1.0, self._waited, child)

    def _ended(self, child: Child) -> None:
        if not child.running:
            return
        try:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid == 0:
                return
            child.status = status
        except ChildProcessError:
            pass  # reaped by somebody who waits for any child
        child.running = False
        self.children.pop(child.pid, None)
        self._unwatch(child)
        # It wrote its errno before it ended, but both may be news of this very moment.
        self._read_report(child)
        on_exit, child.on_exit = child.on_exit, None
        if on_exit is not None:
            on_exit(child)


def _place_of(pid: int) -> int:
    """A descriptor of /proc/PID, which is of this process for ever; -1 where there is none."""
    try:
        return os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1


def _wait(loop: asyncio.AbstractEventLoop, child: Child, ended: Callable[[Child], None]) -> None:
    """Body of a thread: waits for one process, but leaves reaping it to the loop's thread."""
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    except OSError:
        pass
    try:
        loop.call_soon_threadsafe(ended, child)
    except RuntimeError:
        pass  # the loop is closed, the bus about to end


def _pipe() -> tuple[int, int]:
    """One that never blocks; not every system makes it in one call."""
    ends = os.pipe()
    try:
        for end in ends:
            os.set_blocking(end, False)
    except OSError:
        for end in ends:
            os.close(end)
        raise
    return ends


def _fork(
    argv: list[bytes],
    environment: dict[bytes, bytes],
    report: int,
    streams: tuple[int, int],
    nofile: tuple[int, int] | None,
) -> int:
    """The pid of the new process. OSError if there is none."""
    # No signal may reach the bus's handlers, and no destructor its epoll set, in the child.
    collecting = gc.isenabled()
    gc.disable()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _become(argv, environment, report, streams, nofile, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if collecting:
            gc.enable()
    return pid


def _become(
    argv: list[bytes],
    environment: dict[bytes, bytes],
    report: int,
    streams: tuple[int, int],
    nofile: tuple[int, int] | None,
    mask: set[Any],
) -> NoReturn:
    """In the child: turns it into the service, or reports why not."""
    code = errno.EINVAL
    try:
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, 3)
        _redirect(streams)
        _close_others(report)
        _reset_signals(mask)
        _reset_oom_score()
        if nofile is not None:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, nofile)
            except (OSError, ValueError) as error:
                text = f"Failed to reset fd limit before activating service: {error}\n"
                os.write(2, text.encode())
        # Python refuses an empty path itself; the kernel would say this.
        code = errno.ENOENT
        if argv[0]:
            os.execve(argv[0], argv, environment)
    except OSError as error:
        code = error.errno or errno.EINVAL
    except BaseException:
        # Anything else would run the bus a second time.
        code = errno.EINVAL
    finally:
        try:
            os.write(report, code.to_bytes(4, "little"))
        finally:
            os._exit(1)


def _redirect(streams: tuple[int, int]) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.set_inheritable(0, True)
    for target, stream in zip((1, 2), streams, strict=True):
        if stream >= 0:
            os.dup2(stream, target)
        try:
            os.set_inheritable(target, True)
        except OSError:
            pass  # the bus was started without it


def _close_others(report: int) -> None:
    fds = ways.open_fds()
    if fds is None:
        os.closerange(3, report)
        os.closerange(report + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        return
    for fd in fds:
        if fd > 2 and fd != report:
            try:
                os.close(fd)
            except OSError:
                pass  # the descriptor that listed them


def _reset_signals(mask: set[Any]) -> None:
    """Default actions and the mask the bus was started with, but for SIGPIPE, which is ignored."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    # Python ignores these two, dbus-daemon the first.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _reset_oom_score() -> None:
    """A bus that the out-of-memory killer spares does not make its services so."""
    try:
        with open(OOM_SCORE, "rb", buffering=0) as file:
            if int(file.read()) >= 0:
                return
        capabilities.own_proc_files()
        fd = os.open(OOM_SCORE, os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, b"0")
        os.close(fd)
    except (OSError, ValueError):
        pass
