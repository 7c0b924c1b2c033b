"""What the tests of kdbus's forms share: GLib to compare with, and values of D-Bus to try.

Invariant: without GLib the tests that need it are skipped, and say so. What can be tried on several
fronts is tried on all of them, by the same test.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kdbusfuse
import kdbusmount
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
    yield from front(request.param)


@pytest.fixture(scope="session")
def mounted_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A mounted kdbusfs that many tests use, one after the other."""
    why = kdbusmount.why_not() or kdbusnative.why_not()
    if why:
        pytest.skip(why)
    # Other users are to get there as well.
    folder = Path(tempfile.mkdtemp(prefix="jitney-fuse-"))
    folder.chmod(0o755)
    with kdbusmount.mounted(folder / "kdbus", time_to_live=3600) as tree:
        yield tree.path
    (folder / "kdbus").rmdir()
    folder.rmdir()


@pytest.fixture(params=["core", "native", "fuse"])
def everywhere(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A bus on each front that there is, for what needs no descriptors and no look at the bus."""
    made: Any
    if request.param == "fuse":
        made = kdbusfuse.FuseWorld(request.getfixturevalue("mounted_tree"))
        yield made
        made.close()
    else:
        yield from front(request.param)


def front(name: str) -> Iterator[Any]:
    made: Any
    if name == "native":
        why = kdbusnative.why_not()
        if why:
            pytest.skip(why)
        made = kdbusnative.NativeWorld()
    else:
        made = World()
    yield made
    made.close()


@pytest.fixture
def core() -> Iterator[World]:
    """The same by plain calls alone, for tests that look at what no client is told."""
    yield from front("core")
