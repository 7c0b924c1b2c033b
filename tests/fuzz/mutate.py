"""Mutate: changed inputs for the short run, by a seed and by nothing else.

Invariant: the same inputs, words and seed give the same changed inputs, on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_NUMBERS = [
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    63,
    64,
    127,
    128,
    255,
    256,
    65535,
    1 << 26,
    1 << 27,
    (1 << 31) - 1,
]
_NUMBERS += [1 << 31, (1 << 32) - 1]


def mutated(
    inputs: Sequence[bytes], words: Sequence[bytes], longest: int, seed: int
) -> Iterator[bytes]:
    """Without end: one of the inputs with one to four changes."""
    chance = random.Random(seed)
    inputs = inputs or [b"\0" * 16]
    while True:
        data = bytearray(chance.choice(inputs))
        for _ in range(chance.choice((1, 1, 2, 3, 4))):
            _change(data, chance, inputs, words)
        yield bytes(data[:longest])


def _change(
    data: bytearray, chance: random.Random, inputs: Sequence[bytes], words: Sequence[bytes]
) -> None:
    kind = chance.randrange(8 if words else 7)
    at = chance.randrange(len(data) + 1)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = chance.randrange(256)
    elif kind == 2:
        width = chance.choice((1, 2, 4, 4, 8))
        number = chance.choice(_NUMBERS) & ((1 << 8 * width) - 1)
        data[at : at + width] = number.to_bytes(width, chance.choice(("little", "big")))
    elif kind == 3:
        del data[at : at + chance.choice((1, 2, 4, 8, 64))]
    elif kind == 4:
        data[at:at] = bytes([chance.randrange(256)] * chance.choice((1, 2, 4, 8, 32)))
    elif kind == 5:
        start = chance.randrange(len(data) + 1)
        data[at:at] = data[start : start + chance.choice((4, 16, 64))]
    elif kind == 6:
        other = chance.choice(inputs)
        start = chance.randrange(len(other) + 1)
        data[at:] = other[start:]
    elif words:
        data[at : at + chance.choice((0, 0, 4))] = chance.choice(words)
