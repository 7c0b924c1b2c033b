"""Lets the tests beside this file import `madeup` and `started`."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from madeup import run

from jitney.bench.results import Results


@pytest.fixture
def results() -> Results:
    """A rich run, which the test may change."""
    return run()


@pytest.fixture(autouse=True)
def folders_are_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """What is left of a broker is looked for where nobody else starts one at the same time."""
    tmp_path_factory.getbasetemp()  # which stays outside
    with tempfile.TemporaryDirectory(prefix="jitney-") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        monkeypatch.undo()


@pytest.fixture(autouse=True)
def orphans_are_init_s() -> Iterator[None]:
    """Starting a broker makes us the parent of orphans, which other tests do not expect."""
    yield
    ctypes.CDLL(None).prctl(36, ctypes.c_ulong(0))  # PR_SET_CHILD_SUBREAPER
