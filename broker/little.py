"""Little: little-endian stores - the plain Python twin of `little.pxd`.

Invariant: same names, same meaning as the compiled functions.
"""

from __future__ import annotations


def put32(p: bytearray, off: int, value: int) -> None:
    p[off : off + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")


def put_copy(p: bytearray, off: int, src: bytes | bytearray, at: int, n: int) -> None:
    p[off : off + n] = src[at : at + n]
