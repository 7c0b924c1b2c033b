# cython: language_level=3
"""Ticks: what time it is, for records that are stamped one by one.

Invariant: nanoseconds on a clock that only goes forward, the same that `time.monotonic_ns()` shows;
`ticks.py` is the same in plain Python. No object is made for it.
"""

from libc.stdint cimport uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef uint64_t now_ns() noexcept nogil:
    cdef timespec at
    clock_gettime(CLOCK_MONOTONIC, &at)
    return <uint64_t>at.tv_sec * 1000000000 + <uint64_t>at.tv_nsec
