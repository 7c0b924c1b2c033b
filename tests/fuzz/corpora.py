"""Corpora: inputs to begin with, one packed file a target.

Invariant: what is packed is a list of inputs without order; packing twice gives the same file. Each
line is one input in base64, so that a change of one shows as a change of one line.

`python -m fuzz.corpora pack TARGET FOLDER` packs a folder of inputs, `unpack TARGET FOLDER` the
other way round.
"""

from __future__ import annotations

import binascii
import hashlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def read(name: str) -> list[bytes]:
    """The inputs of a target."""
    try:
        lines = (FOLDER / f"{name}.txt").read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [binascii.a2b_base64(line) for line in lines]


def pack(name: str, folder: Path) -> int:
    found = {path.read_bytes() for path in folder.iterdir() if path.is_file()}
    lines = sorted(
        (binascii.b2a_base64(data) for data in found), key=lambda line: (len(line), line)
    )
    (FOLDER / f"{name}.txt").write_bytes(b"".join(lines))
    return len(found)


def unpack(name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for data in [*read(name), *installed(name)]:
        (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)


DBUS = Path("/usr/lib/dbus-1.0/installed-tests/dbus/data")
_INSTALLED = {
    "message": ("*-messages/*.message-raw",),
    "classic2": ("*-messages/*.message-raw",),
    "busconfig": ("*-config-files*/**/*.conf",),
    "checkconfig": ("*-config-files*/**/*.conf",),
    "xml": ("*-config-files*/**/*.conf",),
    "service": ("**/*.service",),
}


def installed(name: str) -> list[bytes]:
    """Inputs that dbus has installed for its own tests, where they are."""
    paths = [path for pattern in _INSTALLED.get(name, ()) for path in DBUS.glob(pattern)]
    return [path.read_bytes() for path in sorted(paths) if path.stat().st_size <= 8192]


def main(words: list[str]) -> None:
    verb, name, folder = words
    if verb == "pack":
        print(f"{name}: {pack(name, Path(folder))} inputs")
    else:
        unpack(name, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
