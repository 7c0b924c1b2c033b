# cython: infer_types=True
"""Syntax: which strings may be names, paths, members and signatures.

Invariant: a string that was accepted here needs no second look anywhere else on the bus.
Rules are those of the D-Bus specification, sections "Valid Object Paths", "Valid Names"
and "Valid Signatures"; each checker takes (bytes, offset, length) and allocates nothing.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from ._cython import cython

if not cython.compiled:
    from .mem import of_bytes

MAX_NAME = 255
MAX_SIGNATURE = 255
MAX_NESTING = 32

_WORD, _DIGIT, _DASH, _BASIC, _FIXED = 1, 2, 4, 8, 16


def _char_table() -> bytes:
    table = bytearray(256)
    for c in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_":
        table[c] |= _WORD
    for c in b"0123456789":
        table[c] |= _DIGIT
    table[ord("-")] |= _DASH
    for c in b"ybnqiuxtdsogh":
        table[c] |= _BASIC
    return bytes(table)


# Bit 1: letter or underscore, 2: digit, 4: dash, 8: code of a basic type.
_TABLE = _char_table()
CHARS = of_bytes(_TABLE)


def path_ok(p, off: int, n: int) -> bool:
    """Object path: "/" or "/"-led, non-empty elements of [A-Za-z0-9_], no trailing slash."""
    i = off + 1
    end = off + n
    start = i
    if n == 0 or p[off] != 47:
        return False
    if n == 1:
        return True
    while i < end:
        c = p[i]
        if c == 47:
            if i == start:
                return False
            start = i + 1
        elif not (CHARS[c] & 3):
            return False
        i += 1
    return start != end


def member_ok(p, off: int, n: int) -> bool:
    """Member: [A-Za-z_][A-Za-z0-9_]*, at most 255 bytes."""
    i = off + 1
    end = off + n
    if n == 0 or n > 255 or not (CHARS[p[off]] & 1):
        return False
    while i < end:
        if not (CHARS[p[i]] & 3):
            return False
        i += 1
    return True


def interface_ok(p, off: int, n: int) -> bool:
    """Interface (and error) name: two or more elements, none starting with a digit."""
    i = off
    end = off + n
    dots = 0
    start = True
    if n == 0 or n > 255:
        return False
    while i < end:
        c = p[i]
        if start:
            if not (CHARS[c] & 1):
                return False
            start = False
        elif c == 46:
            dots += 1
            start = True
        elif not (CHARS[c] & 3):
            return False
        i += 1
    return dots > 0 and not start


def bus_name_ok(p, off: int, n: int) -> bool:
    """Bus name: well-known (elements start with no digit, dashes allowed) or unique (":"-led)."""
    if n == 0 or n > 255:
        return False
    if p[off] == 58:
        # ":", ":x" and ":.x" are accepted, as libdbus accepts them.
        if n > 2 and p[off + 1] == 46:
            return _elements_ok(p, off + 2, n - 2, 7, 1)
        return n == 1 or _elements_ok(p, off + 1, n - 1, 7, 1)
    return _elements_ok(p, off, n, 5, 2)


def namespace_ok(p, off: int, n: int) -> bool:
    """Bus name or a single element of one, as arg0namespace takes it."""
    if n == 0 or n > 255:
        return False
    if p[off] == 58:
        return bus_name_ok(p, off, n)
    return _elements_ok(p, off, n, 5, 1)


def _elements_ok(p, off: int, n: int, first: int, least: int) -> bool:
    # `first`: character classes an element may start with; `least`: how many elements at least.
    i = off
    end = off + n
    count = 1
    start = True
    if n == 0:
        return False
    while i < end:
        c = p[i]
        if start:
            if not (CHARS[c] & first):
                return False
            start = False
        elif c == 46:
            count += 1
            start = True
        elif not (CHARS[c] & 7):
            return False
        i += 1
    return count >= least and not start


def signature_ok(p, off: int, n: int) -> bool:
    """Signature: zero or more complete types, nesting at most 32 arrays and 32 structs deep."""
    pos = off
    end = off + n
    if n > 255:
        return False
    while pos < end:
        pos = type_end(p, pos, end, 0, 0)
        if pos < 0:
            return False
    return True


def single_type_ok(p, off: int, n: int) -> bool:
    """Signature of exactly one complete type, as a variant has it."""
    if n == 0 or n > 255:
        return False
    return type_end(p, off, off + n, 0, 0) == off + n


def type_end(p, pos: int, end: int, arrays: int, structs: int) -> int:
    """Where the complete type that starts at `pos` ends; -1 if it is none."""
    if pos >= end:
        return -1
    c = p[pos]
    if CHARS[c] & 8 or c == 118:
        return pos + 1
    if c == 97:
        if arrays >= 32:
            return -1
        if pos + 1 < end and p[pos + 1] == 123:
            if structs >= 32:
                return -1
            if pos + 2 >= end or not (CHARS[p[pos + 2]] & 8):
                return -1
            pos = type_end(p, pos + 3, end, arrays + 1, structs + 1)
            if pos < 0 or pos >= end or p[pos] != 125:
                return -1
            return pos + 1
        return type_end(p, pos + 1, end, arrays + 1, structs)
    if c == 40:
        if structs >= 32:
            return -1
        pos += 1
        if pos < end and p[pos] == 41:
            return -1
        while True:
            pos = type_end(p, pos, end, arrays, structs + 1)
            if pos < 0 or pos >= end:
                return -1
            if p[pos] == 41:
                return pos + 1
    return -1


# What Python callers (driver, configuration, match rules) use.


def is_path(text: bytes) -> bool:
    return path_ok(of_bytes(text), 0, len(text))


def is_member(text: bytes) -> bool:
    return member_ok(of_bytes(text), 0, len(text))


def is_interface(text: bytes) -> bool:
    return interface_ok(of_bytes(text), 0, len(text))


def is_bus_name(text: bytes) -> bool:
    return bus_name_ok(of_bytes(text), 0, len(text))


def is_namespace(text: bytes) -> bool:
    return namespace_ok(of_bytes(text), 0, len(text))


def is_signature(text: bytes) -> bool:
    return signature_ok(of_bytes(text), 0, len(text))
