"""Registry: the targets of fuzzing by name.

Invariant: a target takes any bytes and returns None; it raises only where jitney is wrong. The same
bytes do the same each time, so whatever an engine found can be shown again.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import NamedTuple


class Target(NamedTuple):
    """`run` is what is fed; `longest`: how many bytes make sense; `words` are for mutations;
    `short`: how many changed inputs the short run takes, a second's worth or so; `mend` makes sizes
    right that a mutation made wrong, since hardly any does so by itself."""

    name: str
    run: Callable[[bytes], None]
    longest: int
    words: tuple[bytes, ...]
    short: int
    mend: Callable[[bytes], bytes] | None


TARGETS: dict[str, Target] = {}


def target(
    name: str,
    longest: int = 4096,
    words: tuple[bytes, ...] = (),
    short: int = 2000,
    mend: Callable[[bytes], bytes] | None = None,
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Decorator: makes a function a target."""

    def register(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        assert name not in TARGETS
        TARGETS[name] = Target(name, run, longest, words, short, mend)
        return run

    return register


def dice(data: bytes) -> random.Random:
    """Random choices that the bytes decide."""
    return random.Random(zlib.crc32(data))


def pieces(data: bytes, chance: random.Random, most: int = 6) -> list[bytes]:
    """The bytes, cut at a few places."""
    cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.randint(0, most)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
