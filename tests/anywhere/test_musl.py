"""Modules that are built with musl's own headers and compiler: those that call the C library
themselves, and the preloaded library. `make musl` builds all there are."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from anywhere.elf import MUSL, not_in, symbols

ROOT = Path(__file__).parent.parent.parent
COMPILER = ["musl-gcc", "-std=c11", "-O0", "-w", "-fPIC", "-shared", "-fvisibility=hidden"]
# Python's headers and the kernel's, behind musl's own.
MULTIARCH = sysconfig.get_config_var("MULTIARCH") or "."
BEHIND = [
    f"-I{sysconfig.get_path('include')}",
    "-idirafter", f"/usr/include/{MULTIARCH}", "-idirafter", "/usr/include",
]  # fmt: skip

pytestmark = [
    pytest.mark.skipif(
        shutil.which("musl-gcc") is None or not MUSL, reason="no musl-gcc (Debian: musl-tools)"
    ),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump (Debian: binutils)"),
]


def sources() -> dict[str, Path]:
    """What Cython made of each .pyx when this jitney was built; the rest calls no C library."""
    installed = Path(importlib.import_module("jitney.broker").__file__ or "").parent.parent.parent
    wanted = [
        pyx.relative_to(ROOT).with_suffix(".c")
        for room in ("broker", "compat", "bench", "kdbus")
        for pyx in sorted((ROOT / room).rglob("*.pyx"))
    ]
    for place in (installed / ".build", ROOT / "build"):
        for folder in place.glob("temp.*/c"):
            found = {str(name): folder / name for name in wanted}
            if all(path.exists() for path in found.values()):
                return found
    return {}


def built(to: Path, *files: Path) -> Path:
    done = subprocess.run(
        [*COMPILER, *BEHIND, *files, "-o", to], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return to


def test_modules(tmp_path: Path) -> None:
    if importlib.import_module("jitney.broker.mem").__file__.endswith(".py"):
        pytest.skip("nothing is compiled in this build")
    found = sources()
    if not found:
        pytest.skip("what was compiled is not here as C")
    assert "compat/sysio.c" in found
    has = set(symbols(MUSL[0], defined=True))
    for number, (name, path) in enumerate(found.items()):
        assert not not_in(built(tmp_path / f"{number}.so", path), has), name


def test_preloaded_library(tmp_path: Path) -> None:
    files = sorted((ROOT / "kdbus" / "shim").glob("*.c"))
    made = built(tmp_path / "shim.so", *files)
    assert not not_in(made, set(symbols(MUSL[0], defined=True)))
    # What glibc's programs call, and musl's never do, stands in nobody's way.
    assert {"open", "openat", "ioctl", "mmap", "close"} <= set(symbols(made, defined=True))
