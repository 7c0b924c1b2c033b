"""Real libraries talk through brokers, and what comes back is looked at."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
from started import broker, children, nothing_left

from jitney.bench import libraries


@pytest.fixture
def program() -> Any:
    """`clients.program`, imported as its programs do."""
    package = types.ModuleType("clients")
    package.__path__ = [libraries.PROGRAMS]
    before = sys.modules.get("clients")
    sys.modules["clients"] = package
    yield importlib.import_module("clients.program")
    for name in [name for name in sys.modules if name.partition(".")[0] == "clients"]:
        del sys.modules[name]
    if before is not None:
        sys.modules["clients"] = before


def had(library: str) -> str:
    if reason := libraries.available()[library]:
        pytest.skip(f"{library}: {reason}")
    return library


@pytest.mark.parametrize("library", libraries.NAMES)
def test_fifty_of_each(library: str) -> None:
    had(library)
    with nothing_left(), broker("jitney-pure").start() as running:
        found = libraries.run(library, running, count=50, warmup=5)
    assert tuple(found) == libraries.ROUNDS
    for name, figures in found.items():
        assert figures["count"] == 50
        assert figures["rate"] > 0
        assert figures["cpu_us"] > 0
        if name == "signals":
            # The call that asks for them is no signal, but passes through the broker.
            assert figures["messages"] == 52
        else:
            assert figures["messages"] == 100
            assert 0 < figures["p50_us"] <= figures["p99_us"]


@pytest.mark.parametrize("library", libraries.NAMES)
def test_by_time(library: str) -> None:
    had(library)
    with broker("jitney-pure").start() as running:
        found = libraries.run(library, running, seconds=0.2, warmup=0)
    for figures in found.values():
        assert figures["seconds"] >= 0.2
        assert figures["count"] > 0


def test_each_reason_is_a_text() -> None:
    assert libraries.available().keys() == libraries.NAMES.keys()
    assert libraries.versions().keys() == {k for k, why in libraries.available().items() if not why}
    with pytest.raises(LookupError):
        libraries.run("no-such-library", None)  # type: ignore[arg-type]


def test_a_broker_that_dies_is_an_error() -> None:
    library = next((name for name, why in libraries.available().items() if not why), "")
    if not library:
        pytest.skip("no library at all")
    with nothing_left(), broker("jitney-pure").start() as running:
        killer = threading.Timer(1.5, os.kill, (running.pid, signal.SIGKILL))
        killer.start()
        try:
            with pytest.raises(libraries.LibraryError):
                libraries.run(library, running, seconds=30)
        finally:
            killer.cancel()
            killer.join()


def test_programs_end_when_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    library = next((name for name, why in libraries.available().items() if not why), "")
    if not library:
        pytest.skip("no library at all")

    def interrupt(*_: object) -> None:
        assert len(children()) >= 3
        raise KeyboardInterrupt

    monkeypatch.setattr("jitney.bench.libraries._Program.order", interrupt)
    with (
        nothing_left(),
        broker("jitney-pure").start() as running,
        pytest.raises(KeyboardInterrupt),
    ):
        libraries.run(library, running, count=1)


def test_what_is_wrong_gives_no_figures(program: Any) -> None:
    measured = program.Round(count=2)
    assert measured.more()
    text = measured.next_text()
    with pytest.raises(program.Wrong):
        measured.answered(measured.now(), text, "something else")
    with pytest.raises(program.Wrong):
        measured.figures()
    measured = program.Round(count=150)
    assert measured.batch() == program.BATCH
    measured.signalled(0)
    with pytest.raises(program.Wrong):
        measured.signalled(2)
    with pytest.raises(program.Wrong):
        measured.batch()


def test_a_round_by_count_and_by_time(program: Any) -> None:
    measured = program.Round(count=150)
    assert measured.batch() == 100
    for number in range(100):
        measured.signalled(number)
    assert measured.batch() == 50
    for number in range(100, 150):
        measured.signalled(number)
    assert measured.batch() == 0
    assert measured.figures()["messages"] == 154
    measured = program.Round(seconds=0.01)
    assert measured.more()
    measured.answered(measured.now(), "a", "a")
    time.sleep(0.02)
    assert not measured.more()
    assert measured.figures()["count"] == 1


def test_programs_need_nothing_of_jitney() -> None:
    for path in Path(libraries.PROGRAMS).glob("*.py"):
        assert "jitney." not in path.read_text().replace("jitney.bench", "")
