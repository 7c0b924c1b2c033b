"""Lets the tests beside this file import `madeup` and `started`."""

from __future__ import annotations

import ctypes
import sys
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
def orphans_are_init_s() -> Iterator[None]:
    """Starting a broker makes us the parent of orphans, which other tests do not expect."""
    yield
    ctypes.CDLL(None).prctl(36, ctypes.c_ulong(0))  # PR_SET_CHILD_SUBREAPER
