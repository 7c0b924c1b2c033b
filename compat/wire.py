# cython: infer_types=True
"""D-Bus marshalling for the bus's own messages (D-Bus specification, "Marshaling").

Invariant: what this module writes is little-endian, valid and aligned from offset 0, and what it
cannot read raises ValueError and nothing else.

Python values of D-Bus types: integers and doubles are int and float, ``b`` is bool, ``s o g`` are
str (bytes are taken too when writing), ``ay`` is bytes, other arrays are lists, an array of dict
entries is a dict, a struct is a tuple, a variant is a pair (signature, value), ``h`` is an index
into the message's file descriptors.

The bus answers each driver call through here, so the signatures that driver calls really use have
straight paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from struct import error as struct_error
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.mem import Buffer

if not cython.compiled:
    from jitney.broker.mem import copy, of_bytes, store32, take, zero

CALL = 1
RETURN = 2
ERROR = 3
SIGNAL = 4

NO_REPLY = 1
NO_AUTO_START = 2
INTERACTIVE = 4

MAX_ARRAY = 1 << 26
MAX_SIGNATURE = 255
MAX_NESTING = 32
"""Arrays within arrays, and structs within structs; the two together may reach twice this."""

_PAD = (b"", b"\0", b"\0" * 2, b"\0" * 3, b"\0" * 4, b"\0" * 5, b"\0" * 6, b"\0" * 7)
_ALIGN = {
    "y": 1, "b": 4, "n": 2, "q": 2, "i": 4, "u": 4, "x": 8, "t": 8, "d": 8, "h": 4,
    "s": 4, "o": 4, "g": 1, "a": 4, "(": 8, "{": 8, "v": 1,
}  # fmt: skip
_BASIC = "ybnqiuxtdhsog"
_FORMAT = {"y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I"}
_LITTLE = {code: Struct("<" + letter) for code, letter in _FORMAT.items()}
_BIG = {code: Struct(">" + letter) for code, letter in _FORMAT.items()}
_U32 = Struct("<I")
_U32_BIG = Struct(">I")
_HEAD = Struct("<cBBBIII")
_SMALL = [_U32.pack(value) for value in range(8)]
_scratch = Buffer()
_PATH_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")


# ---- signatures and paths


def complete_type(signature: str, pos: int, arrays: int = 0, structs: int = 0) -> int:
    """End of the single complete type that starts at `pos`; ValueError when there is none."""
    if pos >= len(signature):
        raise ValueError("signature ends inside a type")
    code = signature[pos]
    if code in _BASIC or code == "v":
        return pos + 1
    if code == "a":
        if arrays >= MAX_NESTING:
            raise ValueError("too many nested arrays")
        if signature[pos + 1 : pos + 2] != "{":
            return complete_type(signature, pos + 1, arrays + 1, structs)
        if structs >= MAX_NESTING:
            raise ValueError("too many nested structs")
        if signature[pos + 2 : pos + 3] not in tuple(_BASIC):
            raise ValueError("the key of a dict entry is not a basic type")
        end = complete_type(signature, pos + 3, arrays + 1, structs + 1)
        if signature[end : end + 1] != "}":
            raise ValueError("a dict entry does not have two fields")
        return end + 1
    if code == "(":
        if structs >= MAX_NESTING:
            raise ValueError("too many nested structs")
        end = complete_type(signature, pos + 1, arrays, structs + 1)
        while signature[end : end + 1] != ")":
            end = complete_type(signature, end, arrays, structs + 1)
        return end + 1
    raise ValueError(f"unknown type code {code!r}")


def check_signature(signature: str) -> None:
    """ValueError unless `signature` is zero or more single complete types."""
    if len(signature) > MAX_SIGNATURE:
        raise ValueError("signature too long")
    pos = 0
    while pos < len(signature):
        pos = complete_type(signature, pos)


def split_signature(signature: str) -> list[str]:
    """The single complete types of a signature, in order."""
    parts = []
    pos = 0
    while pos < len(signature):
        end = complete_type(signature, pos)
        parts.append(signature[pos:end])
        pos = end
    return parts


def _check_path(path: bytes) -> None:
    if path != b"/":
        if path[:1] != b"/":
            raise ValueError("object path does not start with a slash")
        for element in path[1:].split(b"/"):
            if not element or not _PATH_BYTES.issuperset(element):
                raise ValueError("object path with a bad element")


# ---- writing


def string(value: str | bytes) -> bytes:
    """One string or object path as it stands in a body, without padding."""
    raw: bytes = value.encode() if isinstance(value, str) else value
    if b"\0" in raw:
        raise ValueError("string with a NUL byte")
    _scratch.end = 0
    _put(_scratch, raw)
    return take(_scratch.p, 0, _scratch.end)


def three_strings(first: bytes, second: bytes, third: bytes) -> bytes:
    """A body of signature ``sss``; the strings are names, in which there is no NUL."""
    _scratch.end = 0
    _put(_scratch, first)
    _put(_scratch, second)
    _put(_scratch, third)
    return take(_scratch.p, 0, _scratch.end)


def _put(out: Buffer, raw: bytes) -> None:
    # One string, padded to its place.
    n = len(raw)
    out.reserve(n + 8)
    p = out.p
    pad = -out.end & 3
    zero(p, out.end, pad)
    pos = out.end + pad
    store32(p, pos, n, False)
    copy(p, pos + 4, of_bytes(raw), 0, n)
    zero(p, pos + 4 + n, 1)
    out.end = pos + 5 + n


def string_array(values: Iterable[str | bytes]) -> bytes:
    """A body of signature ``as``."""
    parts = []
    length = 0
    for value in values:
        part = _PAD[-length & 3] + string(value)
        length += len(part)
        parts.append(part)
    return _U32.pack(length) + b"".join(parts)


def u32(value: int) -> bytes:
    """A body of signature ``u``; ``b`` has the same form."""
    return _SMALL[value] if 0 <= value < 8 else _U32.pack(value)


def marshal(signature: str, values: Sequence[Any], big_endian: bool = False) -> bytes:
    """The body for `values`. ValueError when they do not fit `signature`."""
    try:
        if not big_endian and (signature == "s" or signature == "u" or signature == "as"):
            (value,) = values
            if signature == "s":
                return string(value)
            return _U32.pack(value) if signature == "u" else string_array(value)
        out = bytearray()
        pos = 0
        check_signature(signature)
        for value in values:
            pos = _write(out, signature, pos, value, big_endian)
    except (TypeError, struct_error, AttributeError, IndexError, RecursionError) as exc:
        raise ValueError(f"value does not fit signature {signature!r}: {exc}") from exc
    if pos != len(signature):
        raise ValueError(f"too few values for signature {signature!r}")
    return bytes(out)


def _write(out: bytearray, signature: str, pos: int, value: Any, big_endian: bool) -> int:
    """Append one value of the type at `pos`, aligned; the end of that type."""
    if pos >= len(signature):
        raise ValueError(f"too many values for signature {signature!r}")
    code = signature[pos]
    kinds = _BIG if big_endian else _LITTLE
    out += _PAD[-len(out) & (_ALIGN[code] - 1)]
    if code == "s" or code == "o":
        raw = value.encode() if isinstance(value, str) else bytes(value)
        if code == "o":
            _check_path(raw)
        elif b"\0" in raw:
            raise ValueError("string with a NUL byte")
        out += kinds["u"].pack(len(raw)) + raw + b"\0"
    elif code == "g":
        raw = value.encode() if isinstance(value, str) else bytes(value)
        check_signature(raw.decode())
        out += bytes((len(raw),)) + raw + b"\0"
    elif code == "b":
        out += kinds["u"].pack(1 if value else 0)
    elif code == "v":
        inner, value = value
        if len(inner) > MAX_SIGNATURE or complete_type(inner, 0) != len(inner):
            raise ValueError("the signature of a variant is not one complete type")
        out += bytes((len(inner),)) + inner.encode() + b"\0"
        _write(out, inner, 0, value, big_endian)
    elif code == "(":
        pos += 1
        for item in value:
            if signature[pos] == ")":
                raise ValueError("too many values for a struct")
            pos = _write(out, signature, pos, item, big_endian)
        if signature[pos] != ")":
            raise ValueError("too few values for a struct")
    elif code == "a":
        return _write_array(out, signature, pos, value, big_endian)
    else:
        out += kinds[code].pack(value)
    return pos + 1


def _write_array(out: bytearray, signature: str, pos: int, value: Any, big_endian: bool) -> int:
    end = complete_type(signature, pos)
    item_code = signature[pos + 1]
    mark = len(out)
    out += b"\0\0\0\0"
    out += _PAD[-len(out) & (_ALIGN[item_code] - 1)]
    start = len(out)
    if item_code == "{":
        for key, item in value.items() if isinstance(value, dict) else value:
            out += _PAD[-len(out) & 7]
            at = _write(out, signature, pos + 2, key, big_endian)
            _write(out, signature, at, item, big_endian)
    elif item_code == "y":
        out += bytes(value)
    else:
        for item in value:
            _write(out, signature, pos + 1, item, big_endian)
    length = len(out) - start
    if length > MAX_ARRAY:
        raise ValueError("array longer than 64 MiB")
    out[mark : mark + 4] = (_U32_BIG if big_endian else _U32).pack(length)
    return end


# ---- reading


def read_string(body: bytes, big_endian: bool) -> bytes:
    """The bytes of the first string of a body; ValueError when it does not end within it."""
    if len(body) < 5:
        raise ValueError("body too short for a string")
    length: int = (_U32_BIG if big_endian else _U32).unpack_from(body)[0]
    if length + 5 > len(body) or body[length + 4]:
        raise ValueError("string does not end where it says")
    return body[4 : length + 4]


def unmarshal(signature: bytes, body: bytes, big_endian: bool) -> list[Any]:
    """The values of a body. ValueError when body or signature is not valid D-Bus."""
    if not signature:
        if body:
            raise ValueError("body without a signature")
        return []
    try:
        if signature == b"s":
            raw = read_string(body, big_endian)
            if len(raw) + 5 != len(body) or b"\0" in raw:
                raise ValueError("bytes after the last value")
            return [raw.decode()]
        text = signature.decode("ascii")
        check_signature(text)
        values = []
        pos = 0
        offset = 0
        while pos < len(text):
            value, pos, offset = _read(text, pos, body, offset, big_endian, 0)
            values.append(value)
    except (struct_error, IndexError, RecursionError) as exc:
        raise ValueError(f"body of signature {signature!r} ends early") from exc
    if offset != len(body):
        raise ValueError("bytes after the last value")
    return values


def _skip(body: bytes, offset: int, align: int) -> int:
    """The next offset that is a multiple of `align`; the bytes between must be zero."""
    end = offset + (-offset & (align - 1))
    if end > len(body) or body.count(0, offset, end) != end - offset:
        raise ValueError("padding that is not zero, or not there")
    return end


def _take_string(body: bytes, offset: int, length: int) -> bytes:
    raw = body[offset : offset + length]
    if len(raw) != length or body[offset + length] or b"\0" in raw:
        raise ValueError("string does not end where it says")
    return raw


def _read(
    signature: str, pos: int, body: bytes, offset: int, big_endian: bool, depth: int
) -> tuple[Any, int, int]:
    """The value of the type at `pos`: value, end of the type, end of the value."""
    if depth > 2 * MAX_NESTING:
        raise ValueError("too many nested containers")
    code = signature[pos]
    offset = _skip(body, offset, _ALIGN[code])
    word = _U32_BIG if big_endian else _U32
    value: Any
    if code == "s" or code == "o":
        length = word.unpack_from(body, offset)[0]
        raw = _take_string(body, offset + 4, length)
        if code == "o":
            _check_path(raw)
        return raw.decode(), pos + 1, offset + length + 5
    if code == "g":
        length = body[offset]
        value = _take_string(body, offset + 1, length).decode("ascii")
        check_signature(value)
        return value, pos + 1, offset + length + 2
    if code == "b":
        value = word.unpack_from(body, offset)[0]
        if value > 1:
            raise ValueError("boolean that is neither 0 nor 1")
        return value == 1, pos + 1, offset + 4
    if code == "v":
        length = body[offset]
        inner = _take_string(body, offset + 1, length).decode("ascii")
        if complete_type(inner, 0) != len(inner):
            raise ValueError("the signature of a variant is not one complete type")
        value, _, offset = _read(inner, 0, body, offset + length + 2, big_endian, depth + 1)
        return (inner, value), pos + 1, offset
    if code == "(":
        items = []
        pos += 1
        while signature[pos] != ")":
            value, pos, offset = _read(signature, pos, body, offset, big_endian, depth + 1)
            items.append(value)
        return tuple(items), pos + 1, offset
    if code == "a":
        return _read_array(signature, pos, body, offset, big_endian, depth)
    kind = (_BIG if big_endian else _LITTLE)[code]
    return kind.unpack_from(body, offset)[0], pos + 1, offset + kind.size


def _read_array(
    signature: str, pos: int, body: bytes, offset: int, big_endian: bool, depth: int
) -> tuple[Any, int, int]:
    type_end = complete_type(signature, pos)
    item_code = signature[pos + 1]
    length = (_U32_BIG if big_endian else _U32).unpack_from(body, offset)[0]
    offset = _skip(body, offset + 4, _ALIGN[item_code])
    end = offset + length
    if length > MAX_ARRAY or end > len(body):
        raise ValueError("array longer than the body, or than 64 MiB")
    if item_code == "y":
        return body[offset:end], type_end, end
    items: list[Any] = []
    entries: dict[Any, Any] = {}
    while offset < end:
        if item_code == "{":
            offset = _skip(body, offset, 8)
            key, at, offset = _read(signature, pos + 2, body, offset, big_endian, depth + 2)
            item, at, offset = _read(signature, at, body, offset, big_endian, depth + 2)
            entries[key] = item
        else:
            item, at, offset = _read(signature, pos + 1, body, offset, big_endian, depth + 1)
            items.append(item)
    if offset != end:
        raise ValueError("the last item of an array does not end where the array does")
    return (entries if item_code == "{" else items), type_end, end


# ---- whole messages


_PATH = b"\1\1o\0"
_INTERFACE = b"\2\1s\0"
_MEMBER = b"\3\1s\0"
_ERROR_NAME = b"\4\1s\0"
_REPLY_SERIAL = b"\5\1u\0"
_DESTINATION = b"\6\1s\0"
_SENDER = b"\7\1s\0"
_SIGNATURE = b"\x08\1g\0"
_UNIX_FDS = b"\x09\1u\0"
_FIELD = Struct("<4sI")
"""Code and type of a header field, then its value or the value's length."""

_DRIVER = b"org.freedesktop.DBus"
_SENDER_FIELD = _FIELD.pack(_SENDER, len(_DRIVER)) + _DRIVER + b"\0"


def _signature_field(signature: str) -> bytes:
    return _SIGNATURE + bytes((len(signature),)) + signature.encode() + b"\0"


_SIGNATURE_FIELDS = {text: _signature_field(text) for text in ("s", "u", "b", "as", "sss", "a{sv}")}


def message(
    type: int,
    serial: int,
    flags: int = 0,
    path: bytes | None = None,
    interface: bytes | None = None,
    member: bytes | None = None,
    error_name: bytes | None = None,
    destination: bytes | None = None,
    sender: bytes | None = _DRIVER,
    reply_serial: int = 0,
    signature: str = "",
    body: bytes = b"",
    n_fds: int = 0,
) -> bytes:
    """A whole little-endian message, its header fields in the order dbus-daemon writes them."""
    fields = b""
    if path is not None:
        fields = _FIELD.pack(_PATH, len(path)) + path + b"\0"
    if interface is not None:
        fields += (
            _PAD[-len(fields) & 7] + _FIELD.pack(_INTERFACE, len(interface)) + interface + b"\0"
        )
    if member is not None:
        fields += _PAD[-len(fields) & 7]
        fields += _FIELD.pack(_MEMBER, len(member)) + member + b"\0"
    if destination is not None:
        fields += (
            _PAD[-len(fields) & 7]
            + _FIELD.pack(_DESTINATION, len(destination))
            + destination
            + b"\0"
        )
    if error_name is not None:
        fields += (
            _PAD[-len(fields) & 7] + _FIELD.pack(_ERROR_NAME, len(error_name)) + error_name + b"\0"
        )
    if reply_serial:
        fields += _PAD[-len(fields) & 7] + _FIELD.pack(_REPLY_SERIAL, reply_serial)
    if signature:
        fields += _PAD[-len(fields) & 7]
        fields += _SIGNATURE_FIELDS.get(signature) or _signature_field(signature)
    if n_fds:
        fields += _PAD[-len(fields) & 7] + _FIELD.pack(_UNIX_FDS, n_fds)
    if sender is not None:
        fields += _PAD[-len(fields) & 7]
        if sender == _DRIVER:
            fields += _SENDER_FIELD
        else:
            fields += _FIELD.pack(_SENDER, len(sender)) + sender + b"\0"
    head = _HEAD.pack(b"l", type, flags, 1, len(body), serial, len(fields))
    return head + fields + _PAD[-len(fields) & 7] + body
