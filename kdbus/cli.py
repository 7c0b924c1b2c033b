"""`jitney mount`: kdbus's file system at a path, for as long as the process runs.

Invariant: when the command returns to the shell, the tree is mounted and answers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence


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

    if options.foreground:
        return _run(Daemon, options, lambda: print("ready", flush=True))
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
    os._exit(_run(Daemon, options, ready))


def _run(daemon: type, options: argparse.Namespace, ready: object) -> int:
    try:
        return int(daemon(options.path, options.pool, options.watchdog).run(ready))
    except OSError as error:
        print(f"jitney mount: {error}", file=sys.stderr)
        return 1
