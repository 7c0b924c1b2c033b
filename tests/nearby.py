"""JITNEY_TESTS=system: of all tests, those that ask something of the system.

Invariant: what is left out is found by a rule, never listed. A file of tests is near the system if
it, or a helper beside the tests that it imports, imports one of `NEAR`. What fuzzes and what
measures is left out as well: it shows nothing that depends on the kernel.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

TESTS = Path(__file__).resolve().parent
NEAR = {
    "asyncio", "fcntl", "grp", "mmap", "os", "pty", "pwd", "resource", "select", "selectors",
    "shutil", "signal", "socket", "subprocess", "tempfile", "threading",
}  # fmt: skip
NOT_FOR_THE_KERNEL = ("bench", "fuzz")


@functools.cache
def _imported(path: Path) -> frozenset[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return frozenset(names)


def _helper(name: str, beside: Path) -> Path | None:
    for folder in (TESTS, beside):
        file = folder / (name.replace(".", "/") + ".py")
        if file.is_file():
            return file
    return None


def _reaches_the_system(path: Path, seen: set[Path]) -> bool:
    if path in seen:
        return False
    seen.add(path)
    for name in _imported(path):
        if name.partition(".")[0] in NEAR:
            return True
        helper = _helper(name, path.parent)
        if helper is not None and _reaches_the_system(helper, seen):
            return True
    return False


def is_near(path: Path) -> bool:
    """Whether this file of tests is one of them."""
    folder = path.resolve().relative_to(TESTS).parts[0]
    return folder not in NOT_FOR_THE_KERNEL and _reaches_the_system(path.resolve(), set())
