# cython: infer_types=True
"""Message: a parsed view of one D-Bus message, and the one walk that checks it.

Invariant: a Message that `parse()` accepted is valid to the last byte, header and body, as
the D-Bus specification ("Message Protocol") demands; routing then reads offsets only.
The view does not own the bytes: they belong to the buffer of whoever called `parse()` and
must stay put until the message is routed. `copy()` makes a view that owns its bytes.

Nothing is allocated per field: each field is an (offset, length) pair into the bytes, with
length -1 for "absent". The same object is used again for the next message.
"""

from __future__ import annotations

from typing import Any

try:
    import cython
except ImportError:
    from ._cython import cython

from .fds import FdSet

if not cython.compiled:
    from .mem import all_zero, bools_ok, free_ints, int_array, load32, of_bytes, same, take, utf8_ok
    from .syntax import (
        CHARS,
        bus_name_ok,
        interface_ok,
        member_ok,
        path_ok,
        signature_ok,
        single_type_ok,
        type_end,
    )

METHOD_CALL, METHOD_RETURN, ERROR, SIGNAL = 1, 2, 3, 4

NO_REPLY_EXPECTED, NO_AUTO_START, ALLOW_INTERACTIVE_AUTHORIZATION = 1, 2, 4

FIELD_PATH, FIELD_INTERFACE, FIELD_MEMBER, FIELD_ERROR_NAME = 1, 2, 3, 4
FIELD_REPLY_SERIAL, FIELD_DESTINATION, FIELD_SENDER, FIELD_SIGNATURE, FIELD_UNIX_FDS = 5, 6, 7, 8, 9

# The specification's limits, "Message Format" and "Marshaling".
MAX_MESSAGE = 134217728
MAX_ARRAY = 67108864
MAX_ARGS = 64

LOCAL_PATH = b"/org/freedesktop/DBus/Local"
LOCAL_INTERFACE = b"org.freedesktop.DBus.Local"

# Expected type code of each known header field, by field code.
_FIELD_TYPES = b"\0osssussgu"
FIELD_TYPES = of_bytes(_FIELD_TYPES)

_ALIGN = bytearray(256)
for _codes, _n in ((b"ygv", 1), (b"nq", 2), (b"biuhsoa", 4), (b"xtd({", 8)):
    for _code in _codes:
        _ALIGN[_code] = _n
_ALIGN_BYTES = bytes(_ALIGN)
ALIGN = of_bytes(_ALIGN_BYTES)


def frame_size(p, off: int, have: int, limit: int) -> int:
    """Whole size in bytes of the message at `off`, of which `have` >= 16 bytes are here.

    Returns -1 where no message can start like this or it would be larger than `limit`."""
    order = p[off]
    if order == 108:
        big = False
    elif order == 66:
        big = True
    else:
        return -1
    fields = load32(p, off + 12, big)
    body = load32(p, off + 4, big)
    if fields > limit or body > limit:
        return -1
    size = ((16 + fields + 7) & ~7) + body
    if size > limit:
        return -1
    return size


def value_end(p, big: bool, sig, spos: int, send: int, pos: int, end: int, depth: int) -> int:
    """Checks the value of the complete type sig[spos:send] at `pos`; where it ends, or -1."""
    if depth > 64 or pos >= end:
        return -1
    c = sig[spos]
    align = ALIGN[c]
    # Padding up to the value's alignment must be there and be zero.
    while pos & (align - 1):
        if pos >= end or p[pos]:
            return -1
        pos += 1
    if c == 115 or c == 111:
        if end - pos < 5:
            return -1
        n = load32(p, pos, big)
        pos += 4
        if n >= end - pos or p[pos + n]:
            return -1
        if c == 115:
            if not utf8_ok(p, pos, n):
                return -1
        elif not path_ok(p, pos, n):
            return -1
        return pos + n + 1
    if c == 118:
        n = p[pos]
        pos += 1
        if n + 1 > end - pos or not single_type_ok(p, pos, n) or p[pos + n]:
            return -1
        spos = pos
        pos += n + 1
        # As libdbus: the contained value's padding may reach `end`, its bytes may not be missing.
        return value_end(p, big, p, spos, spos + n, pos, end, depth + 1)
    if c == 97:
        if end - pos < 4:
            return -1
        n = load32(p, pos, big)
        pos += 4
        align = ALIGN[sig[spos + 1]]
        while pos & (align - 1):
            if pos >= end or p[pos]:
                return -1
            pos += 1
        if n > end - pos or n > 67108864:
            return -1
        if n == 0:
            return pos
        c = sig[spos + 1]
        stop = pos + n
        if CHARS[c] & 8 and c != 115 and c != 111 and c != 103:
            if n & (align - 1):
                return -1
            if c == 98 and not bools_ok(p, pos, n, big):
                return -1
            return stop
        while pos < stop:
            pos = value_end(p, big, sig, spos + 1, send, pos, stop, depth + 1)
            if pos < 0:
                return -1
        return pos
    if c == 40 or c == 123:
        close = send - 1
        spos += 1
        while spos < close:
            stop = type_end(sig, spos, close, 0, 0)
            pos = value_end(p, big, sig, spos, stop, pos, end, depth + 1)
            if pos < 0:
                return -1
            spos = stop
        return pos
    if c == 103:
        n = p[pos]
        pos += 1
        if n + 1 > end - pos or not signature_ok(p, pos, n) or p[pos + n]:
            return -1
        return pos + n + 1
    # What is left has a fixed size, which is its alignment.
    if align > end - pos:
        return -1
    if c == 98 and load32(p, pos, big) > 1:
        return -1
    return pos + align


class Message:
    """View of one message; see the file's head for who owns the bytes.

    `fds` is the FdSet that came with it, or None; `owner` keeps the bytes of a copy alive."""

    def __init__(self) -> None:
        self.size = 0
        self.type = 0
        self.flags = 0
        self.big = False
        self.serial = 0
        self.reply_serial = 0
        self.n_fds = 0
        self.body_off = 0
        self.body_len = 0
        self.fields_end = 16
        self.path_off = 0
        self.path_len = -1
        self.iface_off = 0
        self.iface_len = -1
        self.member_off = 0
        self.member_len = -1
        self.error_off = 0
        self.error_len = -1
        self.dest_off = 0
        self.dest_len = -1
        self.sender_off = 0
        self.sender_len = -1
        self.sig_off = 0
        self.sig_len = -1
        self.unclean = False
        self.n_args = 0
        self.arg_kind = int_array(64)
        self.arg_off = int_array(64)
        self.arg_len = int_array(64)
        self.fds: FdSet | None = None
        self.owner: Any | None = None
        self.payload: Any | None = None

    def __dealloc__(self):
        free_ints(self.arg_kind)
        free_ints(self.arg_off)
        free_ints(self.arg_len)

    def parse(self, p, size: int) -> bool:
        """Takes the message of `size` bytes (see `frame_size`) at `p`; False if it is invalid."""
        self.p = p
        self.size = size
        big = p[0] == 66
        self.big = big
        kind = p[1]
        self.type = kind
        self.flags = p[2]
        self.serial = load32(p, 8, big)
        fields_end = 16 + load32(p, 12, big)
        body = (fields_end + 7) & ~7
        self.body_off = body
        self.body_len = size - body
        self.fields_end = fields_end
        self.reply_serial = 0
        self.n_fds = 0
        self.path_len = self.iface_len = self.member_len = self.error_len = -1
        self.dest_len = self.sender_len = self.sig_len = -1
        self.unclean = False
        self.n_args = 0
        self.fds = None
        self.owner = None
        self.payload = None
        if kind == 0 or p[3] != 1 or self.serial == 0:
            return False
        if not all_zero(p, fields_end, body - fields_end):
            return False
        if not self.parse_fields(fields_end):
            return False
        if kind == 1:
            if self.path_len < 0 or self.member_len < 0:
                return False
        elif kind == 4:
            if self.path_len < 0 or self.member_len < 0 or self.iface_len < 0:
                return False
        elif kind == 2:
            if self.reply_serial == 0:
                return False
        elif kind == 3 and (self.reply_serial == 0 or self.error_len < 0):
            return False
        return self.parse_body()

    def parse_fields(self, end: int) -> bool:
        p = self.p
        big = self.big
        seen = 0
        pos = 16
        while pos < end:
            while pos & 7:
                if pos >= end or p[pos]:
                    return False
                pos += 1
            if end - pos < 4:
                return False
            code = p[pos]
            if code == 0:
                return False
            if code > 9:
                # Unknown: must be well-formed, is not forwarded (feature HeaderFiltering).
                pos = value_end(p, big, of_bytes(b"v"), 0, 1, pos + 1, end, 2)
                if pos < 0:
                    return False
                self.unclean = True
                continue
            kind = FIELD_TYPES[code]
            if p[pos + 1] != 1 or p[pos + 2] != kind or p[pos + 3] or (seen >> code) & 1:
                return False
            seen |= 1 << code
            pos += 4
            if kind == 103:
                if pos >= end:
                    return False
                n = p[pos]
                pos += 1
                if n >= end - pos or p[pos + n] or not signature_ok(p, pos, n):
                    return False
                self.sig_off = pos
                self.sig_len = n
                pos += n + 1
                continue
            if end - pos < 4:
                return False
            n = load32(p, pos, big)
            pos += 4
            if kind == 117:
                if code == 5:
                    if n == 0:
                        return False
                    self.reply_serial = n
                else:
                    self.n_fds = n
                continue
            if n >= end - pos or p[pos + n]:
                return False
            if code == 1:
                if not path_ok(p, pos, n) or same(p, pos, n, LOCAL_PATH):
                    return False
                self.path_off = pos
                self.path_len = n
            elif code == 2:
                if not interface_ok(p, pos, n) or same(p, pos, n, LOCAL_INTERFACE):
                    return False
                self.iface_off = pos
                self.iface_len = n
            elif code == 3:
                if not member_ok(p, pos, n):
                    return False
                self.member_off = pos
                self.member_len = n
            elif code == 4:
                if not interface_ok(p, pos, n):
                    return False
                self.error_off = pos
                self.error_len = n
            elif code == 6:
                if not bus_name_ok(p, pos, n):
                    return False
                self.dest_off = pos
                self.dest_len = n
            else:
                if not bus_name_ok(p, pos, n):
                    return False
                self.sender_off = pos
                self.sender_len = n
                self.unclean = True
            pos += n + 1
        return pos == end

    def parse_body(self) -> bool:
        p = self.p
        pos = self.body_off
        end = self.size
        spos = self.sig_off
        send = spos + self.sig_len if self.sig_len > 0 else spos
        args = 0
        while spos < send:
            start = pos
            c = p[spos]
            stop = spos + 1 if CHARS[c] & 8 or c == 118 else type_end(p, spos, send, 0, 0)
            pos = value_end(p, self.big, p, spos, stop, pos, end, 0)
            if pos < 0:
                return False
            if args < 64:
                # Where string arguments are, for the match rules' argN keys.
                if c == 115 or c == 111:
                    start = ((start + 3) & ~3) + 4
                    self.arg_kind[args] = c
                    self.arg_off[args] = start
                    self.arg_len[args] = pos - start - 1
                else:
                    self.arg_kind[args] = 0
                args += 1
            spos = stop
        self.n_args = args
        return pos == end

    def copy(self) -> Message:
        """An independent message that owns its bytes and shares the fds."""
        other = Message()
        data = take(self.p, 0, self.size)
        other.parse(of_bytes(data), self.size)
        other.owner = data
        other.fds = self.fds
        return other

    def load(self, data: bytes) -> bool:
        """parse() of bytes that this view keeps alive; False if they are not one valid message."""
        p = of_bytes(data)
        if len(data) < 16 or frame_size(p, 0, len(data), 134217728) != len(data):
            return False
        if not self.parse(p, len(data)):
            return False
        self.owner = data
        return True

    # For Python callers: driver, policy logs, tests. Cold.

    def wire(self) -> bytes:
        """The message's bytes as they came."""
        return take(self.p, 0, self.size)

    def body(self) -> bytes:
        return take(self.p, self.body_off, self.body_len)

    @property
    def big_endian(self) -> bool:
        return bool(self.big)

    @property
    def path(self) -> bytes | None:
        return take(self.p, self.path_off, self.path_len) if self.path_len >= 0 else None

    @property
    def interface(self) -> bytes | None:
        return take(self.p, self.iface_off, self.iface_len) if self.iface_len >= 0 else None

    @property
    def member(self) -> bytes | None:
        return take(self.p, self.member_off, self.member_len) if self.member_len >= 0 else None

    @property
    def error_name(self) -> bytes | None:
        return take(self.p, self.error_off, self.error_len) if self.error_len >= 0 else None

    @property
    def destination(self) -> bytes | None:
        return take(self.p, self.dest_off, self.dest_len) if self.dest_len >= 0 else None

    @property
    def sender(self) -> bytes | None:
        """The SENDER field as it came in: what a peer wrote there, which counts for nothing."""
        return take(self.p, self.sender_off, self.sender_len) if self.sender_len >= 0 else None

    @property
    def signature(self) -> bytes:
        return take(self.p, self.sig_off, self.sig_len) if self.sig_len > 0 else b""

    def string_arg(self, n: int) -> bytes | None:
        """Top-level argument `n` if it is a string or object path."""
        if n >= self.n_args or not self.arg_kind[n]:
            return None
        return take(self.p, self.arg_off[n], self.arg_len[n])


def clean(msg: Message) -> bytes:
    """Header (fixed part and fields, unpadded) as forwarded: without SENDER and unknown fields."""
    p = msg.p
    out = [take(p, 0, 16)]
    pos = 16
    end = msg.fields_end
    size = 0
    while pos < end:
        pos = (pos + 7) & ~7
        code = p[pos]
        stop = value_end(p, msg.big, of_bytes(b"v"), 0, 1, pos + 1, end, 2)
        if code <= 9 and code != 7:
            pad = -size % 8
            out.append(b"\0" * pad)
            out.append(take(p, pos, stop - pos))
            size += pad + stop - pos
        pos = stop
    return b"".join(out)
