"""The short run of fuzzing: every target with its corpus, and with inputs made of it by a seed.

The long run is `make fuzz`, see docs/fuzzing.md. What that has found is in `test_found.py`.
"""

from __future__ import annotations

import os
from itertools import islice

import pytest
from fuzz import corpora, text_targets
from fuzz.bus_targets import USER, Scene
from fuzz.mutate import mutated
from fuzz.targets import TARGETS

from jitney.broker.match import Rule
from jitney.compat import address, matchrule

SEED = 20141128

every_target = pytest.mark.parametrize("name", TARGETS)


@every_target
def test_corpus(name: str) -> None:
    inputs = corpora.read(name)
    assert inputs, f"there is no corpus for {name}"
    for data in [b"", b"\0", *inputs, *corpora.installed(name)]:
        TARGETS[name].run(data)


@every_target
@pytest.mark.weakness("CVE-2022-42010", "CVE-2022-42011", "CVE-2022-31212", "CVE-2022-31213")
def test_changed(name: str) -> None:
    target = TARGETS[name]
    inputs = corpora.read(name) + corpora.installed(name)
    changed = islice(mutated(inputs, target.words, target.longest, SEED), target.short)
    for i, raw in enumerate(changed):
        data = target.mend(raw) if target.mend is not None and i & 1 else raw
        try:
            target.run(data)
        except Exception as error:
            error.add_note(f"{name}: {data!r}")
            raise


def test_same_seed_same_inputs() -> None:
    first, second = (
        list(islice(mutated([b"abc", bytes(40)], [b"word"], 64, SEED), 500)) for _ in range(2)
    )
    assert first == second
    assert len(set(first)) > 400
    assert max(map(len, first)) <= 64


def test_packed_corpora_are_small() -> None:
    files = list(corpora.FOLDER.glob("*.txt"))
    assert {file.stem for file in files} == TARGETS.keys()
    assert sum(file.stat().st_size for file in files) < 500_000


# That the targets notice what they are there for


def test_a_guest_that_stays_is_noticed() -> None:
    scene = Scene()
    forgotten = scene.rig.connect(USER).greet()
    with pytest.raises(AssertionError, match=r"'connections': \(2, 3\)"):
        scene.end()
    forgotten.close()


def test_a_silent_bus_is_noticed() -> None:
    scene = Scene()
    scene.b.call(b"org.freedesktop.DBus", b"ReleaseName", "s", b"com.example.B")
    with pytest.raises(AssertionError, match="no answer"):
        scene.end()


def test_a_lost_descriptor_is_noticed() -> None:
    scene = Scene()
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(AssertionError, match="/dev/null"):
        scene.end()
    os.close(fd)


def test_disagreement_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = b"type='signal',member='9'"
    TARGETS["matchrule"].run(rule)
    monkeypatch.setattr(matchrule, "plain", lambda text: Rule(type=4))
    with pytest.raises(AssertionError, match="what thorough"):
        TARGETS["matchrule"].run(rule)


@pytest.mark.skipif(text_targets.libdbus() is None, reason="no libdbus to compare with")
def test_disagreement_with_libdbus_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    TARGETS["address"].run(b"unix:path=/x")
    monkeypatch.setattr(address, "parse", lambda text: [])
    with pytest.raises(AssertionError, match="address"):
        TARGETS["address"].run(b"unix:path=/x")
