"""The judge of the peer suites lets nothing through that is not listed."""

from __future__ import annotations

import peer
import pytest

TEXT = """
# heading
suite_a 2
    /may/fail  # known
suite_b 0
"""


def test_reads_minimum_and_exceptions() -> None:
    first, second = peer.read(TEXT)
    assert (first.suite, first.minimum, first.may_fail) == ("suite_a", 2, {"/may/fail"})
    assert (second.suite, second.minimum, second.may_fail) == ("suite_b", 0, set())


@pytest.mark.parametrize("text", ["suite", "  /test", "suite 1 2", "suite x", "suite 1\n  a b"])
def test_refuses_what_makes_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match=r"line|invalid literal"):
        peer.read(text)


def test_the_list_in_use_can_be_read() -> None:
    assert peer.read(peer.EXPECTED.read_text(encoding="utf-8"))


def test_complaints() -> None:
    expected = peer.Expectation("suite", 2, {"/may/fail"})
    fine = {"/a": ["pass"], "/b": ["pass"], "/c": ["skip"], "/may/fail": ["fail"]}
    assert expected.complaints(fine) == []
    assert expected.complaints({**fine, "/c": ["fail"]}) == ["failed: /c"]
    assert expected.complaints({**fine, "/b": ["skip"]}) == ["1 tests passed, at least 2 must"]
    assert expected.complaints({}) == ["0 tests passed, at least 2 must"]
