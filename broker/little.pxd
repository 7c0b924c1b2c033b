# cython: language_level=3
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy


cdef inline void put32(uint8_t* p, Py_ssize_t off, uint32_t value) noexcept nogil:
    # Four bytes that a compiler makes one store of.
    p[off] = value & 0xFF
    p[off + 1] = (value >> 8) & 0xFF
    p[off + 2] = (value >> 16) & 0xFF
    p[off + 3] = value >> 24


cdef inline void put_copy(uint8_t* p, Py_ssize_t off, const uint8_t* src, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    memcpy(p + off, src + at, n)
