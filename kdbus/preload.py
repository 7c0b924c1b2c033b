"""`jitney preload`: runs a program of kdbus's on buses that are reached through sockets.

Invariant: nothing but the environment is changed: the program is what runs afterwards, with its own
arguments, in this process.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

LIBRARY = "libjitney-kdbus.so"
SETTING = "LD_PRELOAD"
PLACE = "JITNEY_KDBUS"


def library() -> Path | None:
    """The shim, where it was built."""
    path = Path(__file__).resolve().parent / "shim" / LIBRARY
    return path if path.exists() else None


def environment(shim: Path, place: str | None = None) -> dict[str, str]:
    """What a program needs to have it; `place` is what it takes for /sys/fs/kdbus."""
    found = dict(os.environ)
    before = [word for word in found.get(SETTING, "").replace(":", " ").split() if word]
    if str(shim) not in before:
        before.insert(0, str(shim))
    found[SETTING] = ":".join(before)
    if place is not None:
        found[PLACE] = os.path.abspath(place)
    return found


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="jitney preload",
        description="Run a program of kdbus's on what `jitney sockets` serves.",
    )
    parser.add_argument("--print", action="store_true", help="print where the library is, and end")
    parser.add_argument(
        "--root", metavar="DIRECTORY", help="what the program is to find as /sys/fs/kdbus"
    )
    parser.add_argument("program", nargs="?", metavar="PROGRAM")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS")
    options = parser.parse_args(words)
    shim = library()
    if shim is None:
        print(
            "jitney preload: this jitney was installed without a C compiler, and has no "
            f"{LIBRARY}; install it again where there is one (Debian: gcc)",
            file=sys.stderr,
        )
        return 1
    if options.print:
        print(shim)
        return 0
    if options.program is None:
        parser.error("which program?")
    if set(str(shim)) & set(" :"):
        print(f"jitney preload: {SETTING} cannot hold the path {shim}", file=sys.stderr)
        return 1
    try:
        os.execvpe(
            options.program,
            [options.program, *options.arguments],
            environment(shim, options.root),
        )
    except OSError as error:
        print(f"jitney preload: {options.program}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
