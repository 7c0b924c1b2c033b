"""`jitney bench soak`: the command line, and what it says at the end.

Invariant: the exit status is 0 if every message was accounted for and the bus is as it was before.
"""

from __future__ import annotations

import argparse
import sys

from .. import brokers
from .client import Closed
from .ledger import Wrong
from .load import Plan, Soak, config


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=3600, help="how long (3600)")
    parser.add_argument("--seed", type=int, default=1, help="what draws the load (1)")
    parser.add_argument("--rate", type=int, default=1500, help="acts a second (1500)")
    parser.add_argument("--audit-every", type=float, default=10, help="seconds (10)")
    parser.add_argument("--reload-every", type=float, default=3, help="seconds, 0: never (3)")
    parser.add_argument(
        "--upgrade-every", type=float, default=0, help="seconds between SIGUSR2, 0: never (0)"
    )
    parser.add_argument(
        "--endpoint", action="store_true", help="some clients come by an endpoint of the bus"
    )
    parser.add_argument("--broker", default="", help="jitney, jitney-pure, or NAME=COMMAND")


def run(options: argparse.Namespace) -> int:
    name = options.broker or ("jitney-pure" if brokers.missing("jitney") else "jitney")
    try:
        broker = brokers.find([name])[0]
    except LookupError as error:
        print(f"jitney bench: {error.args[0]}", file=sys.stderr)
        return 2
    plan = Plan(
        options.seconds,
        options.seed,
        options.rate,
        options.audit_every,
        options.reload_every,
        options.upgrade_every,
        endpoint=options.endpoint,
        say=_progress,
    )
    with broker.start(config()) as running:
        try:
            outcome = Soak(running, plan).run()
        except (Wrong, Closed) as error:
            _progress("")
            print(f"WRONG: {error}")
            print(f"the bus {'runs' if running.alive() else 'has ended'}; it said: {running.log()}")
            return 1
    _progress("")
    for what, count in sorted(outcome.counts.items()):
        print(f"{count:12,} {what}")
    print(f"in {outcome.seconds:.0f} s, seed {plan.seed}; every message is accounted for")
    assert outcome.before is not None
    assert outcome.after is not None
    print(f"at rest before: {outcome.before}")
    print(f"at rest after:  {outcome.after}")
    grown = outcome.grown()
    if grown:
        print(f"NOT RETURNED: {grown}")
    return int(bool(grown))


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)
