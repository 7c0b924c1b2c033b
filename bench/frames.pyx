# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Messages as the load sees them: prepared ones to send, and what must be checked on arrival.

Invariant: only little-endian messages are made, and only such are accepted: a broker must not
change a message's byte order. Nothing here trusts a length it did not check, so that a broken
broker is reported and not crashed upon.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

cdef enum:
    # The specification's bound for a whole message.
    LARGEST = 134217728


cdef uint32_t load32(const uint8_t* p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return value


cdef uint64_t load64(const uint8_t* p) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, p, 8)
    return value


cdef class Form:
    """A message to be sent many times, in memory of its own so that it can be stamped in place.

    `seq_at`, `reply_at`: where in the message its sequence number (64 bits, in the body) and
    its REPLY_SERIAL go; 0 where it has none.
    """

    def __cinit__(self, bytes wire not None, size_t seq_at=0, size_t reply_at=0):
        self.wire = wire
        self.size = len(wire)
        self.data = <uint8_t*>malloc(self.size or 1)
        if self.data == NULL:
            raise MemoryError
        memcpy(self.data, <const char*>wire, self.size)
        if self.size < 16 or frame_size(self.data) != self.size:
            raise ValueError("not one whole little-endian message")
        self.body_at = self.size - load32(self.data + 4)
        if seq_at and (seq_at < self.body_at or seq_at + 8 > self.size):
            raise ValueError("the sequence number is not in the body")
        if reply_at and (reply_at < 16 or reply_at + 4 > self.body_at):
            raise ValueError("the reply's serial is not in the header")
        self.seq_at = seq_at
        self.reply_at = reply_at

    def __dealloc__(self):
        free(self.data)

    cdef void stamp(self, uint32_t serial, uint32_t reply_serial, uint64_t seq) noexcept nogil:
        """Write what differs from message to message."""
        memcpy(self.data + 8, &serial, 4)
        if self.reply_at:
            memcpy(self.data + self.reply_at, &reply_serial, 4)
        if self.seq_at:
            memcpy(self.data + self.seq_at, &seq, 8)


cdef size_t frame_size(const uint8_t* p) noexcept nogil:
    """Size of the message whose first 16 bytes are at `p`; 0 if there cannot be such a message."""
    cdef uint64_t size
    if p[0] != c'l' or p[3] != 1 or p[1] < 1 or p[1] > 4:
        return 0
    size = 16 + ((<uint64_t>load32(p + 12) + 7) & ~<uint64_t>7) + load32(p + 4)
    return size if size <= LARGEST else 0


cdef bint read_fields(const uint8_t* p, size_t size, Fields* out) noexcept nogil:
    """Take from the header what is checked. False if the header is not well formed."""
    cdef size_t end = 16 + <size_t>load32(p + 12)
    cdef size_t at = 16
    cdef uint8_t code, kind
    cdef uint32_t n
    out.body_at = (end + 7) & ~<size_t>7
    if out.body_at > size:
        return False
    out.type = p[1]
    out.serial = load32(p + 8)
    out.reply_serial = out.n_fds = out.sender_size = 0
    out.sender = NULL
    while at < end:
        # A field: code, a signature of one character, the value.
        if at + 8 > end or p[at + 1] != 1 or p[at + 3] != 0:
            return False
        code = p[at]
        kind = p[at + 2]
        at += 4
        if kind == c'g':
            at += <size_t>p[at] + 2
        else:
            n = load32(p + at)
            if kind == c'u':
                if code == 5:
                    out.reply_serial = n
                elif code == 9:
                    out.n_fds = n
                at += 4
            elif kind == c's' or kind == c'o':
                if n >= end - at - 4:
                    return False
                if code == 7:
                    out.sender = p + at + 4
                    out.sender_size = n
                at += 5 + <size_t>n
            else:
                return False
        at = (at + 7) & ~<size_t>7
    return at <= out.body_at


cdef Verdict body_as_sent(
    const uint8_t* got, size_t n, const uint8_t* body, size_t size, size_t seq_at, uint64_t seq
) noexcept nogil:
    """Compare a body with the one that was sent, byte for byte; its sequence number with `seq`.

    `seq_at` counts from the body's begin; `size` or more means that it has none.
    """
    if n != size:
        return DIFFERENT
    if seq_at >= size:
        return SAME if memcmp(got, body, n) == 0 else DIFFERENT
    if memcmp(got, body, seq_at) or memcmp(got + seq_at + 8, body + seq_at + 8, n - seq_at - 8):
        return DIFFERENT
    return SAME if load64(got + seq_at) == seq else OUT_OF_ORDER
