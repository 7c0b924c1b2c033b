"""Memory with a descriptor, for tests that share some or hand something on.

Invariant: it is what the product takes where it runs: a memfd, and before Linux 3.17 a file of a
tmpfs without a name. Who asks for `sealed` wants a memfd and nothing else.
"""

from __future__ import annotations

import fcntl
import os
import tempfile

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def _memfd() -> bool:
    try:
        os.close(os.memfd_create("probe"))
    except OSError:
        return False
    return True


MEMFD = _memfd()


def unnamed(data: bytes = b"") -> int:
    """For who has it to write to."""
    if MEMFD:
        fd = os.memfd_create("jitney-test", os.MFD_CLOEXEC)
    else:
        fd, path = tempfile.mkstemp(dir="/dev/shm")
        os.unlink(path)
    os.write(fd, data)
    return fd


def sealed(data: bytes, seals: int = SEALS) -> int:
    fd = os.memfd_create("jitney-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd
