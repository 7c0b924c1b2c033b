"""Runs a program as on Linux 3.10: `python tests/anywhere/linux310.py PROGRAM ARGS…`

Invariant: what came after 3.10 and can be told from a system call's numbers fails as it does
there: ENOSYS for system calls, ENOPROTOOPT for options of sockets, EINVAL for commands and flags.
The program and all that it starts are held to it; nothing of it can be taken back.

What a filter cannot see stays new: fields of /proc, flags behind pointers, file systems.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, FAIL = 0x7FFF0000, 0x00050000
_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

# By machine: audit's name for it, the first system call after 3.10, and the numbers of some.
MACHINES = {
    "x86_64": (0xC000003E, 314, {
        "getsockopt": 55, "setsockopt": 54, "fcntl": 72, "open": 2, "openat": 257, "prctl": 157,
        "unshare": 272, "madvise": 28,
    }),
    "aarch64": (0xC00000B7, 274, {
        "getsockopt": 209, "setsockopt": 208, "fcntl": 25, "openat": 56, "prctl": 167,
        "unshare": 97, "madvise": 233,
    }),
}  # fmt: skip

SOL_SOCKET = 1
FIRST_NEW_OPTION = 46
"""SO_BUSY_POLL, of 3.11; SO_PEERGROUPS, SO_PEERPIDFD and SO_PASSPIDFD are beyond it."""
FIRST_NEW_PRCTL = 41
"""PR_SET_THP_DISABLE, of 3.15; PR_CAP_AMBIENT is 47. PR_SET_PTRACER is old, and large."""
LAST_NEW_PRCTL = 1000
# Locks of open files (3.15), F_DUPFD_QUERY, seals (3.17), write hints (4.13).
NEW_FCNTLS = (36, 37, 38, 1027, 1033, 1034, 1035, 1036, 1037, 1038)
O_TMPFILE = 0o20000000
CLONE_NEWCGROUP = 0x02000000
MADV_FREE, FIRST_NEW_MADVISE = 8, 18


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _step(code: int, yes: int, no: int, k: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, k)


def _fail(number: int) -> bytes:
    return _step(_RETURN, 0, 0, FAIL | number)


def _argument(index: int) -> bytes:
    return _step(_LOAD, 0, 0, 16 + 8 * index)


def _block(number: int, steps: list[bytes]) -> list[bytes]:
    """`steps` for one system call; they end in a return, and begin with its number loaded."""
    return [_step(_JEQ, 0, len(steps), number), *steps]


def program(machine: str) -> bytes:
    """The filter, in the kernel's form."""
    arch, first_new, numbers = MACHINES[machine]
    allow = _step(_RETURN, 0, 0, ALLOW)
    steps = [
        _step(_LOAD, 0, 0, 4),
        _step(_JEQ, 1, 0, arch),
        _fail(errno.ENOSYS),
        _step(_LOAD, 0, 0, 0),
        _step(_JGE, 0, 1, first_new),
        _fail(errno.ENOSYS),
    ]
    for name in ("getsockopt", "setsockopt"):
        steps += _block(numbers[name], [
            _argument(1), _step(_JEQ, 0, 3, SOL_SOCKET),
            _argument(2), _step(_JGE, 0, 1, FIRST_NEW_OPTION), _fail(errno.ENOPROTOOPT),
            allow,
        ])  # fmt: skip
    steps += _block(numbers["fcntl"], [
        _argument(1),
        *(_step(_JEQ, len(NEW_FCNTLS) - i, 0, command) for i, command in enumerate(NEW_FCNTLS)),
        allow, _fail(errno.EINVAL),
    ])  # fmt: skip
    steps += _block(numbers["prctl"], [
        _argument(0), _step(_JGE, 0, 2, FIRST_NEW_PRCTL), _step(_JGE, 1, 0, LAST_NEW_PRCTL),
        _fail(errno.EINVAL), allow,
    ])  # fmt: skip
    for name, flags in (("open", 1), ("openat", 2)):
        if name in numbers:
            steps += _block(numbers[name], [
                _argument(flags), _step(_JSET, 0, 1, O_TMPFILE), _fail(errno.EISDIR), allow,
            ])  # fmt: skip
    steps += _block(numbers["unshare"], [
        _argument(0), _step(_JSET, 0, 1, CLONE_NEWCGROUP), _fail(errno.EINVAL), allow,
    ])  # fmt: skip
    steps += _block(numbers["madvise"], [
        _argument(2), _step(_JEQ, 1, 0, MADV_FREE), _step(_JGE, 0, 1, FIRST_NEW_MADVISE),
        _fail(errno.EINVAL), allow,
    ])  # fmt: skip
    steps.append(allow)
    return b"".join(steps)


def hold() -> None:
    """Holds this process, and what it starts, to Linux 3.10."""
    code = program(platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))
    library = ctypes.CDLL(None, use_errno=True)
    told = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))

    def prctl(option: int, second: int, third: object = 0) -> int:
        return int(library.prctl(option, ctypes.c_ulong(second), third, 0, 0))

    if prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(told)) == 0:
        return
    # Who is not root may do so only by giving up set-uid programs.
    if prctl(PR_SET_NO_NEW_PRIVS, 1) or prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(told)
    ):
        raise OSError(ctypes.get_errno(), "cannot filter system calls")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: linux310.py PROGRAM [ARGUMENT...]")
    try:
        hold()
    except (KeyError, OSError) as error:
        sys.exit(f"linux310.py: this machine cannot be made to look like Linux 3.10: {error}")
    os.execvp(sys.argv[1], sys.argv[1:])
