# cython: language_level=3
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef class Histogram:
    cdef uint64_t* slots
    cdef readonly uint64_t count
    cdef void add(self, uint64_t ns) noexcept nogil

cdef class Link:
    cdef readonly int fd
    cdef readonly bytes name
    cdef readonly object sock
    cdef uint8_t* buf
    cdef Py_ssize_t cap
    cdef Py_ssize_t head
    cdef Py_ssize_t end
    cdef bint with_fds
    cdef readonly int64_t fds_seen
    # What goes out: `pending` more copies of the message, numbered from `serial` on.
    cdef uint8_t* message
    cdef Py_ssize_t size
    cdef Py_ssize_t reply_at
    cdef uint32_t serial
    cdef uint32_t reply_to
    cdef int64_t pending
    cdef uint8_t* batch
    cdef const uint8_t* out
    cdef Py_ssize_t out_off
    cdef Py_ssize_t out_len
    cdef int passed
    cdef bint waiting
    # What comes in.
    cdef uint32_t expected
    cdef const uint8_t* sender
    cdef Py_ssize_t sender_len
    cdef const uint8_t* body
    cdef Py_ssize_t body_len
    cdef readonly int64_t received
    cdef readonly int64_t others
    cdef uint64_t* times
    cdef uint32_t window
    cdef int kind
    cdef int receive(self) noexcept nogil
    cdef Py_ssize_t next(self) noexcept nogil
    cdef int flush(self) noexcept nogil
    cdef int check(self, const uint8_t* p, Py_ssize_t size) noexcept nogil
