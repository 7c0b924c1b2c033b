"""The rooms of the house: what may import what, and how a file must begin.

Invariant: these hold for every source file, found by looking, not by a list.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import re
import sys
import tomllib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bench", "broker", "client", "compat", "kdbus", "testing")
# The load of a benchmark is compiled or not there.
RUNS_PLAIN = ("broker", "client", "compat", "kdbus")
JITNEY_COMPILED = importlib.import_module("jitney.broker.mem").COMPILED
MAX_LINES = 600

# The core is driven by calls alone: it has no business with any of these.
NOT_FOR_THE_CORE = {
    "asyncio", "configparser", "grp", "logging", "pathlib", "pwd", "pydantic", "select",
    "selectors", "shlex", "signal", "socket", "subprocess", "uvloop", "xml",
}  # fmt: skip
ENVIRONMENT = re.compile(r"\bos\.(environ|getenv)")
# Runs when jitney is built, not when it is used.
BUILD = ROOT / "broker" / "_build.py"

# Declares more than C, and what the compiler puts in place: it is a module's.
MODULE = re.compile(r"^(cdef class|cpdef|cdef (?!extern|enum|struct|union|inline))", re.MULTILINE)

IMPORT = re.compile(r"^\s*(?:from\s+(\.*[\w.]*)\s+c?import|c?import\s+([\w.]+))", re.MULTILINE)


def sources(*folders: str, suffixes: tuple[str, ...] = (".py", ".pyx")) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and "__pycache__" not in path.parts
    )


def imported(path: Path) -> set[str]:
    """Names of the modules that `path` imports, as it writes them (relative ones with dots)."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return {of or plain for of, plain in IMPORT.findall(text)}
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
            if not (node.module or "").strip("."):
                names.update("." * node.level + alias.name for alias in node.names)
            elif node.module == "jitney":
                names.update("jitney." + alias.name for alias in node.names)
    return names


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def declarations() -> list[Path]:
    """Those of modules; others are of C, for modules to share."""
    return [
        pxd
        for pxd in sources(*RUNS_PLAIN, suffixes=(".pxd",))
        if pxd.with_suffix(".pyx").exists()
        or pxd.with_suffix(".py").exists()
        or MODULE.search(pxd.read_text(encoding="utf-8"))
    ]


every_source = pytest.mark.parametrize("path", sources(*ROOMS), ids=short)


def test_core_knows_no_compat() -> None:
    for path in sources("broker", suffixes=(".py", ".pyx", ".pxd")):
        for name in imported(path):
            assert not name.startswith(("jitney.compat", "jitney.kdbus", "..")), (
                f"{short(path)} imports {name}"
            )


def test_client_knows_no_bus() -> None:
    tables = {"jitney.broker.kdbus", "jitney.kdbus", "jitney.kdbus.uapi"}
    for path in sources("client"):
        for name in imported(path):
            root = name.partition(".")[0]
            assert name.startswith(".") or root in sys.stdlib_module_names or name in tables, (
                f"{short(path)} imports {name}"
            )


def test_core_knows_no_world() -> None:
    for path in sources("broker"):
        if path != BUILD:
            roots = {name.partition(".")[0] for name in imported(path)}
            assert not roots & NOT_FOR_THE_CORE, short(path)
            assert not ENVIRONMENT.search(path.read_text(encoding="utf-8")), short(path)


def test_folders_are_no_import_names() -> None:
    for path in sources(*ROOMS, "tests", "docs", suffixes=(".py", ".pyx", ".pxd")):
        for name in imported(path):
            assert name.partition(".")[0] not in ROOMS, f"{short(path)} imports {name}"


def test_folders_were_not_imported() -> None:
    for room in ROOMS:
        package = importlib.import_module(f"jitney.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"jitney.{room}."):
            if ".clients." in module.name or module.name.endswith((".__main__", BUILD.stem)):
                continue
            try:
                importlib.import_module(module.name)
            except ImportError as error:
                # What drives the load needs it compiled.
                if JITNEY_COMPILED or not str(error.name).startswith("jitney.bench"):
                    raise
    assert not sys.modules.keys() & set(ROOMS)


@every_source
def test_begins_with_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        docstring = ast.get_docstring(ast.parse(text)) or ""
    else:
        found = re.match(r'(?:#.*\n|\s*\n)*"""(.*?)"""', text, re.DOTALL)
        docstring = found.group(1) if found else ""
    assert len(docstring) > 20, f"{short(path)} has no head docstring"


@every_source
def test_stays_readable(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{short(path)} has {lines} lines: make two files of it"


def test_all_packages_are_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent for path in sources(*ROOMS, suffixes=(".py",))}
    packages = {"jitney." + short(folder).replace("/", ".") for folder in folders}
    assert packages == set(project["tool"]["setuptools"]["packages"])


def test_declarations_have_a_source() -> None:
    for pxd in declarations():
        assert pxd.with_suffix(".py").exists(), f"{short(pxd)} has no plain Python to fall back on"


def test_compiled_all_or_none() -> None:
    names = {"jitney." + short(pxd.with_suffix("")).replace("/", ".") for pxd in declarations()}
    kinds = {}
    for name in names:
        spec = importlib.util.find_spec(name)
        assert spec is not None, f"{name} is not installed"
        kinds[name] = (spec.origin or "").endswith(tuple(EXTENSION_SUFFIXES))
    assert len(set(kinds.values())) == 1, f"some are compiled, some are not: {kinds}"


def test_stand_in_for_cython_is_complete() -> None:
    fakes = [importlib.import_module("jitney.broker._cython").cython]
    if importlib.util.find_spec("Cython"):
        fakes.append(importlib.import_module("Cython.Shadow"))
    for path in sources(*ROOMS, suffixes=(".py",)):
        used = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "cython"
        }
        for fake in fakes:
            missing = {name for name in used if not hasattr(fake, name)}
            assert not missing, f"{short(path)} uses {missing}"
