"""Lets the tests beside this file import `madeup` and `started`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest  # noqa: E402
from madeup import run  # noqa: E402

from jitney.bench.results import Results  # noqa: E402


@pytest.fixture
def results() -> Results:
    """A rich run, which the test may change."""
    return run()
