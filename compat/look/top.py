"""`jitney top`: who does what on a bus, as it happens.

Invariant: the bus is asked once in `--delay` and never before it has answered the last time. The
screen is textual's, which need not be there for `--batch`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from . import asking, figures, rates
from .asking import UNUSABLE, Bus, NoAnswer

_MISSING = (
    "jitney top: the screen needs textual, which is not installed: pip install 'jitney[top]'\n"
    "jitney top --batch prints plain tables without it."
)


def main(words: Sequence[str]) -> int:
    """Runs the command with these words; the exit status."""
    parser = asking.parser(
        "top",
        "Shows what the connections of a running bus do, as it happens: messages and bytes by "
        "second, what is queued and for how long, whose quota they hold, calls in flight and how "
        "long replies take.",
    )
    parser.add_argument("--delay", type=float, default=2.0, metavar="SECONDS", help="(2)")
    parser.add_argument("--sort", choices=list(rates.COLUMNS), default="messages")
    parser.add_argument("--filter", default="", metavar="TEXT", help="rows that have this in them")
    parser.add_argument("--batch", action="store_true", help="print tables instead of a screen")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="so many tables")
    options = parser.parse_args(words)
    delay = max(0.1, options.delay)
    if options.batch:
        return asking.run(
            "top", options,
            lambda bus: _print(bus, delay, options.count, options.sort, options.filter),
        )  # fmt: skip
    try:
        from .screen import Top
    except ImportError:
        print(_MISSING, file=sys.stderr)
        return UNUSABLE
    try:
        with Bus(options) as bus:
            # Who may not ask learns it here, in plain text.
            bus.status()
            Top(bus, delay, options.sort, options.filter).run()
    except NoAnswer as reason:
        print(f"jitney top: {reason}", file=sys.stderr)
        return UNUSABLE
    return 0


def _print(bus: Bus, delay: float, count: int, key: str, wanted: str) -> None:
    watcher = rates.Watcher(bus)
    watcher.look(time.monotonic())
    done = 0
    try:
        while not count or done < count:
            time.sleep(delay)
            found, status = watcher.look(time.monotonic())
            print(rates.summary(status), table(found, key, wanted), sep="\n\n", end="\n\n")
            sys.stdout.flush()
            done += 1
    except KeyboardInterrupt:
        pass


def table(found: Sequence[rates.Row], key: str, wanted: str) -> str:
    columns = rates.COLUMNS.values()
    return figures.table(
        [head for head, *_ in columns],
        [
            [shown(row) for _, shown, _, _ in columns]
            for row in rates.ordered(found, key, False, wanted)
        ],
        " ".join(head for head, _, _, right in columns if right),
    )
