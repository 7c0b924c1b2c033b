"""GVariant serialisation of what D-Bus can say, to and from D-Bus 1 marshalling, bytes to bytes.

Invariant: what is read from a peer either becomes valid bytes of the other form or raises
`Malformed`, and nothing else. It takes time in proportion to the bytes, never goes deeper than
D-Bus allows, and never makes more than `limit` bytes.

The form is that of the "GVariant Specification" (Ryan Lortie): values lie at multiples of their
alignment; what has no fixed size is delimited by framing offsets at the end of its container, in
little-endian whatever the order of the values, in the fewest bytes that can count the container's
size. Only the normal form is read: one value has one form, so nothing can hide in it. Of GVariant's
types, those that D-Bus lacks (maybe types, the empty tuple but for an empty body) are refused.

Values of a fixed size are the same fields in another arrangement. So an array of them, however
large, is turned by slices with a step, a few for each field, not one element after the other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from struct import pack as struct_pack
from struct import unpack_from
from typing import Any

from jitney.broker.message import MAX_ARRAY, MAX_MESSAGE
from jitney.broker.syntax import is_path, is_signature
from jitney.compat import wire

NATIVE_BIG = sys.byteorder == "big"
"""kdbus peers share a machine: sd-bus takes no other order than that of the machine."""

_MAX_DEPTH = 64
# Alignment in GVariant, its size there if it is fixed, and the same of D-Bus 1.
_BASIC = {
    "y": (1, 1, 1, 1), "b": (1, 1, 4, 4), "n": (2, 2, 2, 2), "q": (2, 2, 2, 2), "i": (4, 4, 4, 4),
    "u": (4, 4, 4, 4), "x": (8, 8, 8, 8), "t": (8, 8, 8, 8), "d": (8, 8, 8, 8), "h": (4, 4, 4, 4),
    "s": (1, 0, 4, 0), "o": (1, 0, 4, 0), "g": (1, 0, 1, 0), "v": (8, 0, 1, 0),
}  # fmt: skip
_LETTERS = {1: "B", 2: "H", 4: "I"}
_Columns = list[tuple[int, int, int, bool]]


class Malformed(ValueError):
    """These bytes are not what they claim to be, or more than they may be."""


class TooMany(Malformed):
    """More values than whoever asked for the translation has time for."""


class Type:
    """One complete type, and where its values lie in both forms.

    `size` is 0 where it depends on the value. `pitch` is from one element of a D-Bus 1 array to the
    next, which is more than `old_size` if there is padding between them. `height` is how many
    structs within each other a value of fixed size is; `offsets`, how many framing offsets any
    other struct has."""

    align: int
    old_align: int

    def __init__(self, code: str, children: tuple[Type, ...] = ()) -> None:
        self.code = code
        self.children = children
        self.size = self.old_size = self.offsets = self.height = 0
        if code == "a":
            self.align = children[0].align
            self.old_align = 4
        elif children or code == "(":
            self.align = max([child.align for child in children], default=1)
            self.old_align = 8
            self._arrange()
        else:
            self.align, self.size, self.old_align, self.old_size = _BASIC[code]
        self.pitch = self.old_size + -self.old_size % self.old_align

    def _arrange(self) -> None:
        """Sizes of a struct whose members all have one, else how many framing offsets it has."""
        end = old = 0
        for child in self.children:
            if not child.size:
                self.offsets = sum(1 for child in self.children[:-1] if not child.size)
                return
            end += -end % child.align + child.size
            old += -old % child.old_align + child.old_size
        self.size = end + -end % self.align
        self.old_size = old
        self.height = 1 + max([child.height for child in self.children], default=0)

    @cached_property
    def columns(self) -> _Columns:
        """Fields of a value of fixed size: offset here and in D-Bus 1, size, whether a boolean."""
        if not self.children:
            return [(0, 0, self.size, self.code == "b")]
        columns = []
        at = old = 0
        for child in self.children:
            at += -at % child.align
            old += -old % child.old_align
            columns += [(at + a, old + b, size, flag) for a, b, size, flag in child.columns]
            at += child.size
            old += child.old_size
        return columns

    @cached_property
    def gaps(self) -> tuple[list[int], list[int]]:
        """Offsets of the padding within a value of fixed size, here and in D-Bus 1."""
        here = set(range(self.size))
        there = set(range(self.pitch))
        for at, old, size, flag in self.columns:
            here.difference_update(range(at, at + size))
            there.difference_update(range(old, old + (4 if flag else size)))
        return sorted(here), sorted(there)

    @cached_property
    def plain(self) -> bool:
        """Whether values in the same byte order are the same bytes, none of them padding."""
        return self.size == self.pitch == sum(size for _, _, size, _ in self.columns) and all(
            at == old and not flag for at, old, _, flag in self.columns
        )


def _parse(signature: str, pos: int) -> tuple[Type, int]:
    # The signature is known to be valid, so this ends and nests no deeper than it may.
    code = signature[pos]
    pos += 1
    if code == "a":
        child, pos = _parse(signature, pos)
        return Type("a", (child,)), pos
    if code in "({":
        children = []
        while signature[pos] not in ")}":
            child, pos = _parse(signature, pos)
            children.append(child)
        return Type(code, tuple(children)), pos + 1
    return Type(code), pos


@lru_cache(maxsize=512)
def body_type(signature: bytes) -> Type:
    """The struct that a body of this signature is in GVariant."""
    if not is_signature(signature):
        raise Malformed("not a signature")
    text = signature.decode("ascii")
    children = []
    pos = 0
    while pos < len(text):
        child, pos = _parse(text, pos)
        children.append(child)
    return Type("(", tuple(children))


def single_type(signature: bytes) -> Type:
    """The one complete type that a variant's signature has to be."""
    children = body_type(signature).children
    if len(children) != 1:
        raise Malformed("the signature of a variant is not one complete type")
    return children[0]


# ---- framing offsets


def offset_width(size: int) -> int:
    """Bytes of each framing offset in a container of this size."""
    return 1 if size <= 0xFF else 2 if size <= 0xFFFF else 4


def framing_width(content: int, count: int) -> int:
    """Bytes of each framing offset where `count` of them follow `content` bytes."""
    if content + count <= 0xFF:
        return 1
    return 2 if content + 2 * count <= 0xFFFF else 4


def framing(offsets: Sequence[int], content: int) -> bytes:
    """The offsets as they follow `content` bytes."""
    letter = _LETTERS[framing_width(content, len(offsets))]
    return struct_pack(f"<{len(offsets)}{letter}", *offsets)


def items_of(data: bytes, start: int, end: int) -> Sequence[int]:
    """Ends, counted from `start`, of the elements of an array of elements without fixed size.

    The last is where the elements end; whether the others are in order, the caller has to see."""
    size = end - start
    if not size:
        return ()
    width = offset_width(size)
    content = int.from_bytes(data[end - width : end], "little")
    count, rest = divmod(size - content, width)
    if content > size - width or rest or framing_width(content, count) != width:
        raise Malformed("framing offsets of an array that do not fit its size")
    ends: tuple[int, ...] = unpack_from(f"<{count}{_LETTERS[width]}", data, start + content)
    return ends


def variant_of(data: bytes, start: int, end: int) -> tuple[bytes, int]:
    """Signature of the variant that lies there, and where its value ends."""
    # No signature is longer than 255 bytes, and the one around a body has two more.
    at = data.rfind(b"\0", max(start, end - 258), end)
    if at < 0:
        raise Malformed("variant without a signature")
    return data[at + 1 : end], at


def skip(data: bytes, pos: int, align: int, end: int) -> int:
    """The next multiple of `align`; what is passed over must be there and be zero."""
    stop = pos + (-pos & (align - 1))
    if stop > end or data.count(0, pos, stop) != stop - pos:
        raise Malformed("padding that is not zero, or not there")
    return stop


def members(kind: Type, data: bytes, start: int, end: int) -> Iterator[tuple[Type, int, int]]:
    """Each member of a struct without fixed size, and where it lies."""
    width = offset_width(end - start)
    stop = end - width * kind.offsets
    if stop < start or framing_width(stop - start, kind.offsets) != width:
        raise Malformed("struct too small for its framing offsets")
    at = end
    pos = start
    last = kind.children[-1]
    for child in kind.children:
        pos = skip(data, pos, child.align, stop)
        if child.size:
            after = pos + child.size
        elif child is last:
            after = stop
        else:
            at -= width
            after = start + int.from_bytes(data[at : at + width], "little")
        if not pos <= after <= stop:
            raise Malformed("member of a struct that does not lie in it")
        yield child, pos, after
        pos = after
    if pos != stop:
        raise Malformed("bytes after the last member of a struct")


# ---- reading GVariant


class _Reader:
    """Appends what it reads to `out`, in D-Bus 1 marshalling."""

    def __init__(self, data: bytes, big: bool, big_out: bool, limit: int, values: int) -> None:
        self.data = data
        self.big_out = big_out
        self.swap = big != big_out
        self.word = ">I" if big_out else "<I"
        self.limit = limit
        self.left = values
        self.out = bytearray()

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TooMany("too many values to be translated at once")

    def room(self, more: int) -> None:
        if len(self.out) + more > self.limit:
            raise Malformed("too long for a message")

    def fixed(self, kind: Type, start: int, count: int) -> None:
        """`count` values of fixed size that lie next to each other from `start` on."""
        data = self.data
        step = kind.size
        pitch = kind.pitch
        end = start + count * step
        self.room(count * pitch)
        if kind.plain and not self.swap:
            self.out += data[start:end]
            return
        for gap in kind.gaps[0]:
            if any(data[start + gap : end : step]):
                raise Malformed("padding that is not zero")
        block = bytearray(count * pitch)
        for at, old, size, flag in kind.columns:
            if flag:
                column = data[start + at : end : step]
                if max(column) > 1:
                    raise Malformed("boolean that is neither 0 nor 1")
                block[old + (3 if self.big_out else 0) :: pitch] = column
                continue
            for i in range(size):
                to = old + (size - 1 - i if self.swap else i)
                block[to::pitch] = data[start + at + i : end : step]
        del block[len(block) - (pitch - kind.old_size) :]
        self.out += block

    def value(self, kind: Type, start: int, end: int, depth: int) -> None:
        if depth + kind.height > _MAX_DEPTH:
            raise Malformed("too many nested containers")
        self.spend(1)
        out = self.out
        out += bytes(-len(out) & (kind.old_align - 1))
        if kind.size:
            if end - start != kind.size:
                raise Malformed("value of fixed size that has another size")
            self.fixed(kind, start, 1)
            return
        code = kind.code
        if code == "a":
            self.array(kind.children[0], start, end, depth)
        elif code == "v":
            signature, stop = variant_of(self.data, start, end)
            self.spend(len(signature))
            child = single_type(signature)
            out.append(len(signature))
            out += signature + b"\0"
            self.value(child, start, stop, depth + 1)
        elif kind.children:
            self.struct(kind, start, end, depth)
        else:
            self.string(code, start, end)
        self.room(0)

    def string(self, code: str, start: int, end: int) -> None:
        text = self.data[start : end - 1]
        if end <= start or self.data[end - 1] or 0 in text:
            raise Malformed("string that does not end where it should")
        self.room(len(text))
        _check_text(code, text)
        out = self.out
        out += bytes((len(text),)) if code == "g" else struct_pack(self.word, len(text))
        out += text
        out.append(0)

    def struct(self, kind: Type, start: int, end: int, depth: int) -> None:
        for child, pos, after in members(kind, self.data, start, end):
            self.value(child, pos, after, depth + 1)

    def array(self, kind: Type, start: int, end: int, depth: int) -> None:
        out = self.out
        mark = len(out)
        out += bytes(4)
        out += bytes(-len(out) & (kind.old_align - 1))
        begin = len(out)
        if kind.size:
            count, rest = divmod(end - start, kind.size)
            if rest:
                raise Malformed("array of elements of fixed size with a part of one")
            if count:
                if kind.height and depth + 1 + kind.height > _MAX_DEPTH:
                    raise Malformed("too many nested containers")
                self.fixed(kind, start, count)
        else:
            pos = start
            for offset in items_of(self.data, start, end):
                after = start + offset
                if after > end:
                    raise Malformed("element of an array that does not lie in it")
                pos = skip(self.data, pos, kind.align, after)
                self.value(kind, pos, after, depth + 1)
                pos = after
        length = len(out) - begin
        if length > MAX_ARRAY:
            raise Malformed("array longer than 64 MiB")
        out[mark : mark + 4] = struct_pack(self.word, length)


def to_classic(
    signature: bytes,
    data: bytes,
    big: bool = NATIVE_BIG,
    big_out: bool = NATIVE_BIG,
    limit: int = MAX_MESSAGE,
    values: int = MAX_MESSAGE,
) -> bytes:
    """The D-Bus 1 body for the struct of this signature that `data` is in GVariant.

    TooMany where it has more `values` than that, arrays of fixed size counted as one each."""
    kind = body_type(signature)
    if not kind.children:
        if data != b"\0":
            raise Malformed("empty body that is not one zero byte")
        return b""
    reader = _Reader(data, big, big_out, limit, values)
    # The body's own struct is none in D-Bus, so its depth does not count.
    reader.value(kind, 0, len(data), -1)
    return bytes(reader.out)


# ---- writing GVariant


class _Writer:
    """Appends what it reads of D-Bus 1 marshalling to `out`, as GVariant."""

    def __init__(self, data: bytes, big: bool, big_out: bool, limit: int, values: int) -> None:
        self.data = data
        self.big = big
        self.swap = big != big_out
        self.word = ">I" if big else "<I"
        self.limit = limit
        self.left = values
        self.out = bytearray()

    def skip(self, pos: int, align: int) -> int:
        return skip(self.data, pos, align, len(self.data))

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TooMany("too many values to be translated at once")

    def room(self, more: int) -> None:
        if len(self.out) + more > self.limit:
            raise Malformed("too long for a message")

    def u32(self, pos: int) -> int:
        if pos + 4 > len(self.data):
            raise Malformed("body ends within a value")
        number: int = unpack_from(self.word, self.data, pos)[0]
        return number

    def fixed(self, kind: Type, start: int, count: int) -> int:
        """`count` values from `start` on, with padding between them; where the last one ends."""
        pitch = kind.pitch
        step = kind.size
        end = start + (count - 1) * pitch + kind.old_size
        if end > len(self.data):
            raise Malformed("body ends within a value")
        self.room(count * step)
        if kind.plain and not self.swap:
            self.out += self.data[start:end]
            return end
        # Behind the last value there may be none of the padding that is between them.
        data = self.data[start:end] + bytes(pitch - kind.old_size)
        for gap in kind.gaps[1]:
            if any(data[gap::pitch]):
                raise Malformed("padding that is not zero")
        block = bytearray(count * step)
        for at, old, size, flag in kind.columns:
            if flag:
                parts = [data[old + i :: pitch] for i in range(4)]
                column = parts.pop(3 if self.big else 0)
                if max(column) > 1 or any(any(part) for part in parts):
                    raise Malformed("boolean that is neither 0 nor 1")
                block[at::step] = column
                continue
            for i in range(size):
                to = at + (size - 1 - i if self.swap else i)
                block[to::step] = data[old + i :: pitch]
        self.out += block
        return end

    def value(self, kind: Type, pos: int, depth: int) -> int:
        """Where the value that begins at `pos`, after padding, ends."""
        if depth + kind.height > _MAX_DEPTH:
            raise Malformed("too many nested containers")
        self.spend(1)
        pos = self.skip(pos, kind.old_align)
        out = self.out
        out += bytes(-len(out) & (kind.align - 1))
        self.room(0)
        if kind.size:
            return self.fixed(kind, pos, 1)
        code = kind.code
        if code == "a":
            return self.array(kind.children[0], pos, depth)
        if kind.children:
            return self.struct(kind, pos, depth)
        if code == "v" or code == "g":
            if pos >= len(self.data):
                raise Malformed("body ends within a value")
            size = self.data[pos]
            pos += 1
        else:
            size = self.u32(pos)
            pos += 4
        text = self.data[pos : pos + size]
        pos += size + 1
        if pos > len(self.data) or self.data[pos - 1] or 0 in text:
            raise Malformed("string that does not end where it says")
        if code == "v":
            self.spend(size)
            pos = self.value(single_type(text), pos, depth + 1)
            out.append(0)
            out += text
            return pos
        self.room(size)
        _check_text(code, text)
        out += text
        out.append(0)
        return pos

    def struct(self, kind: Type, pos: int, depth: int) -> int:
        out = self.out
        begin = len(out)
        offsets = []
        for child in kind.children:
            pos = self.value(child, pos, depth + 1)
            if not child.size:
                offsets.append(len(out) - begin)
        if not kind.children[-1].size:
            offsets.pop()
        offsets.reverse()
        out += framing(offsets, len(out) - begin)
        return pos

    def array(self, kind: Type, pos: int, depth: int) -> int:
        size = self.u32(pos)
        pos = self.skip(pos + 4, kind.old_align)
        end = pos + size
        if size > MAX_ARRAY or end > len(self.data):
            raise Malformed("array longer than the body, or than 64 MiB")
        if pos == end:
            return end
        if kind.size:
            count, rest = divmod(size + kind.pitch - kind.old_size, kind.pitch)
            if rest:
                raise Malformed("array that does not end where its last element does")
            if kind.height and depth + 1 + kind.height > _MAX_DEPTH:
                raise Malformed("too many nested containers")
            return self.fixed(kind, pos, count)
        out = self.out
        begin = len(out)
        ends = []
        while pos < end:
            pos = self.value(kind, pos, depth + 1)
            ends.append(len(out) - begin)
        if pos != end:
            raise Malformed("array that does not end where its last element does")
        out += framing(ends, len(out) - begin)
        self.room(0)
        return pos


def from_classic(
    signature: bytes,
    body: bytes,
    big: bool = NATIVE_BIG,
    big_out: bool = NATIVE_BIG,
    limit: int = MAX_MESSAGE,
    values: int = MAX_MESSAGE,
) -> bytes:
    """The struct in GVariant for a D-Bus 1 body of this signature; TooMany as `to_classic()`."""
    kind = body_type(signature)
    writer = _Writer(body, big, big_out, limit, values)
    end = 0
    if not kind.children:
        writer.out.append(0)
    elif kind.size:
        end = writer.fixed(kind, 0, 1)
    else:
        end = writer.struct(kind, 0, -1)
        writer.room(0)
    if end != len(body):
        raise Malformed("bytes after the last value")
    return bytes(writer.out)


def _check_text(code: str, text: bytes) -> None:
    if code == "s":
        try:
            text.decode()
        except UnicodeDecodeError:
            raise Malformed("string that is not UTF-8") from None
    elif code == "o":
        if not is_path(text):
            raise Malformed("not an object path")
    elif not is_signature(text):
        raise Malformed("not a signature")


# ---- Python values, as jitney.compat.wire has them


def pack(signature: bytes, values: Sequence[Any], big: bool = NATIVE_BIG) -> bytes:
    """The struct for `values`. Malformed when they do not fit `signature`."""
    try:
        body = wire.marshal(signature.decode("ascii"), values, big)
    except ValueError as error:
        raise Malformed(str(error)) from error
    return from_classic(signature, body, big, big)


def unpack(signature: bytes, data: bytes, big: bool = NATIVE_BIG) -> list[Any]:
    """The values of a struct. Malformed when `data` is not one of this signature."""
    body = to_classic(signature, data, big, big)
    try:
        return wire.unmarshal(signature, body, big)
    except ValueError as error:
        raise Malformed(str(error)) from error
