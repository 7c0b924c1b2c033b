"""What the tests of kdbus's forms share: GLib to compare with, and values of D-Bus to try.

Invariant: without GLib the tests that need it are skipped, and say so.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from glib_variants import GLibVariants


@pytest.fixture(scope="session")
def glib() -> Iterator[GLibVariants]:
    variants = GLibVariants()
    if not variants.usable:
        pytest.skip("the system's Python has no gi")
    yield variants
    variants.close()
