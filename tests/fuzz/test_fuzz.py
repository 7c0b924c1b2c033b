"""The short run of fuzzing: every target with its corpus, and with inputs made of it by a seed.

The long run is `make fuzz`, see docs/fuzzing.md. What that has found is in `test_found.py`.
"""

from __future__ import annotations

from itertools import islice

import pytest
from fuzz import corpora
from fuzz.mutate import mutated
from fuzz.targets import TARGETS

SEED = 20141128

every_target = pytest.mark.parametrize("name", TARGETS)


@every_target
def test_corpus(name: str) -> None:
    inputs = corpora.read(name)
    assert inputs, f"there is no corpus for {name}"
    for data in [b"", b"\0", *inputs, *corpora.installed(name)]:
        TARGETS[name].run(data)


@every_target
def test_changed(name: str) -> None:
    target = TARGETS[name]
    inputs = corpora.read(name) + corpora.installed(name)
    for data in islice(mutated(inputs, target.words, target.longest, SEED), target.short):
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
