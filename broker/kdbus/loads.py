"""Loads: little-endian numbers in a buffer - the plain Python twin of `loads.pxd`.

Invariant: same names, same meaning as the compiled functions.
"""

from __future__ import annotations


def get64(data: bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def get32(data: bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def set64(data: bytearray, at: int, value: int) -> None:
    data[at : at + 8] = value.to_bytes(8, "little")


def set32(data: bytearray, at: int, value: int) -> None:
    data[at : at + 4] = value.to_bytes(4, "little")
