"""`jitney`: the command whose subcommands are about buses; `jitney-daemon` is the bus itself.

Invariant: a subcommand is imported when it is asked for, and gets the words behind its name.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

SUBCOMMANDS = {
    "status": ("jitney.compat.look.status", "how a running bus is, and which limits are near"),
    "top": ("jitney.compat.look.top", "who does what on a running bus, as it happens"),
    "peers": ("jitney.compat.look.peers", "the connections of a running bus"),
    "names": ("jitney.compat.look.names", "its names, their owners and who waits for them"),
    "matches": ("jitney.compat.look.matches", "its match rules"),
    "explain": ("jitney.compat.explain", "which rule of the policy allows or denies something"),
    "check-config": ("jitney.compat.check_config", "find mistakes in configuration files"),
    "install": ("jitney.compat.install", "make jitney the system bus, or a user's session bus"),
    "uninstall": ("jitney.compat.uninstall", "restore what was the bus before"),
    "trace": ("jitney.compat.trace.command", "show the messages that pass on a bus, timed"),
    "record": ("jitney.compat.trace.record", "keep a bus's traffic in a file"),
    "replay": ("jitney.compat.trace.replay", "send recorded traffic again, on a test bus"),
    "bench": ("jitney.bench.cli", "measure D-Bus brokers side by side"),
    "mount": ("jitney.kdbus.cli", "mount kdbus's file system, served by this process"),
    "sockets": ("jitney.kdbus.cli:sockets", "serve kdbus's commands over sockets in a directory"),
    "preload": ("jitney.kdbus.preload", "run a program of kdbus's on what `jitney sockets` serves"),
}
"""By name: the module whose `main(words)` it is, or the function, and what it does."""


def main(words: Sequence[str]) -> int:
    """Runs `jitney` with these words; the exit status."""
    if words and words[0] in SUBCOMMANDS:
        module, _, name = SUBCOMMANDS[words[0]][0].partition(":")
        run: Callable[[Sequence[str]], int] = getattr(
            importlib.import_module(module), name or "main"
        )
        return run(words[1:])
    asked = bool(words) and words[0] in ("-h", "--help", "help")
    lines = ["usage: jitney SUBCOMMAND ...", ""]
    lines += [f"  {name:14} {what}" for name, (_, what) in SUBCOMMANDS.items()]
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


def main_entry() -> None:
    """What the console script calls."""
    sys.exit(main(sys.argv[1:]))
