# cython: language_level=3
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from jitney.compat.csocket cimport epoll_event

cdef enum:
    EVENTS = 512
    # A broker that says nothing for so long has lost something; milliseconds.
    PATIENCE = 20000
    # Turns of a busy loop are no measure of time: ask the clock now and then.
    LOOK = 16384

# What a step may come to; anything negative ends the measurement.
cdef enum:
    FINE = 0
    CLOSED = -1
    BAD_FRAME = -2
    BAD_KIND = -3
    BAD_ORDER = -4
    BAD_SENDER = -5
    BAD_BODY = -6
    UNWANTED = -7
    SILENCE = -8
    SYSTEM = -9
    NO_MEMORY = -10
    REFUSED = -11

cdef uint32_t reply_serial(const uint8_t* p) noexcept nogil
cdef int fail(int code, Link link) except -1
cdef int push(Poll poll, Link link, int i) except -1

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
    cdef public int64_t received
    cdef readonly int64_t others
    cdef uint64_t* times
    cdef uint32_t window
    cdef int kind
    cdef int receive(self) noexcept nogil
    cdef Py_ssize_t next(self) noexcept nogil
    cdef int flush(self) noexcept nogil
    cdef int check(self, const uint8_t* p, Py_ssize_t size) noexcept nogil

cdef class Poll:
    cdef int epfd
    cdef list links
    cdef epoll_event events[EVENTS]
    cdef int wait(self, bint busy) noexcept nogil
    cdef int watch(self, Link link, int i, bint writable)
