"""The one capability a system bus keeps when it stops being root: CAP_AUDIT_WRITE.

Invariant: nothing here leaves the process with more than it had. What the kernel or the C library
does not know (capset is no part of POSIX) counts as a capability that cannot be kept, which is no
reason for a bus not to run; one that cannot be given up is (`OSError`).

dbus-daemon keeps it for the kernel's audit log, if it had it, and so do we. Capabilities are sets
of bits as in capabilities(7), and are the calling thread's: call this before there are others.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Any

SETGID = 1 << 6
SETUID = 1 << 7
AUDIT_WRITE = 1 << 29

_VERSION_3 = 0x20080522
_HEADER = struct.Struct("Ii")
# Effective, permitted and inheritable: the lower halves of all three, then the upper ones.
_SETS = struct.Struct("6I")

_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4

_libc = ctypes.CDLL(None, use_errno=True)


def permitted() -> int:
    """What we may do, or could once more; 0 where that cannot be told."""
    sets = bytearray(_SETS.size)
    try:
        _capability_call("capget", sets)
    except OSError:
        return 0
    _, low, _, _, high, _ = _SETS.unpack(sets)
    return int(high << 32 | low)


def limit_to(capabilities: int) -> None:
    """Give up all but these, and hand none of them on to programs that are started. OSError."""
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    _capability_call("capset", bytearray(_SETS.pack(low, low, 0, high, high, 0)))


def keep_across_setuid(keep: bool) -> None:
    """Whether what is permitted stays so when root becomes somebody else. Raises OSError."""
    _prctl(_PR_SET_KEEPCAPS, int(keep))


def clear_ambient() -> None:
    """Keep what the service manager gave us from the programs we start."""
    try:
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError:
        pass  # before Linux 4.3 there is no such thing


@contextlib.contextmanager
def handed_on() -> Iterator[None]:
    """Programs that are started meanwhile get the capability that we have kept, if we have."""
    now = permitted()
    if now & AUDIT_WRITE and os.geteuid() != 0:
        low, high = now & 0xFFFFFFFF, now >> 32
        # A service manager that gave it to us made it inheritable, and may forbid this call.
        with contextlib.suppress(OSError):
            _capability_call("capset", bytearray(_SETS.pack(low, low, AUDIT_WRITE, high, high, 0)))
        try:
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, AUDIT_WRITE.bit_length() - 1)
        except OSError:
            pass  # then they go without
    try:
        yield
    finally:
        clear_ambient()
        try:
            limit_to(now)
        except OSError:
            pass  # where nothing can be told, nothing was changed


def own_proc_files() -> None:
    """Let our files in /proc be ours: after a change of user they are root's, until exec."""
    try:
        _prctl(_PR_SET_DUMPABLE, 1)
    except OSError:
        pass  # then something that is said there cannot be said


def _capability_call(name: str, sets: bytearray) -> None:
    function = _function(name)
    header = bytearray(_HEADER.pack(_VERSION_3, 0))
    buffers = [(ctypes.c_char * len(data)).from_buffer(data) for data in (header, sets)]
    _check(function(*buffers))


def _prctl(option: int, value: int, more: int = 0) -> None:
    _check(_function("prctl")(option, *map(ctypes.c_ulong, (value, more, 0, 0))))


def _function(name: str) -> Any:
    function = getattr(_libc, name, None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return function


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
