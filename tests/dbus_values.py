"""Signatures and values of D-Bus for property tests.

Invariant: what these strategies make is valid, so whoever refuses it is wrong.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

_INTEGERS = {
    "y": (0, 0xFF), "n": (-0x8000, 0x7FFF), "q": (0, 0xFFFF), "i": (-(1 << 31), (1 << 31) - 1),
    "u": (0, 0xFFFFFFFF), "x": (-(1 << 63), (1 << 63) - 1), "t": (0, (1 << 64) - 1), "h": (0, 15),
}  # fmt: skip
_BASIC = "ybnqiuxtdhsog"

words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
paths = st.lists(st.text("abcXYZ_09", min_size=1, max_size=6), max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)


def _containers(types: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        types.map(lambda item: "a" + item),
        st.lists(types, min_size=1, max_size=4).map(lambda parts: "(" + "".join(parts) + ")"),
        st.tuples(st.sampled_from(_BASIC), types).map(lambda pair: "a{" + "".join(pair) + "}"),
    )


single_types = st.recursive(st.sampled_from(_BASIC + "v"), _containers, max_leaves=6)
signatures = st.lists(single_types, max_size=4).map("".join)


def _parts(text: str) -> list[str]:
    parts = []
    depth = start = 0
    for pos, code in enumerate(text):
        depth += (code in "({") - (code in ")}")
        if not depth and code != "a":
            parts.append(text[start : pos + 1])
            start = pos + 1
    return parts


def value_of(type_: str, depth: int = 0) -> st.SearchStrategy[Any]:
    """A value of one complete type, as jitney.compat.wire takes it."""
    code = type_[0]
    if code in _INTEGERS:
        return st.integers(*_INTEGERS[code])
    if code == "b":
        return st.booleans()
    if code == "d":
        return st.floats(allow_nan=False)
    if code == "s":
        return words
    if code == "o":
        return paths
    if code == "g":
        return signatures
    if code == "v":
        inner = single_types if depth < 3 else st.sampled_from(_BASIC)
        return inner.flatmap(lambda text: st.tuples(st.just(text), value_of(text, depth + 1)))
    if type_ == "ay":
        return st.binary(max_size=300)
    if type_[:2] == "a{":
        key, item = _parts(type_[2:-1])
        return st.dictionaries(value_of(key, depth), value_of(item, depth), max_size=4)
    if code == "a":
        return st.lists(value_of(type_[1:], depth), max_size=5)
    return st.tuples(*[value_of(part, depth) for part in _parts(type_[1:-1])])


def values_of(signature: str) -> st.SearchStrategy[list[Any]]:
    """The values of a body."""
    return st.tuples(*[value_of(part) for part in _parts(signature)]).map(list)


bodies = signatures.flatmap(lambda text: st.tuples(st.just(text), values_of(text)))
"""A signature, and values for it."""
