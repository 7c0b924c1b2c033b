"""GLib.Variant as a second opinion on GVariant, in a process of the system's Python.

Invariant: GLib sees only what it is given as text and bytes; nothing of jitney is imported there.

The tests' own environment need not have gi, so it is asked through a pipe, one line a question.
"""

from __future__ import annotations

import base64
import pickle
import subprocess
import sys
from typing import Any

PYTHON = "/usr/bin/python3"


class GLibVariants:
    """The process, and what can be asked of it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [PYTHON, "-I", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.usable = self._ask("hello") == "hello"

    def _ask(self, *question: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(base64.b64encode(pickle.dumps(question)) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self.process.stdout.readline()
        return pickle.loads(base64.b64decode(line)) if line else None

    def pack(self, signature: str, values: list[Any]) -> tuple[bytes, bytes]:
        """A struct of these values, in little-endian and in big-endian."""
        little, big = self._ask("pack", signature, values)
        return little, big

    def normal(self, type_: str, data: bytes) -> bool:
        """Whether GLib takes this for the one right form of a value of this type."""
        return bool(self._ask("normal", type_, data))

    def close(self) -> None:
        self.process.communicate()


# ---- what runs in that process


def _serve() -> None:
    import gi

    gi.require_version("GLib", "2.0")
    from gi.repository import GLib

    basic = {
        "y": "byte", "b": "boolean", "n": "int16", "q": "uint16", "i": "int32", "u": "uint32",
        "x": "int64", "t": "uint64", "d": "double", "h": "handle", "s": "string",
        "o": "object_path", "g": "signature",
    }  # fmt: skip

    def end_of(text: str, pos: int) -> int:
        if text[pos] == "a":
            return end_of(text, pos + 1)
        depth = 0
        while True:
            depth += (text[pos] in "({") - (text[pos] in ")}")
            pos += 1
            if not depth:
                return pos

    def split(text: str) -> list[str]:
        parts = []
        pos = 0
        while pos < len(text):
            end = end_of(text, pos)
            parts.append(text[pos:end])
            pos = end
        return parts

    def make(type_: str, value: Any) -> Any:
        if type_ in basic:
            return getattr(GLib.Variant, "new_" + basic[type_])(value)
        if type_ == "v":
            return GLib.Variant.new_variant(make(*value))
        builder = GLib.VariantBuilder.new(GLib.VariantType.new(type_))
        if type_[0] == "a":
            item = type_[1:]
            entries = value.items() if isinstance(value, dict) else value
            for entry in entries:
                builder.add_value(make(item, entry))
        else:
            for part, item in zip(split(type_[1:-1]), value, strict=True):
                builder.add_value(make(part, item))
        return builder.end()

    def rebuilt(variant: Any) -> Any:
        type_ = variant.get_type_string()
        if type_ in basic:
            return make(type_, variant.unpack())
        if type_ == "v":
            return GLib.Variant.new_variant(rebuilt(variant.get_variant()))
        builder = GLib.VariantBuilder.new(variant.get_type())
        for number in range(variant.n_children()):
            builder.add_value(rebuilt(variant.get_child_value(number)))
        return builder.end()

    def order(variant: Any) -> tuple[bytes, bytes]:
        one = variant.get_data_as_bytes().get_data() or b""
        other = variant.byteswap().get_data_as_bytes().get_data() or b""
        return (one, other) if sys.byteorder == "little" else (other, one)

    for line in sys.stdin.buffer:
        what, *rest = pickle.loads(base64.b64decode(line))
        answer: Any
        if what == "hello":
            answer = "hello"
        elif what == "pack":
            answer = order(make("(" + rest[0] + ")", rest[1]))
        else:
            # GLib takes no bytes at all for any struct: there, what it would write itself decides.
            type_ = GLib.VariantType.new(rest[0])
            variant = GLib.Variant.new_from_bytes(type_, GLib.Bytes(rest[1]), False)
            answer = variant.is_normal_form()
            if answer:
                answer = (rebuilt(variant).get_data_as_bytes().get_data() or b"") == rest[1]
        sys.stdout.buffer.write(base64.b64encode(pickle.dumps(answer)) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
