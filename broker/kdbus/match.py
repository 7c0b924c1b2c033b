"""Matches: which broadcasts a connection wants to hear.

Invariant: a connection hears a message if all rules of at least one of its sets fit. A set is
known by a cookie; several may have the same one, and go together. Rules about notifications
never fit a message of a connection, nor the other way round; a set without rules fits all.
"""

from __future__ import annotations

import errno
from typing import Any

from . import constants as c
from .errors import KdbusError

NOTIFICATIONS = frozenset(
    (c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE, c.ITEM_ID_ADD, c.ITEM_ID_REMOVE)
)


class Rule:
    """One condition. What `kind` needs is set: `masks` (one a generation), `name`, `old`, `new`."""

    def __init__(
        self,
        kind: int,
        name: bytes | None = None,
        old: int = c.MATCH_ANY,
        new: int = c.MATCH_ANY,
        masks: tuple[int, ...] = (),
    ) -> None:
        self.kind = kind
        self.name = name
        self.old = old
        self.new = new
        self.masks = masks

    def fits_message(self, message: Any) -> bool:
        kind = self.kind
        if kind == c.ITEM_BLOOM_MASK:
            bloom = message.bloom
            if bloom is None:
                return False
            generation, bits = bloom
            mask = self.masks[min(generation, len(self.masks) - 1)]
            return bits & mask == mask
        if kind == c.ITEM_ID:
            return self.new in (c.MATCH_ANY, message.src_id)
        if kind == c.ITEM_DST_ID:
            return self.new in (c.MATCH_ANY, message.dst_id)
        if kind == c.ITEM_NAME:
            return self.name in message.source.owned
        return False

    def fits_notice(self, notice: Any) -> bool:
        return (
            self.kind == notice.kind
            and self.old in (c.MATCH_ANY, notice.old_id)
            and self.new in (c.MATCH_ANY, notice.new_id)
            and (self.name is None or self.name == notice.name)
        )


class Matches:
    """All match sets of one connection, in the order in which they came."""

    def __init__(self) -> None:
        self.sets: list[tuple[int, list[Rule]]] = []

    def add(self, cookie: int, rules: list[Rule], replace: bool) -> None:
        if replace:
            self.sets = [entry for entry in self.sets if entry[0] != cookie]
        if len(self.sets) >= c.MATCHES_MAX:
            raise KdbusError(errno.EMFILE)
        self.sets.append((cookie, rules))

    def remove(self, cookie: int) -> None:
        left = [entry for entry in self.sets if entry[0] != cookie]
        if len(left) == len(self.sets):
            raise KdbusError(errno.EBADSLT)
        self.sets = left

    def want(self, message: Any) -> bool:
        """Whether a set fits this message of a connection."""
        for _, rules in self.sets:
            if all(rule.fits_message(message) for rule in rules):
                return True
        return False

    def want_notice(self, notice: Any) -> bool:
        for _, rules in self.sets:
            if all(rule.fits_notice(notice) for rule in rules):
                return True
        return False


def bloom_masks(data: bytes, size: int) -> tuple[int, ...]:
    """A mask's generations as numbers; EDOM where they are not of the bus's size."""
    if len(data) < size or len(data) % size:
        raise KdbusError(errno.EDOM)
    return tuple(int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size))
