"""The page: well-formed, whole without a network, and safe whatever the texts are."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitney.bench.html import render
from jitney.bench.results import Broker, Growth, Point, Results, Scenario
from jitney.bench.svg import Scale, apart, escape, lanes, log_scale, quote

VOID = {"meta", "br"}
BAR = {"call1": (1.1, 0.9), "call64": (1.5, 0.9)}
HOSTILE = "<script src='http://x/'>\"&amp;\x00\x1f\ud800]]>"


class Checker(HTMLParser):
    """Every tag is closed in its turn; ids are unique."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.texts: list[str] = []
        self.attributes: set[str] = set()
        self.feed(page)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(found["id"] or "")
        if tag == "a":
            self.targets.append(found.get("href") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def drawings(page: str) -> list[ElementTree.Element]:
    return [
        ElementTree.fromstring(text)
        for text in re.findall(r"<svg viewBox.*?</svg>|<svg class=.*?</svg>", page, re.DOTALL)
    ]


def test_well_formed_and_links_lead_somewhere(results: Results) -> None:
    found = Checker(render(results, bar=BAR))
    assert {target.removeprefix("#") for target in found.targets} <= set(found.ids)
    assert found.targets


def test_drawings_are_xml_with_words(results: Results) -> None:
    found = [svg for svg in drawings(render(results, bar=BAR)) if svg.get("role") == "img"]
    assert len(found) > 40
    for svg in found:
        assert (svg.findtext("title") or "").strip()
        assert (svg.findtext("desc") or "").strip()
        labels = {svg[0].get("id"), svg[1].get("id")}
        assert set((svg.get("aria-labelledby") or "").split()) == labels


def test_needs_nothing_else(results: Results) -> None:
    page = render(results, bar=BAR)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|src=", page)
    found = Checker(page)
    assert not {"script", "link", "img", "iframe", "object", "use", "image"} & set(found.tags)
    assert not {name for name in found.attributes if name.startswith("on")}
    assert all(target.startswith("#") for target in found.targets)
    assert "prefers-color-scheme: dark" in page


def test_same_results_same_page(results: Results) -> None:
    assert render(results) == render(results)


def test_brokers_differ_in_shape() -> None:
    from jitney.bench.charts import signs

    found = signs(["dbus-daemon", "dbus-broker", "busd", "jitney", "jitney pure", "x", "y", "z"])
    assert len({sign.shape for sign in found.values()}) == len(found)
    assert len({sign.kind for sign in found.values()}) == len(found)


def test_texts_are_escaped() -> None:
    rounds = {HOSTILE: [{"rate": 1.0, HOSTILE: 2.0, "p50_us": 1.0}], "jitney": [{"rate": 2.0}]}
    results = Results(
        started=HOSTILE,
        machine={"cpu": HOSTILE, HOSTILE: HOSTILE},
        settings={HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]},
        brokers={HOSTILE: Broker(HOSTILE, HOSTILE), "jitney": Broker()},
        scenarios={HOSTILE: Scenario(HOSTILE, HOSTILE, HOSTILE, HOSTILE, rounds, [HOSTILE])},
        growths={"g": Growth("g", HOSTILE, HOSTILE, [Point(1, rounds), Point(2, rounds)])},
        noise=[HOSTILE],
    )
    page = render(results, bar={HOSTILE: (1.0, None)})
    assert "<script" not in page
    assert "\x00" not in page
    page.encode()
    assert "script" not in Checker(page).tags
    assert drawings(page)


@pytest.mark.parametrize("value", [0.0, -5.0, 1e-9, 1e15])
def test_odd_figures(value: float) -> None:
    row = dict.fromkeys(("rate", "cpu_us", "p50_us", "p999_us", "idle_bytes"), value)
    rounds = {name: [row, {}, row] for name in ("dbus-daemon", "jitney")}
    rounds["busd"] = []
    results = Results(
        brokers={name: Broker() for name in rounds},
        scenarios={"s": Scenario("s", "S", rounds=rounds), "t": Scenario("t", "T")},
        growths={
            "g": Growth("g", "G", "x", [Point(x, rounds) for x in (0, 1, 1000)]),
            "one": Growth("one", "One", "x", [Point(1, rounds)]),
            "none": Growth("none", "None", "x"),
        },
    )
    page = render(results, bar={"s": (1.0, 1.0)})
    Checker(page)
    assert drawings(page)
    assert "nan" not in page
    assert "inf," not in page


def test_empty_run() -> None:
    Checker(render(Results()))


@given(st.text())
def test_any_text_can_stand_in_xml(text: str) -> None:
    found = ElementTree.fromstring(f"<a b={quote(text)}>{escape(text)}</a>")
    if not re.search("[^\x20-\ud7ff]", text):
        assert (found.text or "", found.get("b")) == (text, text)


@given(st.lists(st.floats(1e-6, 1e12), min_size=1), st.floats(1.5, 10))
def test_log_scale(values: list[float], least: float) -> None:
    scale = log_scale(values, 0, 200, least=least)
    assert scale.high / scale.low >= least * 0.999
    for value in values:
        assert 0 <= scale.at(value) <= 200
    ticks = scale.ticks(5)
    assert 1 <= len(ticks) <= 5
    assert all(scale.low <= tick <= scale.high for tick in ticks)
    assert [scale.at(tick) for tick in ticks] == sorted(scale.at(tick) for tick in ticks)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_even_scale(low: float, span: float) -> None:
    scale = Scale(low, low + span, 10, 110)
    assert 1 <= len(scale.ticks(6)) <= 6
    assert scale.at(low - 1) == 10
    assert scale.at(low + span + 1) == 110


@settings(max_examples=50)
@given(st.lists(st.floats(0, 200), max_size=8))
def test_labels_do_not_overlap(wanted: list[float]) -> None:
    found = sorted(apart(wanted, 14, 0, 200))
    assert all(b - a >= 13.99 for a, b in pairwise(found))
    assert all(-0.01 <= place <= 200.01 for place in found)
    assert apart([5, 50, 100], 14, 0, 200) == [5, 50, 100]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 20)), max_size=8))
def test_nothing_overlaps_within_a_lane(entries: list[tuple[float, float]]) -> None:
    spans = [(start, start + size) for start, size in entries]
    found = lanes(spans, 1)
    for lane in set(found):
        here = sorted(span for span, of in zip(spans, found, strict=True) if of == lane)
        assert all(a[1] + 1 <= b[0] for a, b in pairwise(here))
