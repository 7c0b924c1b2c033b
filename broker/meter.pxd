# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint64_t

cdef class Histogram:
    cdef uint64_t[22] buckets
    cdef readonly uint64_t count
    cdef readonly int64_t sum
    @cython.locals(i=int, rest=int64_t)
    cpdef void note(self, int64_t microseconds)
    @cython.locals(i=int)
    cdef add(self, Histogram other, Histogram before)
    @cython.locals(i=int)
    cdef copy_from(self, Histogram other)

cdef class Counts:
    cdef uint64_t[5] sent
    cdef uint64_t[5] received
    cdef readonly uint64_t sent_bytes
    cdef readonly uint64_t received_bytes
    cdef readonly uint64_t denied
    cdef readonly uint64_t limited
    cdef public uint64_t dropped
    cdef public uint64_t gone
    cdef readonly Histogram replies
    cdef public Histogram waits
    cdef Counts settled

    cpdef void refused(self, str code)
    cdef void answered(self, int64_t microseconds)
    cdef bint changed(self)
    @cython.locals(before=Counts, i=int)
    cdef add_to(self, Counts total)
    @cython.locals(before=Counts, i=int)
    cdef settle(self)
