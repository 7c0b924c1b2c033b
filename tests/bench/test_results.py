"""What is written can be read again; what is no result file is refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jitney.bench.results import BadFile, Broker, Results, parse, read, write


def test_round_trip(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write(path, results)
    assert read(path) == results
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


def test_empty_run(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write(path, Results())
    assert read(path) == Results()


def test_what_cannot_be_read_again_is_not_written(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write(path, results)
    before = path.read_bytes()
    results.scenarios["call1"].rounds["jitney"][0]["rate"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write(path, results)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_unknown_keys_are_ignored() -> None:
    data = {"format": 1, "new": 1, "scenarios": {"a": {"title": "A", "newer": {}}}}
    assert parse(data).scenarios["a"].title == "A"


def test_command_may_be_a_list() -> None:
    data = {"format": 1, "brokers": {"b": {"command": ["b", "--config=a b"]}}}
    assert parse(data).brokers["b"] == Broker("", "b '--config=a b'")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "the file: not an object"),
        ({}, "no format number"),
        ({"format": True}, "no format number"),
        ({"format": 2}, "format 2 is newer than this program, which knows 1"),
        ({"format": 0}, "format 0 is no longer read"),
        ({"format": 1, "noise": [1]}, "noise is not a list of texts"),
        ({"format": 1, "brokers": {"b": 1}}, "brokers: b: not an object"),
        (
            {"format": 1, "scenarios": {"a": {"rounds": {"b": [{"rate": "x"}]}}}},
            "scenarios: a, b, rate: not a number",
        ),
        ({"format": 1, "growths": {"g": {"points": [{}]}}}, "growths: g, point 1, x: not a number"),
    ],
)
def test_refused(data: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(BadFile) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_no_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(BadFile, match="no JSON"):
        read(path)


def test_reference_and_subject(results: Results) -> None:
    assert results.reference() == "dbus-broker"
    assert results.reference("busd") == "busd"
    assert results.subject() == "jitney"
    with pytest.raises(KeyError):
        results.reference("nobody")
    del results.brokers["dbus-broker"], results.brokers["jitney"]
    assert results.reference() == "dbus-daemon"
    assert results.subject() == "jitney pure"
    assert (Results().reference(), Results().subject()) == ("", "")
