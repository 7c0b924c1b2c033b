"""What a compiled file asks of C libraries, as objdump tells.

Invariant: this is read from the file alone; nothing is loaded.

`python tests/anywhere/elf.py FOLDER` says whether musl has all that the files in there ask for.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

OLDEST = (2, 17)
"""The C library of manylinux2014; that of Linux 3.10's time is no newer."""

MUSL = sorted(Path("/").glob("usr/lib/*-linux-musl*/libc.so")) + sorted(
    Path("/").glob("lib/*-linux-musl*/libc.so")
)

_PYTHONS = re.compile(r"_?Py")
# The compiler's runtime, and what a linker puts there itself.
_NOBODYS = {"__cxa_finalize", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable",
            "__gmon_start__"}  # fmt: skip


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


def too_new(file: Path) -> list[str]:
    """What it wants of glibc and what OLDEST has not."""
    return [
        f"{name}@{version}"
        for name, version in symbols(file, defined=False).items()
        if version and tuple(map(int, version.removeprefix("GLIBC_").split(".")))[:2] > OLDEST
    ]


def not_in(file: Path, has: set[str]) -> list[str]:
    """What it wants and neither Python nor a C library with these symbols has."""
    wants = {name for name in symbols(file, defined=False) if not _PYTHONS.match(name)}
    # glibc's checked variants are made by its headers, not by our code.
    wants = {re.sub(r"^__(\w+)_chk$", r"\1", name) for name in wants}
    return sorted(wants - _NOBODYS - has)


def main(folder: Path) -> str:
    """What is wrong with the compiled files in there; "" if nothing is."""
    if not MUSL:
        return "there is no musl to compare with"
    has = set(symbols(MUSL[0], defined=True))
    files = sorted(folder.rglob("*.so"))
    for file in files:
        if missing := not_in(file, has):
            return f"musl has no {', '.join(missing)} for {file}"
        if any(symbols(file, defined=False).values()):
            return f"{file} was built with glibc"
    print(f"{folder}: {len(files)} compiled files, musl's all of them")
    return "" if files else f"nothing is compiled in {folder}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])) or None)
