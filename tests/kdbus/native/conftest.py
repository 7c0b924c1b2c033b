"""What the tests of the socket front share: one server for many tests, and a bus for each.

Invariant: the server outlives all of them; the last assertion is that it never complained.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from nativeclient import Bus, answered
from nativeserver import Server, served

_numbers = itertools.count()


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="jitney-sockets-") as folder:
        # Other users are to get there as well.
        Path(folder).chmod(0o755)
        with served(Path(folder) / "kdbus") as running:
            yield running


@pytest.fixture
def bus(server: Server) -> Iterator[Bus]:
    """A bus of its own; when the test is done, it must still serve others."""
    made = Bus(server.path, f"t{next(_numbers)}")
    yield made
    assert answered(made.path)
    made.close()
