"""What the tests of kdbus's forms share: GLib to compare with, and values of D-Bus to try.

Invariant: without GLib the tests that need it are skipped, and say so. What can be tried on several
fronts is tried on all of them, by the same test.
"""

from __future__ import annotations

from collections.abc import Iterator

from typing import Any

import kdbusnative
import pytest
from glib_variants import GLibVariants
from kdbuskit import World


@pytest.fixture(scope="session")
def glib() -> Iterator[GLibVariants]:
    variants = GLibVariants()
    if not variants.usable:
        pytest.skip("the system's Python has no gi")
    yield variants
    variants.close()


@pytest.fixture(params=["core", "native"])
def world(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A bus to give commands to: by plain calls, or over sockets."""
    if request.param == "native":
        why = kdbusnative.why_not()
        if why:
            pytest.skip(why)
        made: Any = kdbusnative.NativeWorld()
    else:
        made = World()
    yield made
    made.close()


@pytest.fixture
def core() -> World:
    """The same by plain calls alone, for tests that look at what no client is told."""
    return World()
