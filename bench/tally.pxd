# cython: language_level=3
from libc.stdint cimport uint64_t

cdef enum:
    STEPS = 64      # buckets an octave: no value is off by more than 1.6 %
    OCTAVES = 42    # up to 2 ** 42 ns, more than an hour

cdef class Tally:
    cdef uint64_t[STEPS * OCTAVES] buckets
    cdef readonly uint64_t count
    cdef readonly uint64_t largest
    cdef void add(self, uint64_t ns) noexcept nogil
    cdef double ceiling(self, int bucket)
