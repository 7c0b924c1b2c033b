"""Leading: reading requests, and having them done.

Invariant: only the leader reads requests, and whoever read one does it, before it reads another.
"""

from __future__ import annotations

import errno
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

if not cython.compiled:
    from .sysio import now, read
    from .worker import Worker

_AGAIN = (-errno.EINTR, -errno.EAGAIN, -errno.ENOENT)


def lead(crew: Any, me: Worker) -> bool:
    """Serves as long as it leads; False at the end of the mount."""
    device = crew.device
    quick = crew.quick
    buffer = me.buffer
    while me.leading:
        size = read(device, buffer)
        if size < 0 and size in _AGAIN:
            continue
        if size <= 0 or crew.ended.is_set():
            return False
        crew.beats += 1
        if crew.resting:
            crew.resting = False
            crew.called.set()
        me.began = now()
        if quick is None or not quick.serve(me, size):
            crew.handle(me, size)
        me.began = 0.0
    return True
