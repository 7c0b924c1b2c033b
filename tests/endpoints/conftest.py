"""The bus that endpoints are opened on."""

from __future__ import annotations

from collections.abc import Iterator

import buses
import pytest


@pytest.fixture
def bus() -> Iterator[buses.Daemon]:
    with buses.running(buses.jitney_command()) as daemon:
        yield daemon
