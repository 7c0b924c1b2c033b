"""One broker that runs: where it listens, what it has used so far, and its end.

Invariant: whoever made a `Running` can get rid of it: after `stop()` no process of the broker
lives, its folder is gone, and both hold however often and whenever `stop()` is called. If we die
without it, the kernel tells the broker to end (see `spawn`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

from . import proc, wire

READY_TIMEOUT = 60.0
"""Seconds that a broker may take until it answers its first client (plain Python, many rules)."""
GRACE = 5.0
"""Seconds between asking a process to end and killing it."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None)


class BrokerError(Exception):
    """A broker that did not start, ended, or would not talk to us; the text says what it said."""


def raise_nofile() -> int:
    """Lets this process and its children have as many descriptors as the system permits."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def spawn(
    command: Sequence[str],
    cpus: set[int] | None = None,
    *,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """A child that Ctrl-C at the terminal does not reach, on these CPUs from the start.

    It is told to end when the calling thread ends, so call this from one that stays. Its
    orphans become our children, for `end` to wait for: not every container's init does."""
    parent = os.getpid()
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))

    def prepare() -> None:
        if cpus:
            os.sched_setaffinity(0, cpus)
        _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
        preexec_fn=prepare,  # noqa: PLW1509  (it takes no lock)
    )


def end(process: subprocess.Popen[bytes], others: Iterable[int] = ()) -> None:
    """Ends a child of `spawn`, its process group and `others`, its descendants; returns when all
    of them are gone."""
    if process.returncode is None:
        every = {process.pid, *proc.tree(process.pid), *others}
        born = {pid: proc.start_time(pid) for pid in every}
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        _until(lambda: not _alive(born), GRACE)
        # Not waited for yet: as long as it is not, its ids are nobody else's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in _alive(born):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        _until(lambda: not _alive(born) and not _orphans(process.pid), GRACE)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _alive(born: dict[int, str]) -> list[int]:
    return [
        pid
        for pid, start in born.items()
        if start and proc.start_time(pid) == start and proc.state(pid) not in ("", "Z", "X")
    ]


def _orphans(group: int) -> bool:
    """Waits for those of a group that became ours and are dead; whether there are more."""
    try:
        while os.waitpid(-group, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return False
    return True


def _until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)


class Running:
    """A broker at work. Use it in `with`, or call `stop()`.

    Its figures are those of the whole process tree, without what we put around it."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        cpus: set[int] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        """Starts `command`, which is to listen on `folder`/bus; the folder is ours from now on.

        BrokerError if it does not answer a client within READY_TIMEOUT."""
        self.name = name
        self.folder = folder
        self.path = str(folder / "bus")
        """The socket to connect to."""
        self.startup_seconds = 0.0
        """From exec until the broker had answered a client; dbus-broker's have an interpreter's
        start and the making of a namespace in them, see `activated`."""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            raise_nofile()
            with open(folder / "log", "wb") as log:
                started = time.perf_counter()
                self._process = spawn(
                    command, cpus, env=env, cwd=folder, stdout=log.fileno(), stderr=log.fileno()
                )
            self._wait_ready(started)
            if cpus:
                self.pin(cpus)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The root of the process tree."""
        assert self._process is not None
        return self._process.pid

    @property
    def address(self) -> str:
        """The address for client libraries."""
        return f"unix:path={self.path}"

    def pids(self) -> list[int]:
        """All processes of the broker that live, the root first."""
        return proc.tree(self.pid, self._helpers())

    def alive(self) -> bool:
        """Whether its root still runs."""
        return self._process is not None and self._process.poll() is None

    def pin(self, cpus: set[int]) -> None:
        """Binds all of its threads to these CPUs."""
        for thread in proc.threads(self.pids()):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cpus)

    def cpu_seconds(self) -> float:
        """Time on a CPU since the start, in nanosecond steps where the kernel keeps schedstat; that
        of children that have ended is in it."""
        return proc.cpu_ns(self.pids()) / 1e9

    def switches(self) -> int:
        """Context switches since the start, voluntary and involuntary."""
        return proc.switches(self.pids())

    def rss_kb(self) -> int:
        """Resident memory, pages shared with others included."""
        return proc.memory_kb(self.pids(), "Rss")

    def pss_kb(self) -> int:
        """Resident memory, each page divided by how many processes share it."""
        return proc.memory_kb(self.pids(), "Pss")

    def private_kb(self) -> int:
        """Resident memory that nobody else has."""
        return proc.memory_kb(self.pids(), "Private_Clean", "Private_Dirty")

    def peak_kb(self) -> int:
        """The most that was resident since the start, or since `reset_peak`."""
        return proc.peak_kb(self.pids())

    def reset_peak(self) -> None:
        """Forgets the peak. OSError where that is not permitted."""
        proc.reset_peak(self.pids())

    def log(self) -> str:
        """The end of what the broker wrote to its standard output and error."""
        try:
            return (self.folder / "log").read_text(errors="replace")[-2000:].strip()
        except FileNotFoundError:
            return ""

    def stop(self) -> None:
        """Ends the broker and takes its folder away."""
        try:
            if self._process is not None:
                end(self._process, self._helpers())
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.stop()

    def _helpers(self) -> set[int]:
        try:
            return {int((self.folder / "helper").read_text())}
        except (FileNotFoundError, ValueError):
            return set()

    def _wait_ready(self, started: float) -> None:
        """Returns once a client got an answer."""
        deadline = time.monotonic() + READY_TIMEOUT
        while True:
            if not self.alive():
                raise BrokerError(f"{self.name} ended while it started: {self.log()}")
            if time.monotonic() > deadline:
                raise BrokerError(f"{self.name} answers nobody: {self.log()}")
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(self.path)
                    # Short, so that a broker that dies with clients in its backlog is noticed.
                    probe.settimeout(1.0)
                    if self._says_hello(probe, deadline):
                        self.startup_seconds = time.perf_counter() - started
                        return
            except (FileNotFoundError, ConnectionError):
                time.sleep(0.001)

    def _says_hello(self, probe: socket.socket, deadline: float) -> bool:
        probe.sendall(wire.auth_lines(with_fds=False) + wire.hello())
        data = b""
        while self.alive() and time.monotonic() < deadline:
            try:
                got = probe.recv(1 << 16)
            except TimeoutError:
                continue
            if not got:
                return False
            data += got
            ok, _, rest = data.partition(b"\r\n")
            if data.startswith((b"REJECTED", b"ERROR")):
                raise BrokerError(f"{self.name} lets nobody in: {ok!r}")
            try:
                if wire.parse_string_reply(rest, 1)[0]:
                    return True
            except ValueError as error:
                raise BrokerError(f"{self.name}: {error}") from error
        return False
