# cython: language_level=3
from libc.stdint cimport uint64_t

cdef uint64_t now_ns() noexcept nogil
