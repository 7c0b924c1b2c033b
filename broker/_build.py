"""How jitney is built: which modules are compiled, and what happens where none can be.

Invariant: a module is compiled if and only if it has a `.pxd` beside its source; there is no
other list. A `.pyx` goes before a `.py` of the same name (the `.py` is then the plain twin,
found at run time where no compiled one is). All modules are compiled or none: a machine
without a C compiler or Python's headers gets a pure build and a notice, never a mixture.

The shim for kdbus's programs (`kdbus/shim/`) is C and needs a compiler, not Python's headers: it is
there or not, whatever became of the modules.

    SKIP_CYTHON=1     pure build, nothing is tried
    REQUIRE_CYTHON=1  no compiler is an error

`pyproject.toml` names the two command classes; setuptools loads this file by its path, so it
stands alone and nothing of the project imports it.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("broker", "compat", "bench", "kdbus")
SKIP = os.environ.get("SKIP_CYTHON") == "1"
REQUIRE = os.environ.get("REQUIRE_CYTHON") == "1"
FLAGS = ["-O3", "-g0"]
SHIM = "jitney.kdbus.shim.libjitney-kdbus"
SHIM_FLAGS = ["-std=c11", "-O2", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"]
# Types come from the `.pxd` alone: annotations are for people and mypy. A module that wants
# fewer checks (bounds, C division) says so in its own first comment.
DIRECTIVES = {"language_level": "3", "annotation_typing": False}


def modules() -> dict[str, Path]:
    """Full name and source (relative to the project) of each module to be compiled."""
    found = {}
    for pxd in sorted(pxd for room in ROOMS for pxd in (ROOT / room).rglob("*.pxd")):
        name = ".".join(("jitney", *pxd.relative_to(ROOT).with_suffix("").parts))
        for source in (pxd.with_suffix(".pyx"), pxd.with_suffix(".py")):
            if source.exists():
                found[name] = source.relative_to(ROOT)
                break
    return found


def shim_sources() -> list[Path]:
    return sorted((ROOT / "kdbus" / "shim").glob("*.[ch]"))


def prune(build_lib: str, compiled: Collection[str]) -> None:
    """Drop from `build_lib` what an earlier build left there and this one will not make."""
    for path in Path(build_lib, "jitney").rglob("*.*"):
        where = path.relative_to(build_lib)
        if path.suffix == ".so":
            stale = ".".join((*where.parts[:-1], where.name.partition(".")[0])) not in compiled
        else:
            stale = path.is_file() and not ROOT.joinpath(*where.parts[1:]).exists()
        if stale:
            path.unlink()


class BuildExt(build_ext):
    """Translates with Cython and compiles, or steps aside."""

    extensions: list[Extension]
    parallel: int | None

    def finalize_options(self) -> None:
        self.distribution.ext_modules = [
            Extension(name, [str(source)], extra_compile_args=FLAGS)
            for name, source in ({} if SKIP else modules()).items()
        ]
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        prune(self.build_lib, [SHIM, *(ext.name for ext in self.extensions)])
        super().run()

    def get_source_files(self) -> list[str]:
        files: list[str] = super().get_source_files()
        return files + [str(path.relative_to(ROOT)) for path in shim_sources()]

    def build_extensions(self) -> None:
        self.build_shim()
        missing = self.missing()
        if not missing:
            self.translate()
            super().build_extensions()
        elif REQUIRE:
            raise CompileError(f"REQUIRE_CYTHON=1, but {missing}")
        else:
            print(f"jitney: building without compiled modules: {missing}", file=sys.stderr)
            self.extensions = []
            prune(self.build_lib, [SHIM])

    def build_shim(self) -> None:
        """The library that is preloaded, beside the package's modules."""
        target = Path(self.build_lib, *SHIM.split(".")).with_suffix(".so")
        target.parent.mkdir(parents=True, exist_ok=True)
        sources = shim_sources()
        if sys.platform != "linux" or sys.maxsize < 1 << 32 or sys.byteorder != "little":
            return
        changed = max(path.stat().st_mtime for path in sources)
        if target.exists() and target.stat().st_mtime > changed:
            return
        try:
            objects = self.compiler.compile(
                [str(path.relative_to(ROOT)) for path in sources if path.suffix == ".c"],
                output_dir=self.build_temp,
                extra_postargs=SHIM_FLAGS,
            )
            # By its file's name: dlsym() is there up to glibc 2.33, and what is linked with a newer
            # one is to run with those as well.
            ours = "musl" not in self.compiler.compiler_so[0]
            dl = ":libdl.so.2" if ours and platform.libc_ver()[0] == "glibc" else "dl"
            self.compiler.link_shared_object(
                objects, str(target), libraries=[dl], extra_preargs=["-Wl,--no-as-needed"]
            )
        except (BaseError, CompileError, LinkError, OSError) as error:
            if REQUIRE:
                raise
            print(f"jitney: building without `jitney preload`: {error}", file=sys.stderr)

    def missing(self) -> str:
        """What keeps this machine from compiling anything; "" if nothing does."""
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.c")
            probe.write_text(
                "#include <Python.h>\nint probe(void) { return Py_REFCNT(Py_None) > 0; }\n"
            )
            try:
                objects = self.compiler.compile([str(probe)], output_dir=folder)
                self.compiler.link_shared_object(objects, str(Path(folder, "probe.so")))
            except (BaseError, CompileError, LinkError, OSError):
                return "there is no C compiler, or no Python.h (Debian: gcc, python3-dev)"
        return ""

    def translate(self) -> None:
        """Turn the extensions' sources into C."""
        from Cython.Build import cythonize
        from Cython.Compiler.Errors import CompileError as CythonError

        # A tree in which the folders have their import names, for `.pxd` look-ups.
        names = Path(self.build_temp, "names")
        (names / "jitney").mkdir(parents=True, exist_ok=True)
        for room in ROOMS:
            link = names / "jitney" / room
            link.unlink(missing_ok=True)
            link.symlink_to(ROOT / room)
        try:
            in_c = cythonize(
                self.extensions,
                build_dir=str(Path(self.build_temp, "c")),
                include_path=[str(names)],
                nthreads=self.parallel,
                compiler_directives=DIRECTIVES,
                quiet=True,
            )
        except CythonError as error:
            raise CompileError(f"Cython refused {error}") from None
        sources = {ext.name: ext.sources for ext in in_c}
        for ext in self.extensions:
            ext.sources = sources[ext.name]


class BdistWheel(bdist_wheel):
    """Makes `py3-none-any` wheels of pure builds that were asked for."""

    def finalize_options(self) -> None:
        if SKIP:
            self.distribution.ext_modules = []
        super().finalize_options()

    def run(self) -> None:
        if SKIP:
            prune(self.get_finalized_command("build").build_lib, ())
        super().run()
