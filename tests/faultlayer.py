"""The layer of `faults/inject.c` between a daemon and the C library, seen from a test.

Invariant: both builds of jitney run under it as they are. A plan concerns the daemon and its forked
children (those that read a configuration, and those that are about to become services), nobody
else; it is off except within `armed()`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shlex
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from errno import (
    EACCES,
    EAGAIN,
    ECHILD,
    ECONNABORTED,
    ECONNREFUSED,
    ECONNRESET,
    EINTR,
    EIO,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOPROTOOPT,
    ENOSPC,
    ENOSYS,
    ENOTCONN,
    EPERM,
    EPIPE,
    ESRCH,
    ETIMEDOUT,
    ETOOMANYREFS,
)  # fmt: skip
from pathlib import Path

import buses

SOURCE = Path(__file__).with_name("faults") / "inject.c"
SHORT = -1
"""In place of an errno: the call moves fewer bytes than it could."""

COUNTED = (EMFILE, ENFILE, ENOMEM)
STREAM = (ECONNRESET, ENOTCONN, EPIPE, ESRCH, ENOMEM, ENOBUFS, EMFILE, EIO, ETIMEDOUT)

CALLS: dict[str, tuple[int, ...]] = {
    # In the order of the enum in inject.c: what each call may be told.
    "recv": (SHORT, EINTR, EAGAIN, *STREAM),
    "recvmsg": (SHORT, EINTR, EAGAIN, *STREAM),
    "send": (SHORT, EINTR, EAGAIN, *STREAM),
    "sendmsg": (SHORT, EINTR, EAGAIN, ETOOMANYREFS, *STREAM),
    "read": (SHORT, EINTR, EAGAIN, EIO, ENOMEM),
    "write": (SHORT, EINTR, EAGAIN, EPIPE, ENOSPC, EIO),
    "accept4": (EINTR, EAGAIN, ECONNABORTED, ENOBUFS, EPERM, *COUNTED),
    "socket": (EACCES, ENOBUFS, *COUNTED),
    "bind": (EACCES, ENOMEM, ENOSPC),
    "listen": (ENOBUFS, ENOMEM),
    "connect": (EINTR, EAGAIN, ECONNREFUSED, ENOENT, EACCES),
    "getsockopt": (ENOPROTOOPT, ENOTCONN, ESRCH, ENODEV, ENOBUFS, *COUNTED),
    "setsockopt": (ENOPROTOOPT, ENOBUFS, ENOMEM, EPERM),
    "socketpair": COUNTED,
    "epoll_create1": COUNTED,
    "epoll_ctl": (ENOMEM, ENOSPC),  # additions only
    "epoll_wait": (EINTR,),
    "poll": (EINTR, ENOMEM),
    "open": (EINTR, EACCES, ENOENT, EIO, *COUNTED),
    "fstat": (EIO, ENOMEM),
    "stat": (EACCES, ENOENT, EIO, ENOMEM),
    "opendir": (EACCES, ENOENT, *COUNTED),
    "readdir": (EIO, ENOENT),
    "pipe2": COUNTED,
    "fork": (EAGAIN, ENOMEM),
    "dup": (EINTR, EMFILE, EIO),
    "fcntl": (EINTR, EMFILE),
    "inotify_init1": COUNTED,
    "inotify_add_watch": (EACCES, ENOENT, ENOSPC, ENOMEM),
    "pidfd_open": (ENOSYS, ESRCH, ENODEV, *COUNTED),
    "waitpid": (EINTR, ECHILD),
    "waitid": (EINTR, ECHILD),
    "kill": (EPERM, ESRCH),
    "ioctl": (EIO, ENOMEM),
    "close": (EINTR, EIO),  # of sockets; what it closes is closed
    "alloc": (ENOMEM,),
}

ANY = 0xFFFFFFFFFFFFFFFF
_CODES = 16
_HEAD = struct.Struct("=IIIIQQQ")
_SEEN = _HEAD.size + len(CALLS) * _CODES * 4
_SIZE = _SEEN + len(CALLS) * 16

_built: list[Path | str] = []


def library() -> Path | str:
    """The compiled layer, or why there is none."""
    if not _built:
        _built.append(_build())
    return _built[0]


def _build() -> Path | str:
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(compiler[0]) is None:
        return f"no C compiler ({compiler[0]}) to build the layer with"
    folder = Path(tempfile.gettempdir()) / f"jitney-faults-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.stat()
    assert about.st_uid == os.getuid()
    assert not about.st_mode & 0o022
    # Another tree's layer may be there as well, with other calls.
    made = folder / f"inject-{zlib.crc32(SOURCE.read_bytes()):08x}.so"
    if not made.exists():
        new = folder / f"inject.{os.getpid()}"
        flags = ["-shared", "-fPIC", "-O1", "-Wall", "-o", str(new), str(SOURCE), "-ldl"]
        done = subprocess.run([*compiler, *flags], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"the layer does not compile here: {done.stderr.strip()[:300]}"
        new.replace(made)
    return made


class Plan:
    """What fails, shared with the daemon that is started with `environ`."""

    def __init__(self) -> None:
        with tempfile.NamedTemporaryFile(prefix="jitney-faults-", delete=False) as file:
            file.truncate(_SIZE)
            self.file = Path(file.name)
            self.map = mmap.mmap(file.fileno(), _SIZE)

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "LD_PRELOAD": str(library()), "JITNEY_FAULTS": str(self.file)}

    @contextlib.contextmanager
    def armed(
        self,
        faults: dict[str, Sequence[int]],
        *,
        first: int = 0,
        count: int = 1,
        rate: int = 0,
        seed: int = 0,
        length: int = 1,
        foreign: bool = False,
    ) -> Iterator[None]:
        """Within this, `faults` (names of calls, and what they may be told) happen: to the calls
        from number `first` on, `count` of each kind; with `rate`, to one in so many.

        `length` is what short calls are cut to; `foreign`: allocations of others fail as well."""
        codes = bytearray()
        for name in CALLS:
            listed = list(faults.get(name, ()))[:_CODES]
            codes += struct.pack(f"={_CODES}i", *listed, *[0] * (_CODES - len(listed)))
        self.map[_HEAD.size :] = bytes(codes) + bytes(_SIZE - _SEEN)
        self.map[: _HEAD.size] = _HEAD.pack(0, rate, length, foreign, first, count, seed)
        self.map[0] = 1
        try:
            yield
        finally:
            self.map[0] = 0

    def seen(self) -> dict[str, int]:
        """How often each of the calls that were to fail was made since it was armed."""
        return self._counts(0)

    def hit(self) -> dict[str, int]:
        """And how often it failed."""
        return self._counts(len(CALLS))

    def _counts(self, skip: int) -> dict[str, int]:
        found = struct.unpack_from(f"={len(CALLS)}Q", self.map, _SEEN + skip * 8)
        return {name: n for name, n in zip(CALLS, found, strict=True) if n}

    def close(self) -> None:
        self.map.close()
        self.file.unlink()


@contextlib.contextmanager
def running(plan: Plan, *, extra: str = "", options: Sequence[str] = ()) -> Iterator[buses.Daemon]:
    """A session bus under a plan."""
    # Through env, so that the layer begins in the daemon and not in the test.
    variables = [f"{key}={plan.environ[key]}" for key in ("LD_PRELOAD", "JITNEY_FAULTS")]
    command = ["env", *variables, *buses.jitney_command(), *options]
    with buses.running(command, extra=extra) as bus:
        yield bus
