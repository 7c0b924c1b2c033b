# cython: language_level=3
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef class Form:
    cdef readonly bytes wire
    cdef uint8_t* data
    cdef readonly size_t size
    cdef readonly size_t body_at
    cdef readonly size_t seq_at
    cdef readonly size_t reply_at
    cdef void stamp(self, uint32_t serial, uint32_t reply_serial, uint64_t seq) noexcept nogil

cdef struct Fields:
    size_t body_at
    uint32_t type
    uint32_t serial
    uint32_t reply_serial
    uint32_t n_fds
    const uint8_t* sender
    uint32_t sender_size

cdef uint32_t load32(const uint8_t* p) noexcept nogil
cdef uint64_t load64(const uint8_t* p) noexcept nogil
cdef size_t frame_size(const uint8_t* p) noexcept nogil
cdef bint read_fields(const uint8_t* p, size_t size, Fields* out) noexcept nogil

cdef enum Verdict:
    SAME = 0
    OUT_OF_ORDER = 1
    DIFFERENT = 2

cdef Verdict body_as_sent(
    const uint8_t* got, size_t n, const uint8_t* body, size_t size, size_t seq_at, uint64_t seq
) noexcept nogil
