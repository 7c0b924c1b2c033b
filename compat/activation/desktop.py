"""Parser of D-Bus service files, a subset of the desktop entry format.

Invariant: `parse()` either raises `DesktopFileError` or returns what dbus-daemon understands in
the same bytes, oddities included: the first group of a name and the first key in it win, a value
keeps its trailing blanks, and a file is UTF-8 from end to end or nothing at all.

Format: D-Bus specification, "Message Bus Starting Services (Activation)".
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass

MAX_SIZE = 128 * 1024
"""Bytes; a larger file is not read at all."""

SECTION = "D-BUS Service"

_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANK = re.compile(r"[ \t\r\f]*(?:\n|\Z)")
_GROUP = re.compile(r"[\x20-\x5a\x5c\x5e-\x7e]*")
_KEY = re.compile(r"[A-Za-z0-9-]+")
_ESCAPE = re.compile(r"\\(.?)", re.DOTALL)
_ESCAPES = {"s": " ", "t": "\t", "n": "\n", "r": "\r", "\\": "\\"}


class DesktopFileError(Exception):
    """The file is no service file; the text says why, and where in it."""


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """What a service file says.

    `name`: the well-known bus name it provides, as it goes over the wire; `exec`: a command line
    (see `shell`); `user`: whom the set-uid helper of a system bus shall start it as;
    `systemd_service`: the unit that provides the name; `apparmor_label`: the confinement that
    policy may assume before the process is there.
    """

    name: bytes
    exec: str
    user: str | None = None
    systemd_service: str | None = None
    apparmor_label: str | None = None


def parse(data: bytes) -> dict[str, dict[str, str]]:
    """The groups of a file: group name -> key -> value, escapes undone."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise DesktopFileError("invalid UTF-8") from None
    if "\0" in text:
        raise DesktopFileError("invalid UTF-8")  # as libdbus sees it
    groups: dict[str, dict[str, str]] = {}
    group: dict[str, str] | None = None
    where = ""
    number = 0
    pos = 0
    while pos < len(text):
        number += 1
        end = _LINE_END.search(text, pos)
        line = text[pos : end.start() if end else len(text)]
        if line.startswith("["):
            name = _group_name(line, f"Error {where}at line {number}: ")
            # A second group of the same name is read, for its errors, but never looked at.
            group = {}
            groups.setdefault(name, group)
            where = f"in section {name} "
        elif _BLANK.match(text, pos) or line.startswith("#"):
            pass
        elif group is None:
            raise DesktopFileError("invalid service file: key=value before [Section]")
        else:
            _key_value(line, group, f"Error {where}at line {number}: ")
        pos = end.end() if end else len(text)
    return groups


def _group_name(line: str, where: str) -> str:
    if len(line) <= 2 or not line.endswith("]"):
        raise DesktopFileError(where + "Invalid syntax for section header")
    name = line[1:-1]
    if not _GROUP.fullmatch(name):
        raise DesktopFileError(where + "Invalid characters in section name")
    return name


def _key_value(line: str, group: dict[str, str], where: str) -> None:
    key = _KEY.match(line)
    if key is None:
        raise DesktopFileError(where + "Empty key name")
    rest = line[key.end() :]
    if rest.startswith("["):
        return  # a translation; dbus-daemon does not look at the rest of such a line either
    rest = rest.lstrip(" ")
    if not rest:
        raise DesktopFileError(where + "No '=' in key/value pair")
    if not rest.startswith("="):
        raise DesktopFileError(where + "Invalid characters in key name")
    group.setdefault(key[0], _unescape(rest[1:].lstrip(" "), where))


def _unescape(value: str, where: str) -> str:
    def undo(escape: re.Match[str]) -> str:
        if not escape[1]:
            raise DesktopFileError(where + "Text to be unescaped ended in \\")
        if escape[1] not in _ESCAPES:
            raise DesktopFileError(where + "Text to be unescaped had invalid escape sequence")
        return _ESCAPES[escape[1]]

    return _ESCAPE.sub(undo, value)


def service_file(data: bytes) -> ServiceFile:
    """The service that a file's bytes describe; DesktopFileError without Name= or Exec=."""
    group = parse(data).get(SECTION, {})
    for key in ("Name", "Exec"):
        if key not in group:
            raise DesktopFileError(f'No "{key}" key in .service file')
    return ServiceFile(
        name=group["Name"].encode(),
        exec=group["Exec"],
        user=group.get("User"),
        systemd_service=group.get("SystemdService"),
        apparmor_label=group.get("AssumedAppArmorLabel"),
    )


def load(path: str) -> ServiceFile:
    """Reads a service file. OSError where that fails, DesktopFileError for what is in it."""
    # Without O_NONBLOCK a FIFO of that name would stop the whole bus.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DesktopFileError(f'"{path}" is not a regular file')
        size = os.fstat(fd).st_size
        if size > MAX_SIZE:
            raise DesktopFileError(f"Desktop file size ({size} bytes) is too large")
        data = os.read(fd, MAX_SIZE)
    finally:
        os.close(fd)
    return service_file(data)
