"""HTML: results as one page that needs nothing else.

Invariant: the page loads nothing and links to nothing outside itself, runs no script, and every
text that came with the results is escaped. What makes the figures doubtful stands above them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from . import charts
from .charts import BY, NONE, TO
from .figures import LATENCIES, Row, Summary, metric, middle, ordered, ratio, summarised
from .noise import flags
from .results import Results, Rounds, Scenario
from .style import CSS
from .svg import escape, quote
from .table import Bar

FLAGS_SHOWN = 4


def write(
    path: str | os.PathLike[str],
    results: Results,
    *,
    reference: str | None = None,
    bar: Bar | None = None,
) -> None:
    """Writes the page. KeyError if there is no such reference, OSError."""
    Path(path).write_text(render(results, reference=reference, bar=bar), encoding="utf-8")


def render(results: Results, *, reference: str | None = None, bar: Bar | None = None) -> str:
    """The page as text. `bar`: what jitney should reach, by scenario (see `table.Bar`)."""
    return _Page(results, results.reference(reference), bar).render()


class _Page:
    def __init__(self, results: Results, reference: str, bar: Bar | None) -> None:
        self.results = results
        self.reference = reference
        self.bar = bar
        named = dict.fromkeys(results.brokers)
        for _, rounds in _everything(results):
            named.update(dict.fromkeys(rounds))
        self.brokers = list(named)
        self.signs = charts.signs(named)
        self.idents = (f"chart{number}" for number in count(1))
        self.groups: dict[str, list[Scenario]] = {}
        for scenario in results.scenarios.values():
            name = scenario.group or "scenarios"
            self.groups.setdefault(name[:1].upper() + name[1:], []).append(scenario)

    def render(self) -> str:
        parts = [self.head(), self.noise(), self.overview()]
        parts += [self.group(place, name) for place, name in enumerate(self.groups)]
        parts += [self.growths(), self.figures(), self.settings(), self.reading()]
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>D-Bus brokers, side by side</title><style>{CSS}</style></head>\n<body>\n"
            + "\n".join(part for part in parts if part)
            + "\n</body></html>\n"
        )

    def head(self) -> str:
        facts = [_when(self.results.started), *_machine_line(self.results.machine)]
        links = [("#overview", "Overview")] if self.results.scenarios else []
        links += [(f"#group{place}", name) for place, name in enumerate(self.groups)]
        links += [("#growth", "Growth")] if self.results.growths else []
        links += [
            ("#figures", "All figures"),
            ("#settings", "Settings"),
            ("#reading", "How to read it"),
        ]
        key = []
        for name in self.brokers:
            broker = self.results.brokers.get(name)
            version = (
                f"<small>{escape(broker.version)}</small>" if broker and broker.version else ""
            )
            key.append(
                f"<li>{charts.sign_alone(self.signs[name])}<span>{escape(name)}</span>{version}</li>"
            )
        spans = [f"<span>{escape(fact)}</span>" for fact in facts if fact]
        anchors = [f"<a href={quote(to)}>{escape(text)}</a>" for to, text in links]
        return (
            "<header><h1>D-Bus brokers, side by side</h1>"
            f'<p class="facts">{"".join(spans)}</p>'
            f'<ul class="key">{"".join(key)}</ul>'
            f'<nav aria-label="Sections">{"".join(anchors)}</nav>'
            "</header><main>"
        )

    def noise(self) -> str:
        found = flags(self.results)
        if not found:
            return (
                '<aside class="flags quiet"><strong>Quiet.</strong> Rounds agree with each other,'
                " and nothing else kept the machine busy.</aside>"
            )
        items = [f"<li>{escape(sentence)}</li>" for sentence in found]
        rest = ""
        if len(items) > FLAGS_SHOWN + 1:
            hidden = f"<summary>{len(items) - FLAGS_SHOWN} more</summary>"
            rest = f"<details>{hidden}<ul>{''.join(items[FLAGS_SHOWN:])}</ul></details>"
            items = items[:FLAGS_SHOWN]
        times_said = f"{len(found)} reasons" if len(found) > 1 else "One reason"
        return (
            f'<aside class="flags"><strong>{times_said} to doubt some figures</strong>'
            f"<ul>{''.join(items)}</ul>{rest}</aside>"
        )

    def overview(self) -> str:
        drawn = []
        for name, title in (("rate", "Rate"), ("cpu_us", "CPU by message")):
            chart = charts.overview(
                next(self.idents), self.results, name, self.reference, self.signs, self.bar
            )
            if chart:
                drawn.append(_figure(title, f"ratio to {self.reference}", chart))
        if not drawn:
            return ""
        subject = self.results.subject()
        words = f"{self.reference} is at {BY}1; whiskers span the lowest to the highest round."
        if subject and subject != self.reference:
            words += f" The number at the right is {subject}'s."
            if self.bar:
                words += " A dashed stroke is the bar that it should reach."
        return (
            f'<section id="overview"><h2>Against {escape(self.reference)}</h2>'
            f'<p class="soft">{escape(words)}</p><div class="wide">{"".join(drawn)}</div>'
            f"{self.mean()}</section>"
        )

    def mean(self) -> str:
        """Each broker's ratios over all scenarios in one figure."""
        rows = []
        for broker in self.results.brokers:
            if broker == self.reference:
                continue
            cells = []
            for name in ("rate", "cpu_us"):
                found = [
                    against.median
                    for scenario in self.results.scenarios.values()
                    if (against := self.against(scenario.rounds, broker, name))
                ]
                value = middle(found)
                shown = charts.by(value) if value else NONE
                cells.append(f"<td>{shown}<small>{_scenarios(len(found))}</small></td>")
            rows.append(
                f'<tr><th scope="row" class="name">{self.named(broker)}</th>{"".join(cells)}</tr>'
            )
        if not rows:
            return ""
        return (
            '<div class="scroll mean" tabindex="0"><table><caption>Geometric mean over the'
            " scenarios, each with the same weight</caption><thead><tr>"
            '<th scope="col" class="name">Broker</th><th scope="col">Rate</th>'
            '<th scope="col">CPU by message</th></tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )

    def group(self, place: int, name: str) -> str:
        return (
            f'<section id="group{place}"><h2>{escape(name)}</h2>'
            + "".join(self.scenario(scenario) for scenario in self.groups[name])
            + "</section>"
        )

    def scenario(self, scenario: Scenario) -> str:
        drawn = []
        names = ordered(_names(scenario.rounds))
        for name in names:
            if name in LATENCIES:
                if name == next(other for other in names if other in LATENCIES):
                    drawn.append(self.latency(scenario))
                continue
            found = {
                broker: was
                for broker in self.brokers
                if (was := summarised(scenario.rounds.get(broker, []), name))
            }
            kind = metric(name)
            aside = ", ".join(filter(None, (kind.unit, "more is better" if kind.more else "")))
            title = f"{scenario.title}: {kind.label}"
            chart = charts.bars(next(self.idents), title, name, found, self.signs)
            drawn.append(_figure(kind.label, aside, chart))
        body = (
            f'<div class="charts">{"".join(drawn)}</div>'
            if drawn
            else "<p>Nothing was measured.</p>"
        )
        unit = f'<p class="unit">{escape(scenario.unit)}</p>' if scenario.unit else ""
        head = f"<h3>{escape(scenario.title)}</h3>{unit}{_notes(scenario.notes)}"
        return f"<article>{head}{body}</article>"

    def latency(self, scenario: Scenario) -> str:
        found = {}
        for broker in self.brokers:
            row = {
                name: was
                for name in LATENCIES
                if (was := summarised(scenario.rounds.get(broker, []), name))
            }
            if row:
                found[broker] = row
        chart = charts.latency(next(self.idents), f"{scenario.title}: latency", found, self.signs)
        return _figure("Latency", "µs, log axis", chart)

    def growths(self) -> str:
        parts = []
        for growth in self.results.growths.values():
            drawn = []
            for name in ordered(key for point in growth.points for key in _names(point.rounds)):
                chart = charts.growth(next(self.idents), growth, name, self.brokers, self.signs)
                if chart:
                    drawn.append(f"<figure>{chart}</figure>")
            parts.append(
                f"<article><h3>{escape(growth.title)}</h3>{_notes(growth.notes)}"
                f'<div class="wide">{"".join(drawn)}</div></article>'
            )
        if not parts:
            return ""
        words = "What a message or a connection costs while there is more and more of something."
        head = f'<h2>Growth</h2><p class="soft">{words}</p>'
        return f'<section id="growth">{head}{"".join(parts)}</section>'

    def figures(self) -> str:
        tables = list(_everything(self.results))
        names = ordered(name for _, rounds in tables for name in _names(rounds))
        kinds = [metric(name) for name in names]
        head = "".join(
            f'<th scope="col">{escape(kind.label)}<small>{escape(kind.unit)}</small></th>'
            for kind in kinds
        )
        rows = []
        for title, rounds in tables:
            shown = [broker for broker in self.brokers if broker in rounds]
            for place, broker in enumerate(shown):
                first = (
                    f'<th scope="rowgroup" rowspan="{len(shown)}">{escape(title)}</th>'
                    if not place
                    else ""
                )
                cells = "".join(self.cell(rounds, broker, name) for name in names)
                rows.append(
                    f'<tr>{first}<th scope="row" class="name">{self.named(broker)}</th>{cells}</tr>'
                )
        if not rows:
            return ""
        return (
            '<section id="figures"><h2>All figures</h2><p class="soft">The median over the rounds;'
            f" below it the lowest and the highest, and the ratio to {escape(self.reference)}.</p>"
            '<div class="scroll" tabindex="0" role="region" aria-label="All figures"><table>'
            '<thead><tr><th scope="col">Scenario</th><th scope="col" class="name">Broker</th>'
            f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
        )

    def cell(self, rounds: Rounds, broker: str, name: str) -> str:
        was = summarised(rounds[broker], name)
        if was is None:
            return f"<td>{NONE}</td>"
        kind = metric(name)
        span = f"<small>{kind.show(was.low)}{TO}{kind.show(was.high)}</small>"
        against = self.against(rounds, broker, name) if broker != self.reference else None
        compared = f"<small>{charts.by(against.median)}</small>" if against else ""
        return f"<td>{kind.show(was.median)}{span}{compared}</td>"

    def settings(self) -> str:
        entries = [*_entries(self.results.machine), *_entries(self.results.settings)]
        for name, broker in self.results.brokers.items():
            entries.append(
                (name, f"<code>{escape(broker.command)}</code>" if broker.command else NONE)
            )
        listed = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in entries)
        return f'<section id="settings"><h2>Machine and settings</h2><dl>{listed}</dl></section>'

    def reading(self) -> str:
        return f'<section id="reading"><h2>How to read it</h2>{READING}</section></main>'

    def against(self, rounds: Mapping[str, list[Row]], broker: str, name: str) -> Summary | None:
        return ratio(rounds.get(broker, []), rounds.get(self.reference, []), name)

    def named(self, broker: str) -> str:
        return f"{charts.sign_alone(self.signs[broker])} {escape(broker)}"


READING = """
<p>Every round measures all brokers one after the other, each as a fresh process, and the next
round does so again. A ratio is taken within a round, where both brokers met the same machine, and
then the median over the rounds is shown. Ratios carry over to other machines far better than
figures do.</p>
<p>Rate is what the load and the broker reach together: a fast broker may be waiting for the load.
CPU by message is the broker's own time, of its process and all children, in user and kernel; it
says what a message costs whoever waits for whom. System calls and context switches by message say
where that time goes.</p>
<p>Latency is from sending to receiving. p50 is what half of the messages stay below, drawn as the
broker's sign; the stroke is p99, the tall stroke p99.9. With few messages p99.9 is a handful of
events: expect it to jump.</p>
<p>Bars begin at zero and each chart has a scale of its own; a bar with two
cuts is longer than there is room for. Axes of ratios, latency and growth are
logarithmic: equal distances are equal factors. Thin whiskers reach from the lowest to the highest
round; where those of two brokers overlap, do not call one of them faster.</p>
"""


def _everything(results: Results) -> Iterator[tuple[str, Rounds]]:
    """All rounds, with what to call them."""
    for scenario in results.scenarios.values():
        yield scenario.title, scenario.rounds
    for growth in results.growths.values():
        for point in growth.points:
            yield f"{growth.title}: {growth.x_label} {point.x:g}", point.rounds


def _figure(title: str, aside: str, chart: str) -> str:
    return (
        f"<figure><figcaption><b>{escape(title)}</b><span>{escape(aside)}</span></figcaption>"
        f"{chart}</figure>"
    )


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _names(rounds: Rounds) -> list[str]:
    return [name for rows in rounds.values() for row in rows for name in row]


def _scenarios(number: int) -> str:
    return "1 scenario" if number == 1 else f"{number} scenarios"


def _machine_line(machine: Mapping[str, Any]) -> list[str]:
    parts = [str(machine["cpu"])] if machine.get("cpu") else []
    cores = machine.get("cores")
    if cores:
        parts.append("1 CPU" if cores == 1 else f"{cores} CPUs")
    if isinstance(machine.get("memory_kb"), (int, float)):
        parts.append(f"{machine['memory_kb'] / 2**20:.1f} GiB")
    for name in ("kernel", "python", "virtual"):
        value = machine.get(name)
        if value and isinstance(value, str):
            parts.append(
                f"{name.capitalize()} {value}" if name != "virtual" else f"virtual ({value})"
            )
    return parts


def _when(text: str) -> str:
    """A time for people, or what else it is."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when.day} {when:%B %Y, %H:%M %Z}".strip()


def _entries(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), escape(_words(value))) for name, value in table.items()]


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(entry)}" for name, entry in value.items())
    return str(value)
