"""What the compiled modules ask of a C library: nothing beyond glibc 2.17 (manylinux2014), and
nothing that musl does not have."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

OLDEST = (2, 17)
"""The C library of manylinux2014; that of Linux 3.10's time is no newer."""

MUSL = sorted(Path("/").glob("usr/lib/*-linux-musl*/libc.so")) + sorted(
    Path("/").glob("lib/*-linux-musl*/libc.so")
)
PYTHONS = re.compile(r"_?Py")
# The compiler's runtime, and what a linker puts there itself.
NOBODYS = {"__cxa_finalize", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable",
           "__gmon_start__"}  # fmt: skip


def modules() -> list[Path]:
    """Python's modules. The preloaded library beside them is for machines like the one that it
    was built on: glibc has moved what it needs from place to place."""
    root = Path(importlib.import_module("jitney.broker").__file__ or "").parent.parent
    found = (path for path in root.rglob("*") if path.name.endswith(tuple(EXTENSION_SUFFIXES)))
    return sorted(path for path in found if not path.name.startswith("lib"))


pytestmark = [
    pytest.mark.skipif(not modules(), reason="nothing is compiled in this build"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump (Debian: binutils)"),
]


def symbols(file: Path, *, defined: bool) -> dict[str, str]:
    """Dynamic symbols and the version of each."""
    done = subprocess.run(["objdump", "-T", str(file)], capture_output=True, text=True, check=True)
    found = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) < 3 or not re.fullmatch(r"[0-9a-f]{8,16}", words[0]):
            continue
        if ("*UND*" in line) != defined:
            version = re.search(r"\(?(GLIBC_[0-9.]+)\)?", line)
            found[words[-1]] = version[1] if version else ""
    return found


def test_no_newer_c_library_than_manylinux2014() -> None:
    seen = 0
    for module in modules():
        for name, version in symbols(module, defined=False).items():
            if version:
                seen += 1
                number = tuple(map(int, version.removeprefix("GLIBC_").split(".")))
                assert number[:2] <= OLDEST, f"{module.name} needs {name}@{version}"
    assert seen or "musl" in (sysconfig.get_config_var("SOABI") or "")


@pytest.mark.skipif(not MUSL, reason="musl is not there to compare with (Debian: musl)")
def test_nothing_that_musl_does_not_have() -> None:
    has = set(symbols(MUSL[0], defined=True))
    assert {"recvmsg", "accept4"} <= has
    for module in modules():
        wants = {name for name in symbols(module, defined=False) if not PYTHONS.match(name)}
        # glibc's checked variants are made by its headers, not by our code.
        wants = {re.sub(r"^__(\w+)_chk$", r"\1", name) for name in wants}
        assert wants - NOBODYS <= has, f"{module.name} needs {sorted(wants - NOBODYS - has)}"
