"""`jitney bench`: the command line of the benchmark suite.

Invariant: figures go to standard output and into the files that were asked for; how far we are
goes to standard error, and only to a terminal.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence

from . import brokers, compare, html, results, table


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these words; the exit status."""
    parser = argparse.ArgumentParser(
        prog="jitney bench",
        description="Measures D-Bus brokers side by side. Without a subcommand: `run`.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _run_options(commands.add_parser("run", help="measure"))
    show = commands.add_parser("show", help="a result file as a table, or as HTML")
    show.add_argument("file")
    show.add_argument("--html", metavar="FILE", help="write a page there")
    show.add_argument("--reference", help="compare with this broker")
    compared = commands.add_parser(
        "compare", help="two result files, or one with a baseline; status 1 if something is worse"
    )
    compared.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    base = commands.add_parser("baseline", help="write the ratios of a result file as a baseline")
    base.add_argument("file")
    base.add_argument("baseline")
    commands.add_parser("list", help="brokers and scenarios")
    kdbus = commands.add_parser("kdbus", help="calls over kdbus's interfaces and our classic bus")
    kdbus.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0] not in commands.choices and words[0] not in ("-h", "--help")):
        words.insert(0, "run")
    if words[0] == "compare":
        return compare.main(words[1:])
    if words[0] == "kdbus":
        from . import kdbus as over_kdbus

        return over_kdbus.main(words[1:])
    options = parser.parse_args(words)
    if options.command == "list":
        return _list()
    if options.command == "run":
        return _run(options)
    try:
        found = results.read(options.file)
    except (OSError, results.BadFile) as error:
        print(f"jitney bench: {error}", file=sys.stderr)
        return 2
    if options.command == "baseline":
        compare.write_baseline(found, options.baseline)
    elif options.html:
        html.write(options.html, found, reference=options.reference, bar=_bar())
    else:
        table.show(found, reference=options.reference, bar=_bar())
    return 0


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each (0.5)")
    parser.add_argument(
        "--brokers", default="", help="names, or NAME=COMMAND, by commas; all that are found"
    )
    parser.add_argument("--only", default="", help="scenarios or groups, by commas; see `list`")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.2 s, the core alone")
    parser.add_argument("--no-growth", action="store_true", help="without the growth curves")
    parser.add_argument("--no-libraries", action="store_true", help="without client libraries")
    parser.add_argument("--reference", help="compare with this broker")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--html", metavar="FILE", help="write a page there")
    parser.add_argument(
        "--baseline", metavar="FILE", help="compare the ratios with these; status 1 if one is worse"
    )


def _run(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("jitney.bench.link") is None:
        print(
            "jitney bench: the load is compiled code, and this jitney is installed as plain Python",
            file=sys.stderr,
        )
        return 2
    from . import verdict
    from .run import Plan, Runner

    names = [name for name in options.brokers.split(",") if name]
    try:
        found = brokers.find(names)
    except LookupError as error:
        print(f"jitney bench: {error.args[0]}", file=sys.stderr)
        return 2
    quick = options.quick
    plan = Plan(
        found,
        rounds=3 if quick else max(1, options.rounds),
        seconds=0.2 if quick else options.seconds,
        only=frozenset(name for name in options.only.split(",") if name),
        growths=not (quick or options.no_growth),
        libraries=not (quick or options.no_libraries),
        progress=_progress,
    )
    runner = Runner(plan)
    try:
        runner.run()
    except KeyboardInterrupt:
        print("\ninterrupted: what was measured so far", file=sys.stderr)
    measured = runner.results
    _progress("")
    if options.json:
        results.write(options.json, measured)
    if options.html:
        html.write(options.html, measured, reference=options.reference, bar=_bar())
    table.show(measured, reference=options.reference, bar=_bar())
    if measured.subject() == "jitney":
        print()
        print(verdict.text(measured))
    if options.baseline:
        print()
        verdicts = compare.compare(compare.read_ratios(options.baseline), compare.ratios(measured))
        print(compare.render(verdicts))
        return int(any(entry.verdict == "worse" for entry in verdicts))
    return 0


def _list() -> int:
    from .scenarios import GROWTHS, SCENARIOS
    from .special import SPECIALS

    for name in brokers.KNOWN:
        reason = brokers.missing(name)
        print(f"{name:12} {reason or 'found'}")
    print()
    rows = [(entry.id, entry.group, entry.title) for entry in SCENARIOS]
    rows += [(entry.id, entry.group, entry.title) for entry in SPECIALS]
    rows += [(f"growth-{entry.id}", "growth", entry.title) for entry in GROWTHS]
    for row in rows:
        print("{:26} {:12} {}".format(*row))
    return 0


def _bar() -> table.Bar:
    if importlib.util.find_spec("jitney.bench.link") is None:
        return {}
    from .scenarios import SCENARIOS

    return {
        scenario.id: (scenario.bar.rate, scenario.bar.cpu)
        for scenario in SCENARIOS
        if not scenario.like
    }


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text[:100]}", end="", file=sys.stderr, flush=True)
