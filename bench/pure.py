"""The installed daemon as plain Python, although its compiled modules lie beside the sources.

    python -m jitney.bench.pure OPTIONS OF THE DAEMON

Invariant: below `jitney` no module but a `.py` is found in this process; the daemon does not
start if one was. Cython's own package is kept out as well: the tree's stand-in for it is what
runs where it is not installed, and faster.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType


class Sources:
    """Finds modules below `jitney`, as sources."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("jitney.") or path is None:
            return None
        for folder in path:
            spec = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(fullname)
            if spec is not None:
                # A folder without `__init__.py` is for the usual finder, which joins them.
                return spec if spec.loader is not None else None
        raise ModuleNotFoundError(f"there is no source of {fullname}", name=fullname)


def main() -> None:
    """Runs the daemon; does not return."""
    if "jitney.broker" in sys.modules:
        raise SystemExit("pure: the core was loaded before we could choose its sources")
    sys.modules["cython"] = None  # type: ignore[assignment]
    sys.meta_path.insert(0, Sources)
    from jitney.broker import mem
    from jitney.compat import cli, sysio

    if mem.COMPILED or sysio.COMPILED:
        raise SystemExit("pure: compiled modules were loaded all the same")
    cli.main_entry()


if __name__ == "__main__":
    main()
