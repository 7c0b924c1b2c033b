"""Giver: the running process's side of an upgrade.

Invariant: until the new process has said that it has taken over all there is, and the old one has
heard it, this is the bus; whatever goes wrong before ends the new process, and nothing has changed.
From then on this process serves nobody: it ends at once, or becomes the bus's keeper. There is no
moment with two buses: the new one serves nobody until it hears "go", or finds us gone.

Nobody is kept waiting while the new process starts: it is ready to take over before we stop.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from .. import capabilities, process
from ..errors import FAILED, DBusError
from . import form, keeper
from .channel import MAX_FDS, Broken, Channel, Packet, pair
from .document import composed, places_of
from .peers import stays

if TYPE_CHECKING:
    from ..daemon import Daemon

START = 60.0
"""Seconds that the new process has until it is ready; the bus goes on meanwhile."""
TAKE = 5.0
"""Seconds that it has to take over, in which nobody is served; and one more for each 50 MB."""
_PACE = 50_000_000

_HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that wait until it is clear whom they are for."""

_PR_SET_CHILD_SUBREAPER = 36


class Giver:
    """One attempt. `command`: a program to run instead of what runs now, or ""; `caller`:
    connection and serial of the call that asked; `over` is called when the attempt has failed."""

    def __init__(
        self,
        daemon: Daemon,
        command: str,
        caller: tuple[Any, int] | None,
        over: Callable[[], None],
    ) -> None:
        self.daemon = daemon
        self.caller = caller
        self.over = over
        self.words = new_command(command)
        self.loop: Any = None
        self.channel: Channel
        self.child: subprocess.Popen[bytes]
        self.timer: Any = None
        self.version = 0

    def start(self) -> None:
        """Starts the new process. Raises DBusError if that cannot be done, or must not."""
        daemon = self.daemon
        service: Any = daemon.service
        self.loop = service.hub.loop
        what = stays(service)
        if what:
            raise DBusError(FAILED, f"Upgrade is not possible: there are {what}")
        try:
            self.channel, its = pair()
            with its, capabilities.handed_on():
                self.child = subprocess.Popen(
                    [*self.words, f"--take-over={its.fileno()}"],
                    pass_fds=(its.fileno(),),
                    cwd=daemon.directory,
                )
        except OSError as error:
            text = f"Upgrade failed: cannot start {self.words[0]}: {error.strerror}"
            raise DBusError(FAILED, text) from None
        daemon.log.info(f"Upgrading to {' '.join(self.words)} (process {self.child.pid})")
        self.timer = self.loop.call_later(START, self.fail, f"it is not ready after {START:g} s")
        self.loop.add_reader(self.channel.fileno(), self.hear)
        metrics = [sock for _, sock in daemon.metrics if sock is not None]
        try:
            self.channel.send(
                {
                    "guid": service.bus.guid,
                    "address": daemon.address,
                    "fd_limit": daemon.fd_limit,
                    "metrics": [place for place, sock in daemon.metrics if sock is not None],
                },
                [sock.fileno() for sock in metrics],
            )
        except Broken as reason:
            self.loop.call_soon(self.fail, f"it {reason}")

    def hear(self) -> None:
        """The new process is ready, or says why not, or has ended."""
        if self.timer is None:
            return
        try:
            packet, _ = self.channel.receive(1.0)
        except Broken as reason:
            self.fail(f"it {reason}{self.end()}")
            return
        if "ready" not in packet:
            self.fail(f"it {_complaint(packet)}")
        elif not self.choose(packet["ready"]):
            known = ", ".join(map(str, packet["ready"]))
            self.fail(f"it reads states of version {known}, and this bus writes {form.VERSION}")
        else:
            self.give()

    def choose(self, read: list[int]) -> bool:
        """Chooses in which version the state is written, of those that the new process reads; False
        if there is none that holds all there is."""
        service: Any = self.daemon.service
        oldest = form.OLDEST if service.front.doors is None else form.WITH_ENDPOINTS
        self.version = max((v for v in read if oldest <= v <= form.VERSION), default=0)
        return self.version > 0

    def give(self) -> None:
        """Stops serving and hands over; goes on serving if that fails."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
        collecting = gc.isenabled()
        gc.disable()
        try:
            kept = self.hand_over()
        except Exception as error:
            reason = f"it {error}{self.end()}" if isinstance(error, Broken) else f"{error!r}"
            self.fail(reason)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        else:
            self.leave(kept)
        finally:
            if collecting:
                gc.enable()

    def hand_over(self) -> socket.socket | None:
        """Everything, up to "taken". Our end of the keeper's socket, if we are to be it."""
        daemon = self.daemon
        service: Any = daemon.service
        service.hub.flush()
        began = time.monotonic_ns()
        used = time.process_time_ns()
        what = stays(service)
        if what:
            raise Broken(f"cannot take over {what}")
        kept = None
        if daemon.keeper is None and not os.environ.get("NOTIFY_SOCKET"):
            # Nobody but the pid's owner knows who waits for it.
            kept, daemon.keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            document, luggage = composed(daemon, service, self.caller, began, kept is not None)
            sets = places_of(luggage)
            pieces = form.pack(document, luggage.blobs, sets, self.version)
            file = _sealed(pieces)
            size = sum(map(len, pieces))
            try:
                used = time.process_time_ns() - used
                about = {"state": size, "fds": len(luggage.fds), "used": used}
                self.channel.send(about, [file], TAKE)
            finally:
                os.close(file)
            for i in range(0, len(luggage.fds), MAX_FDS):
                self.channel.send({}, luggage.fds[i : i + MAX_FDS], TAKE)
            packet = self.answer(TAKE + size / _PACE)
            if packet.get("taken") != document["bus"]["last_id"]:
                raise Broken(_complaint(packet))
        except BaseException:
            if kept is not None:
                kept.close()
                daemon.keeper.close()  # type: ignore[union-attr]
                daemon.keeper = None
            raise
        return kept

    def answer(self, timeout: float) -> Packet:
        return self.channel.receive(timeout)[0]

    def leave(self, kept: socket.socket | None) -> NoReturn:
        """Ends this process, which is the bus no more. Nothing that peers see may be closed in any
        other way than by the kernel, nothing in the file system is touched."""
        pid = self.child.pid
        daemon = self.daemon
        with contextlib.suppress(Exception):
            if kept is None and daemon.keeper is not None:
                daemon.keeper.send(b"%d" % pid)
            process.notify(f"MAINPID={pid}")
            daemon.forget_reading()
        with contextlib.suppress(Broken):
            # If it does not hear it, it finds us gone.
            self.channel.send({"go": True})
        try:
            if kept is not None:
                _become_keeper(kept, pid)
            for number in signal.sigpending() & set(_HELD_BACK):
                os.kill(pid, number)
        finally:
            os._exit(0)

    def end(self) -> str:
        """How the new process ended, if it has."""
        try:
            code = self.child.wait(0.5)
        except subprocess.TimeoutExpired:
            return ""
        return f" (killed by signal {-code})" if code < 0 else f" (exit status {code})"

    def fail(self, reason: str) -> None:
        """The attempt is over; the new process is ended, before anything else."""
        if self.timer is None:
            return
        self.timer.cancel()
        self.timer = None
        self.child.kill()
        self.child.wait()
        self.loop.remove_reader(self.channel.fileno())
        self.channel.close()
        text = f"Upgrade failed: {reason}; the bus goes on as it was"
        self.daemon.log.warning(text)
        service: Any = self.daemon.service
        if self.caller is not None:
            conn, serial = self.caller
            if conn.transport is not None and not conn.monitor:
                service.front.driver.error(conn, serial, FAILED, text)
        self.over()


def new_command(program: str) -> list[str]:
    """How the new process is called: as this one was, or `program` with the same options."""
    words = [program, *sys.argv[1:]] if program else sys.orig_argv
    return [word for word in words if not word.startswith("--take-over=")]


def _complaint(packet: Packet) -> str:
    return f"says: {packet['refused']}" if "refused" in packet else "says what makes no sense"


def _sealed(pieces: list[bytes]) -> int:
    """A file that holds these bytes, has no name, and cannot be changed any more."""
    try:
        fd = os.memfd_create("jitney-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        with open(fd, "wb", closefd=False) as out:
            out.writelines(pieces)
        with contextlib.suppress(AttributeError, OSError):
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _become_keeper(kept: socket.socket, pid: int) -> NoReturn:
    # The bus's later processes become children of this one when theirs has left.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    fd = kept.detach()
    os.set_inheritable(fd, True)
    words = [sys.executable, "-I", "-S", keeper.__file__, str(fd), str(pid)]
    with contextlib.suppress(OSError):
        os.execv(words[0], words)
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
    keeper.Keeper(fd, pid).run()
