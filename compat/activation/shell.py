"""Splits the command line of a service file into arguments, without a shell.

Invariant: for any string `split()` returns at least one argument or raises DBusError; no variable,
glob, tilde or operator ever means anything.

The rules are libdbus's reading of the shell's: blanks end an argument, a line end does so even
where there is none (which then is empty), `#` begins a comment wherever it stands, and a single
quote, a double quote and a backslash quote as they do in /bin/sh.
"""

from __future__ import annotations

from ..errors import INVALID_ARGS, DBusError

_IN_DOUBLE_QUOTES = '"\\`$\n'
"""What a backslash escapes between double quotes; before anything else it stands for itself."""


def _unclosed() -> DBusError:
    return DBusError(INVALID_ARGS, "Unclosed quotes in command line")


def split(command: str) -> list[str]:
    """The arguments of `command`, the program first.

    Raises DBusError(InvalidArgs) where a quote, an escape or the last line's comment does not end.
    """
    arguments: list[str] = []
    word = ""
    begun = False  # distinguishes '' from no argument at all
    pos = 0
    end = len(command)
    while pos < end:
        letter = command[pos]
        pos += 1
        if letter == "\\":
            if pos == end:
                raise _unclosed()
            # Outside of quotes a backslash removes a line end and protects anything else.
            if command[pos] != "\n":
                word += command[pos]
                begun = True
            pos += 1
        elif letter == "'":
            close = command.find("'", pos)
            if close < 0:
                raise _unclosed()
            word += command[pos:close]
            begun = True
            pos = close + 1
        elif letter == '"':
            text, pos = _double_quoted(command, pos)
            word += text
            begun = True
        elif letter == "#":
            # Even in the middle of a word; the line end goes with the comment. As in libdbus, a
            # "#" as the very last character counts as something unfinished.
            if pos == end:
                raise _unclosed()
            close = command.find("\n", pos)
            pos = end if close < 0 else close + 1
        elif letter in " \t":
            if begun:
                arguments.append(word)
            word = ""
            begun = False
        elif letter == "\n":
            arguments.append(word)
            word = ""
            begun = False
        else:
            word += letter
            begun = True
    # Whatever stands after the last blank is an argument, even if it is nothing.
    arguments.append(word)
    return arguments


def _double_quoted(command: str, pos: int) -> tuple[str, int]:
    """The text between a double quote before `pos` and its partner, and where that one ends."""
    text = ""
    while pos < len(command):
        letter = command[pos]
        if letter == '"':
            return text, pos + 1
        if letter == "\\" and command[pos + 1 : pos + 2] in _IN_DOUBLE_QUOTES:
            pos += 1
            letter = command[pos : pos + 1]
        text += letter
        pos += 1
    raise _unclosed()
