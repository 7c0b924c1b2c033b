"""Lets the tests beside this file import `madeup`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from madeup import run

from jitney.bench.results import Results


@pytest.fixture
def results() -> Results:
    """A rich run, which the test may change."""
    return run()
