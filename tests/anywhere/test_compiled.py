"""What the compiled modules ask of a C library: nothing beyond glibc 2.17 (manylinux2014), and
nothing that musl does not have."""

from __future__ import annotations

import importlib
import shutil
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from anywhere.elf import MUSL, not_in, symbols, too_new


def modules() -> list[Path]:
    """Python's modules, and the library that kdbus's programs preload."""
    root = Path(importlib.import_module("jitney.broker").__file__ or "").parent.parent
    return sorted(path for path in root.rglob("*") if path.name.endswith(tuple(EXTENSION_SUFFIXES)))


pytestmark = [
    pytest.mark.skipif(not modules(), reason="nothing is compiled in this build"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump (Debian: binutils)"),
]


def test_no_newer_c_library_than_manylinux2014() -> None:
    seen = 0
    for module in modules():
        seen += sum(map(bool, symbols(module, defined=False).values()))
        assert not too_new(module), module.name
    assert seen or "musl" in (sysconfig.get_config_var("SOABI") or "")


@pytest.mark.skipif(not MUSL, reason="musl is not there to compare with (Debian: musl)")
def test_nothing_that_musl_does_not_have() -> None:
    has = set(symbols(MUSL[0], defined=True))
    assert {"recvmsg", "accept4"} <= has
    for module in modules():
        assert not not_in(module, has), module.name
