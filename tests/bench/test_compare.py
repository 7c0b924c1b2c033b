"""Comparing runs: a made-up regression is found, noise is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from madeup import run

from jitney.bench.compare import (
    BETTER,
    GONE,
    SAME,
    WORSE,
    Verdict,
    compare,
    main,
    ratios,
    read_ratios,
    write_baseline,
)
from jitney.bench.figures import Summary
from jitney.bench.results import Results, write


def saved(path: Path, results: Results) -> str:
    write(path, results)
    return str(path)


def judged(before: Summary, after: Summary | None, name: str = "rate") -> Verdict:
    now = {"s": {name: {"jitney/b": after}}} if after else {}
    (verdict,) = compare({"s": {name: {"jitney/b": before}}}, now)
    return verdict


def test_by_hand() -> None:
    was = Summary(1.2, 1.15, 1.2)
    assert judged(was, Summary(1.0, 1.0, 1.0)).verdict == WORSE
    assert judged(was, Summary(1.06, 1.05, 1.07)).verdict == SAME
    assert judged(was, Summary(1.33, 1.33, 1.33)).verdict == BETTER
    assert judged(was, Summary(1.0, 0.8, 1.2)).verdict == SAME  # as noisy as that
    assert judged(was, Summary(1.33, 1.33, 1.33), "cpu_us").verdict == WORSE
    assert judged(was, Summary(1.0, 1.0, 1.0), "cpu_us").verdict == BETTER
    assert judged(was, Summary(1.33, 1.33, 1.33), "p999_us").verdict == SAME  # its own floor
    assert judged(was, None).verdict == GONE
    assert judged(was, Summary(0.9, 0.9, 0.9)).change == pytest.approx(-0.25)


@pytest.mark.parametrize("seed", range(2, 12))
def test_quiet_within_noise(seed: int) -> None:
    verdicts = compare(ratios(run()), ratios(run(seed=seed)))
    assert {verdict.verdict for verdict in verdicts} == {SAME}


def test_finds_a_regression_and_only_that() -> None:
    verdicts = compare(ratios(run()), ratios(run(jitney=0.7, seed=2)))
    worse = {(v.scenario, v.metric) for v in verdicts if v.verdict == WORSE}
    assert ("call1", "rate") in worse
    assert ("call1", "cpu_us") in worse
    assert all(v.pair.startswith("jitney/") for v in verdicts if v.verdict != SAME)
    assert not any("@" in scenario for scenario, _ in worse)  # growths did not change
    better = compare(ratios(run(jitney=0.7)), ratios(run(seed=2)))
    assert BETTER in {v.verdict for v in better}
    assert WORSE not in {v.verdict for v in better}


def test_pairs_are_ours_against_theirs() -> None:
    found = ratios(run())
    assert set(found["call1"]["rate"]) == {
        "jitney/dbus-daemon", "jitney/dbus-broker", "jitney/busd", "jitney/jitney pure",
        "jitney pure/dbus-daemon", "jitney pure/dbus-broker", "jitney pure/busd",
    }  # fmt: skip
    assert "names@1000" in found
    others = run()
    for name in ("jitney", "jitney pure"):
        del others.brokers[name]
    assert set(ratios(others)["call1"]["rate"]) == {"dbus-daemon/dbus-broker", "busd/dbus-broker"}


def test_baseline_has_the_agreed_form(tmp_path: Path, results: Results) -> None:
    path = tmp_path / "baseline.json"
    write_baseline(results, path)
    entry = json.loads(path.read_text())["call1"]["rate"]["jitney/dbus-broker"]
    assert set(entry) == {"median", "low", "high"}
    again = read_ratios(path)
    assert again["call1"]["rate"]["jitney/dbus-broker"].median == pytest.approx(
        ratios(results)["call1"]["rate"]["jitney/dbus-broker"].median, rel=1e-3
    )
    assert {v.verdict for v in compare(again, ratios(results))} == {SAME}


def test_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = saved(tmp_path / "a.json", run())
    same = saved(tmp_path / "b.json", run(seed=3))
    slow = saved(tmp_path / "c.json", run(jitney=0.6, seed=3))
    baseline = str(tmp_path / "baseline.json")
    assert main([before, same]) == 0
    assert "worse" not in capsys.readouterr().out
    assert main([before, "--write-baseline", baseline]) == 0
    assert main([baseline, slow]) == 1
    out = capsys.readouterr().out
    assert "jitney/dbus-broker" in out
    assert "worse" in out
    assert main([before, slow, "--floor", "100"]) == 0
    assert main([before, slow, "--all"]) == 1
    assert "same" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"format": 99}', '{"s": {"rate": {"a/b": {"median": 1, "low": "x", "high": 1}}}}'],
)
def test_unusable_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    good = saved(tmp_path / "a.json", run())
    bad = tmp_path / "bad.json"
    bad.write_text(content)
    assert main([good, str(bad)]) == 2
    assert str(bad) in capsys.readouterr().err
    assert main([good, str(tmp_path / "none.json")]) == 2
