"""Plain twin: the sources of the core as plain Python, beside the compiled modules of this process.

Invariant: nothing of `jitney` is changed or loaded twice; the twin has package names of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any

_NAME = "jitney_plain"


class _Finder:
    """Finds `jitney_plain.broker.x` where `jitney.broker.x` is, but only sources."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if not name.startswith(_NAME + ".") or path is None:
            return None
        for folder in path:
            finder = FileFinder(folder, (SourceFileLoader, [".py"]))
            spec = finder.find_spec(name)
            if spec is not None:
                return spec
        return None


@cache
def module(name: str) -> ModuleType:
    """The twin of `jitney.broker.NAME`."""
    if _NAME not in sys.modules:
        broker = importlib.import_module("jitney.broker")
        root = ModuleType(_NAME)
        root.__path__ = []
        package = ModuleType(f"{_NAME}.broker")
        package.__path__ = list(broker.__path__)
        sys.modules[_NAME] = root
        sys.modules[f"{_NAME}.broker"] = package
        sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
    return importlib.import_module(f"{_NAME}.broker.{name}")
