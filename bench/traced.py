"""Traced: the same load with somebody who looks on.

Invariant: the tracer is a process of its own that wants the headers of all messages; it reads and
throws away (`reads`), or stands still. It is none of the load's links, so what is measured is what
others pay for it. Brokers that know no org.jitney.Trace1 have no figure here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from . import wire
from .link import Link
from .running import end, spawn

Open = Callable[[str], AbstractContextManager[Any]]

_SERIAL = 5
_EMPTY = bytes(8)  # a{sv} without entries
_START = wire.call(
    wire.DRIVER,
    b"Start",
    b"a{sv}",
    _EMPTY,
    serial=_SERIAL,
    path=wire.DRIVER_PATH,
    interface=b"org.jitney.Trace1",
)


def traced(open: Open, *, reads: bool = True) -> Open:
    """What `open` sets up, with a tracer beside it."""

    @contextlib.contextmanager
    def opened(path: str) -> Iterator[Any]:
        with contextlib.closing(Link(path)) as link:
            link.ask(_START, _SERIAL)
            reader = None
            if reads:
                os.set_blocking(link.fd, True)
                reader = spawn(["cat"], stdin=link.fd, stdout=subprocess.DEVNULL)
            try:
                with open(path) as op:
                    yield op
            finally:
                if reader is not None:
                    end(reader)

    return opened
