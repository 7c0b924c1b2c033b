"""Compare: has anything become worse since an earlier run?

    python -m jitney.bench.compare BEFORE AFTER        result files, or baselines of ratios
    python -m jitney.bench.compare RESULT --write-baseline baseline.json

Invariant: only ratios between brokers of one run are compared, so that the two runs may be from
different days and machines; a difference counts only where it is beyond the range of the earlier
rounds by more than the noise of both. Exit status: 0, 1 if anything is worse, 2 if a file cannot
be used.

A baseline is JSON: {scenario: {metric: {"jitney/dbus-broker": {"median", "low", "high"}}}}; what
it does not name is not compared, so lines may be taken out by hand. A growth's point is the
scenario "growth@x".
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .figures import Summary, metric, ordered, ratio, times
from .results import BadFile, Results, Rounds, load, parse

Ratios = dict[str, dict[str, dict[str, Summary]]]
"""Scenario, metric, "one/other": the ratio of one to the other."""

WORSE, BETTER, SAME, GONE = "worse", "better", "same", "not measured"


@dataclass(frozen=True)
class Verdict:
    """What became of one ratio. `noise`: how far (as a share) it had to be outside the range."""

    scenario: str
    metric: str
    pair: str
    verdict: str
    before: Summary
    after: Summary | None
    noise: float

    @property
    def change(self) -> float:
        """By how much the median changed, as a share of what it was."""
        if self.after is None or not self.before.median:
            return 0.0
        return self.after.median / self.before.median - 1

    def __str__(self) -> str:
        text = f"{metric(self.metric).label:16} {self.pair:24} {self.verdict:12}"
        text += f" x{_shown(self.before)}"
        if self.after is None:
            return text
        change = f"{self.change:+.1%}, noise {self.noise:.0%}"
        return f"{text} -> x{_shown(self.after)}  {change}"


def ratios(results: Results) -> Ratios:
    """All ratios of jitney's builds to the other brokers, and among themselves; of every broker
    to the reference if no broker is called jitney."""
    found: Ratios = {}
    for scenario in results.scenarios.values():
        _add(found, scenario.id, scenario.rounds, results)
    for growth in results.growths.values():
        for point in growth.points:
            _add(found, f"{growth.id}@{point.x:g}", point.rounds, results)
    return found


def compare(before: Ratios, after: Ratios, *, floor: float = 0.10) -> list[Verdict]:
    """A verdict for each ratio of `before`, in its order. `floor`: least noise to assume; a
    metric's own floor goes before a lower one."""
    found = []
    for scenario, metrics in before.items():
        for name in ordered(metrics):
            for pair, was in metrics[name].items():
                now = after.get(scenario, {}).get(name, {}).get(pair)
                found.append(_judge(scenario, name, pair, was, now, floor))
    return found


def render(verdicts: Iterable[Verdict], *, everything: bool = False) -> str:
    """Text by scenario; without `everything`, what is the same is only counted."""
    found = list(verdicts)
    lines = []
    for scenario in dict.fromkeys(verdict.scenario for verdict in found):
        here = [verdict for verdict in found if verdict.scenario == scenario]
        shown = [verdict for verdict in here if everything or verdict.verdict in (WORSE, BETTER)]
        lines.append(f"{scenario}: {_counted(here)}")
        lines += [f"  {verdict}" for verdict in shown]
    return "\n".join([*lines, f"all: {_counted(found)}"])


def write_baseline(results: Results, path: str | os.PathLike[str]) -> None:
    """Keeps the run's ratios, to four digits, so that a baseline in git changes little."""
    data = {
        scenario: {
            name: {
                pair: {key: _rounded(getattr(was, key)) for key in ("median", "low", "high")}
                for pair, was in pairs.items()
            }
            for name, pairs in metrics.items()
        }
        for scenario, metrics in ratios(results).items()
    }
    Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def read_ratios(path: str | os.PathLike[str]) -> Ratios:
    """Ratios of a result file, or of a baseline. BadFile if it is neither, OSError."""
    try:
        data = load(path)
        if isinstance(data, dict) and "format" in data:
            return ratios(parse(data))
        return _baseline(data)
    except BadFile as error:
        raise BadFile(f"{os.fspath(path)}: {error}") from None


def _add(found: Ratios, scenario: str, rounds: Rounds, results: Results) -> None:
    names = ordered(name for rows in rounds.values() for row in rows for name in row)
    for name in names:
        for one, other in _pairs(results):
            was = ratio(rounds.get(one, []), rounds.get(other, []), name)
            if was:
                found.setdefault(scenario, {}).setdefault(name, {})[f"{one}/{other}"] = was


def _pairs(results: Results) -> Iterator[tuple[str, str]]:
    ours = [name for name in results.brokers if name.startswith("jitney")]
    if not ours:
        reference = results.reference()
        yield from ((name, reference) for name in results.brokers if name != reference)
    for place, one in enumerate(ours):
        yield from ((one, other) for other in results.brokers if other not in ours)
        yield from ((one, other) for other in ours[place + 1 :])


def _judge(
    scenario: str, name: str, pair: str, was: Summary, now: Summary | None, floor: float
) -> Verdict:
    kind = metric(name)
    noise = max(was.spread, now.spread if now else 0.0, kind.floor, floor)
    if now is None:
        verdict = GONE
    elif now.median > was.high * (1 + noise):
        verdict = BETTER if kind.more else WORSE
    elif now.median * (1 + noise) < was.low:
        verdict = WORSE if kind.more else BETTER
    else:
        verdict = SAME
    return Verdict(scenario, name, pair, verdict, was, now, noise)


def _baseline(data: Any) -> Ratios:
    found: Ratios = {}
    for scenario, metrics in _items(data, "the file"):
        for name, pairs in _items(metrics, scenario):
            for pair, table in _items(pairs, f"{scenario}, {name}"):
                where = f"{scenario}, {name}, {pair}"
                figures = dict(_items(table, where))
                three = [
                    value
                    for value in map(figures.get, ("median", "low", "high"))
                    if isinstance(value, (int, float)) and math.isfinite(value)
                ]
                if len(three) != 3:
                    raise BadFile(f"{where}: needs the numbers median, low and high")
                was = Summary(*three)
                found.setdefault(scenario, {}).setdefault(name, {})[pair] = was
    return found


def _items(data: Any, where: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(data, dict):
        raise BadFile(f"{where}: not an object: neither a result file nor a baseline")
    return data.items()


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _shown(was: Summary) -> str:
    return f"{times(was.median)} [{times(was.low)}-{times(was.high)}]"


def _counted(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(verdict.verdict for verdict in verdicts)
    parts = [f"{counts[kind]} {kind}" for kind in (WORSE, BETTER, SAME, GONE) if counts[kind]]
    return ", ".join(parts) or "nothing to compare"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jitney.bench.compare",
        description="Has anything become worse? Compares the ratios between brokers of two runs.",
    )
    parser.add_argument("before", help="a result file or a baseline")
    parser.add_argument("after", nargs="?", help="the same, of a later run")
    parser.add_argument(
        "--floor",
        type=float,
        default=10.0,
        metavar="PERCENT",
        help="take differences up to this for noise (default: 10)",
    )
    parser.add_argument("--all", action="store_true", help="show what is the same, too")
    parser.add_argument(
        "--write-baseline", metavar="FILE", help="keep the ratios of the (last) result file there"
    )
    options = parser.parse_args(argv)
    if options.after is None and options.write_baseline is None:
        parser.error("with one file, only --write-baseline makes sense")
    try:
        status = 0
        if options.after is not None:
            before, after = read_ratios(options.before), read_ratios(options.after)
            verdicts = compare(before, after, floor=options.floor / 100)
            print(render(verdicts, everything=options.all))
            status = int(any(verdict.verdict == WORSE for verdict in verdicts))
        if options.write_baseline is not None:
            last = options.before if options.after is None else options.after
            write_baseline(parse(load(last)), options.write_baseline)
    except (BadFile, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
