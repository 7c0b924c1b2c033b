"""Lets the tests beside this file import `madeup` and `started`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from madeup import run

from jitney.bench.results import Results


@pytest.fixture
def results() -> Results:
    """A rich run, which the test may change."""
    return run()
