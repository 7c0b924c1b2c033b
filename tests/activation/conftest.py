"""The buses that activation is tested on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import buses
import pytest
from activation.living import Living, living


@pytest.fixture(params=["jitney", "dbus-daemon"])
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., Living]]:
    """Starts a bus, of jitney's or the reference; options as for `living`."""
    ours = request.param == "jitney"
    if not ours and buses.REFERENCE is None:
        pytest.skip("no dbus-daemon to compare with")
    with ExitStack() as stack:
        yield lambda *words, **given: stack.enter_context(living(ours, *words, **given))


@pytest.fixture
def bus(start: Callable[..., Living]) -> Living:
    return start()
