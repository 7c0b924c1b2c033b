"""Numbers as C's strtol() and strtoul() read them, with base 0: dbus-daemon's notion of a number.

Invariant: a text is a number here exactly where it is one for dbus-daemon on a 64-bit machine:
white space and a sign may lead, 0x means hexadecimal and a leading 0 octal.
"""

from __future__ import annotations

import re

LONG_MAX = 2**63 - 1
ULONG_MAX = 2**64 - 1

_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)", re.ASCII)


def _scan(text: str) -> tuple[int, int]:
    """Value and end of the number that `text` starts with; (0, 0) if it does not."""
    found = _NUMBER.match(text)
    if found is None:
        return 0, 0
    sign, digits = found.groups()
    end = found.end()
    if digits[:2] in ("0x", "0X"):
        value = int(digits, 16)
    elif digits[0] == "0":
        octal = re.match("[0-7]+", digits)
        assert octal is not None
        end -= len(digits) - octal.end()
        value = int(octal.group(), 8)
    else:
        # Python refuses thousands of digits with an exception of its own.
        value = int(digits) if len(digits) <= 20 else ULONG_MAX + 1
    return (-value if sign == "-" else value), end


def leading_int(text: str) -> tuple[int, str] | None:
    """The integer that `text` starts with and what follows it; None if there is none or it does
    not fit. dbus-daemon never looks at what follows."""
    value, end = _scan(text)
    if not end or not -LONG_MAX - 1 <= value <= LONG_MAX:
        return None
    return value, text[end:]


def whole_id(text: str) -> int | None:
    """The number that all of `text` is, or None: a uid or gid given instead of a name."""
    value, end = _scan(text)
    if not end or end != len(text) or not 0 <= value < ULONG_MAX:
        return None
    return value
