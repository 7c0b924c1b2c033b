"""What the kernel under the tests can do, found by asking it.

Invariant: each answer is about this very process: under `anywhere/linux310.py` it is Linux 3.10's.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket

import pytest
import unnamed

from jitney.compat import ways

_SO_PEERGROUPS = 59
_PIDFD_GETFD = 438
_PR_CAP_AMBIENT, _IS_SET = 47, 1


def _peer_groups() -> bool:
    one, two = socket.socketpair()
    with one, two:
        try:
            one.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
        except OSError:
            return False
        return True


def _ambient() -> bool:
    prctl = ctypes.CDLL(None).prctl
    return bool(prctl(_PR_CAP_AMBIENT, _IS_SET, ctypes.c_ulong(0), 0, 0) >= 0)


def _random() -> bool:
    try:
        os.getrandom(1)
    except OSError:
        return False
    return True


def _getfd() -> bool:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall(_PIDFD_GETFD, -1, -1, 0)
    return ctypes.get_errno() != errno.ENOSYS


MY_PID = ("u", os.getpid()) if ways.PEER_PIDS else None
"""What a bus may tell of a client in this process as its ProcessID."""
MEMFD = unnamed.MEMFD
PEER_GROUPS = _peer_groups()
AMBIENT = _ambient()
GETFD = _getfd()

needs_linux_ways = pytest.mark.skipif(
    not ways.LINUX, reason="only Linux has it, and its ways are switched off (JITNEY_WAYS)"
)
needs_memfd = pytest.mark.skipif(not MEMFD, reason="there are no memfds (Linux 3.17)")
needs_ambient = pytest.mark.skipif(
    not AMBIENT, reason="this kernel has no ambient capabilities (Linux 4.3)"
)
needs_getfd = pytest.mark.skipif(
    not GETFD, reason="here no process can take another's descriptors (Linux 5.6)"
)
needs_random = pytest.mark.skipif(
    not _random(), reason="libgcrypt ends a program where getrandom() is missing (Linux 3.17)"
)
