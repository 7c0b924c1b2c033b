"""Results: what a run measured, as it is kept in a file and handed from the runner to the reports.

Invariant: `read(write(results))` gives the same results; what `read` returns is whole and of the
right types, its figures finite. Keys that this version does not know are ignored
within one format; another format number is an error, as its figures may mean something else.

    round i of every broker in a scenario belongs together: they were measured in turns
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .figures import METRICS, Row, Summary, ratio, summary

__all__ = [
    "FORMAT",
    "METRICS",
    "BadFile",
    "Broker",
    "Growth",
    "Point",
    "Results",
    "Rounds",
    "Row",
    "Scenario",
    "Summary",
    "parse",
    "ratio",
    "read",
    "summary",
    "write",
]  # fmt: skip

FORMAT = 1

Rounds = dict[str, list[Row]]
"""By broker, what each of its rounds gave."""

T = TypeVar("T")


class BadFile(Exception):
    """A file that cannot be used; the text says which, where in it, and why."""


@dataclass
class Broker:
    """What was measured: its version in its own words, and the command that started it."""

    version: str = ""
    command: str = ""


@dataclass
class Scenario:
    """One kind of load. `group`: heading that it is shown under. `unit`: what is counted, such as
    "calls" or "messages delivered"."""

    id: str
    title: str
    group: str = ""
    unit: str = ""
    rounds: Rounds = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Point:
    """What a growth gave at `x`."""

    x: float
    rounds: Rounds = field(default_factory=dict)


@dataclass
class Growth:
    """One kind of load with more and more of something (`x_label`)."""

    id: str
    title: str
    x_label: str
    points: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Results:
    """A run. `machine` and `settings` are for people, but for these of the machine's, which
    `noise` knows: cores; load_before, load_after (load average over one minute, without us);
    steal (share of CPU time that the host took, 0 to 1). `noise` holds the runner's own remarks."""

    started: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    brokers: dict[str, Broker] = field(default_factory=dict)
    scenarios: dict[str, Scenario] = field(default_factory=dict)
    growths: dict[str, Growth] = field(default_factory=dict)
    noise: list[str] = field(default_factory=list)
    format: int = FORMAT

    def reference(self, wanted: str | None = None) -> str:
        """The broker that the others are compared with; KeyError if `wanted` is not here."""
        if wanted is not None:
            if wanted not in self.brokers:
                raise KeyError(wanted)
            return wanted
        for name in ("dbus-broker", "dbus-daemon", *self.brokers):
            if name in self.brokers:
                return name
        return ""

    def subject(self) -> str:
        """The broker that a bar is for: jitney, or else the first whose name begins so."""
        if "jitney" in self.brokers:
            return "jitney"
        return next((name for name in self.brokers if name.startswith("jitney")), "")


def write(path: str | os.PathLike[str], results: Results) -> None:
    """Replaces `path` at once, or leaves it as it was (OSError; ValueError for NaN and
    such; BadFile for what could not be read again)."""
    text = json.dumps(asdict(results), indent=1, ensure_ascii=False, allow_nan=False)
    parse(json.loads(text))
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> Results:
    """BadFile if it is not what `write` writes, OSError if it cannot be opened."""
    try:
        return parse(load(path))
    except BadFile as error:
        raise BadFile(f"{os.fspath(path)}: {error}") from None


def load(path: str | os.PathLike[str]) -> Any:
    """The JSON in a file; BadFile if it is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadFile(f"no JSON: {error}") from None


def parse(data: Any) -> Results:
    """Results out of JSON's types; BadFile says what is wrong."""
    table = _table(data, "the file")
    number = table.get("format")
    if not isinstance(number, int) or isinstance(number, bool):
        raise BadFile("has no format number: not a result file")
    if number > FORMAT:
        raise BadFile(f"format {number} is newer than this program, which knows {FORMAT}")
    if number != FORMAT:
        raise BadFile(f"format {number} is no longer read, only {FORMAT}")
    return Results(
        started=_text(table, "started", "the file"),
        machine=_table(table.get("machine", {}), "machine"),
        settings=_table(table.get("settings", {}), "settings"),
        brokers=_each(table, "brokers", _broker),
        scenarios=_each(table, "scenarios", _scenario),
        growths=_each(table, "growths", _growth),
        noise=_texts(table, "noise", "the file"),
    )


def _each(table: dict[str, Any], key: str, make: Callable[[str, Any, str], T]) -> dict[str, T]:
    found = _table(table.get(key, {}), key)
    return {name: make(name, data, f"{key}: {name}") for name, data in found.items()}


def _broker(_name: str, data: Any, where: str) -> Broker:
    table = _table(data, where)
    command = table.get("command", "")
    if isinstance(command, list) and all(isinstance(word, str) for word in command):
        table = {**table, "command": shlex.join(command)}
    return Broker(_text(table, "version", where), _text(table, "command", where))


def _scenario(name: str, data: Any, where: str) -> Scenario:
    table = _table(data, where)
    return Scenario(
        id=name,
        title=_text(table, "title", where) or name,
        group=_text(table, "group", where),
        unit=_text(table, "unit", where),
        rounds=_rounds(table, where),
        notes=_texts(table, "notes", where),
    )


def _growth(name: str, data: Any, where: str) -> Growth:
    table = _table(data, where)
    points = []
    for place, entry in enumerate(_list(table, "points", where)):
        here = f"{where}, point {place + 1}"
        point = _table(entry, here)
        points.append(Point(_number(point.get("x"), f"{here}, x"), _rounds(point, here)))
    return Growth(
        id=name,
        title=_text(table, "title", where) or name,
        x_label=_text(table, "x_label", where),
        points=points,
        notes=_texts(table, "notes", where),
    )


def _rounds(table: dict[str, Any], where: str) -> Rounds:
    found: Rounds = {}
    brokers = _table(table.get("rounds", {}), f"{where}, rounds")
    for broker in brokers:
        here = f"{where}, {broker}"
        found[broker] = [
            {name: _number(value, f"{here}, {name}") for name, value in _table(row, here).items()}
            for row in _list(brokers, broker, here)
        ]
    return found


def _table(data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise BadFile(f"{where}: not an object")
    return data


def _list(table: dict[str, Any], key: str, where: str) -> list[Any]:
    found = table.get(key, [])
    if not isinstance(found, list):
        raise BadFile(f"{where}: {key} is not a list")
    return found


def _text(table: dict[str, Any], key: str, where: str) -> str:
    found = table.get(key, "")
    if not isinstance(found, str):
        raise BadFile(f"{where}: {key} is not a text")
    return found


def _texts(table: dict[str, Any], key: str, where: str) -> list[str]:
    found = _list(table, key, where)
    if not all(isinstance(entry, str) for entry in found):
        raise BadFile(f"{where}: {key} is not a list of texts")
    return found


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadFile(f"{where}: not a number")
    if not math.isfinite(value):
        raise BadFile(f"{where}: {value} is no figure")
    return value
