"""The one way in which reading a configuration fails.

Invariant: `text` is dbus-daemon's own wording wherever dbus-daemon has one, so that whoever greps
logs for it finds it; where the fault lies is in `file` and `line`.
"""

from __future__ import annotations


class ConfigError(Exception):
    """A configuration that is refused. `line` is 0 where the fault is not in a line of `file`.

    `missing`: a file that was to be read does not exist, which `ignore_missing` forgives."""

    def __init__(self, file: str, line: int, text: str, *, missing: bool = False) -> None:
        super().__init__(file, line, text)
        self.file = file
        self.line = line
        self.text = text
        self.missing = missing

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"
