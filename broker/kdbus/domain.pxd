# cython: language_level=3
from libc.stdint cimport uint64_t

cdef uint64_t _NEVER

cdef class Domain:
    cdef dict __dict__
    cdef public object lock
    cdef public uint64_t soonest
    cdef public object monotonic

    cpdef watch(self, uint64_t deadline)
