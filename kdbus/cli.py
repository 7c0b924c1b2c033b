"""`jitney mount` and `jitney sockets`: kdbus at a path, for as long as the process runs.

Invariant: when the command returns to the shell, the tree is there and answers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="jitney mount", description="Mount kdbus's file system, served by this process."
    )
    parser.add_argument("path", metavar="PATH", help="an empty directory")
    parser.add_argument(
        "--pool",
        choices=("auto", "passthrough", "store"),
        default="auto",
        help="how bytes get into clients' pools; auto: by passthrough where that is allowed",
    )
    parser.add_argument("--foreground", action="store_true", help="do not fork")
    parser.add_argument(
        "--watchdog", type=float, default=10.0, metavar="SECONDS", help=argparse.SUPPRESS
    )
    options = parser.parse_args(words)
    from .fuse.daemon import Daemon

    return _start("mount", options, lambda: Daemon(options.path, options.pool, options.watchdog))


def sockets(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="jitney sockets", description="Serve kdbus's commands over sockets in a directory."
    )
    parser.add_argument("path", metavar="DIRECTORY", help="made if it is not there")
    parser.add_argument("--foreground", action="store_true", help="do not fork")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="SOCK_STREAM, as where there is no SOCK_SEQPACKET",
    )
    options = parser.parse_args(words)
    from .native.daemon import Daemon

    return _start("sockets", options, lambda: Daemon(options.path, options.stream))


def _start(name: str, options: argparse.Namespace, make: Callable[[], Any]) -> int:
    """Runs what `make` makes, here or in a process that goes on alone."""
    if options.foreground:
        return _run(name, make, lambda: print("ready", flush=True))
    ours, theirs = os.pipe()
    if os.fork():
        os.close(theirs)
        # What the daemon could not do, it has said.
        return 0 if os.read(ours, 1) else 1
    os.setsid()

    def ready() -> None:
        os.write(theirs, b"1")
        os.close(theirs)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)

    os.close(ours)
    os._exit(_run(name, make, ready))


def _run(name: str, make: Callable[[], Any], ready: Callable[[], None]) -> int:
    try:
        return int(make().run(ready))
    except OSError as error:
        print(f"jitney {name}: {error}", file=sys.stderr)
        return 1
