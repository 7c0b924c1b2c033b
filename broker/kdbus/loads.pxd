# cython: language_level=3
from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef inline uint64_t get64(bytearray data, Py_ssize_t at) noexcept:
    # Eight bytes that a compiler makes one load of.
    cdef const uint8_t* p = <const uint8_t*>PyByteArray_AS_STRING(data) + at
    return (
        <uint64_t>p[0] | <uint64_t>p[1] << 8 | <uint64_t>p[2] << 16 | <uint64_t>p[3] << 24
        | <uint64_t>p[4] << 32 | <uint64_t>p[5] << 40 | <uint64_t>p[6] << 48 | <uint64_t>p[7] << 56
    )


cdef inline uint32_t get32(bytearray data, Py_ssize_t at) noexcept:
    cdef const uint8_t* p = <const uint8_t*>PyByteArray_AS_STRING(data) + at
    return <uint32_t>p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24


cdef inline void set64(bytearray data, Py_ssize_t at, uint64_t value) noexcept:
    cdef uint8_t* p = <uint8_t*>PyByteArray_AS_STRING(data) + at
    cdef int i
    for i in range(8):
        p[i] = <uint8_t>(value >> (8 * i))


cdef inline void set32(bytearray data, Py_ssize_t at, uint32_t value) noexcept:
    cdef uint8_t* p = <uint8_t*>PyByteArray_AS_STRING(data) + at
    cdef int i
    for i in range(4):
        p[i] = <uint8_t>(value >> (8 * i))
