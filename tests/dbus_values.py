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


def _types(depth: int) -> st.SearchStrategy[str]:
    basic = st.sampled_from(_BASIC)
    if not depth:
        return basic
    inner = _types(depth - 1)
    return st.one_of(
        basic,
        st.sampled_from(["s", "v", "as", "ay", "a{sv}"]),
        inner.map(lambda item: "a" + item),
        st.lists(inner, min_size=1, max_size=4).map(lambda parts: "(" + "".join(parts) + ")"),
        st.tuples(basic, inner).map(lambda pair: "a{" + "".join(pair) + "}"),
    )


single_types = _types(3)
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


# ---- whole messages

elements = st.text("abcXYZ_", min_size=1, max_size=5)
dotted = st.lists(elements, min_size=2, max_size=4).map(".".join)
unique = st.integers(1, (1 << 63)).map(lambda number: f":1.{number}")


@st.composite
def messages(draw: st.DrawFn, types: tuple[int, ...] = (1, 2, 3, 4)) -> dict[str, Any]:
    """Arguments for `jitney.compat.wire.message()`, with `values` for the body."""
    kind = draw(st.sampled_from(types))
    signature, values = draw(bodies)
    call = kind in (1, 4)
    optional = st.none() | dotted
    return {
        "type": kind,
        "serial": draw(st.integers(1, 0xFFFFFFFF)),
        "flags": draw(st.integers(0, 7)) | (0 if kind == 1 else 1),
        "path": draw(paths) if call else None,
        "interface": draw(dotted if kind == 4 else optional) if call else None,
        "member": draw(elements) if call else None,
        "error_name": draw(dotted) if kind == 3 else None,
        "reply_serial": 0 if call else draw(st.integers(1, 0xFFFFFFFF)),
        "destination": draw(st.none() | dotted | unique),
        "sender": None,
        "n_fds": draw(st.integers(0, 3)),
        "signature": signature,
        "values": values,
    }
