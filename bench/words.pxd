# cython: language_level=3
# Words: numbers in the bytes of messages, as the machine has them, for all that makes or checks load.
#
# Invariant: nothing here is a module; the compiler puts it in place. Nothing is checked.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef inline uint32_t get32(const uint8_t* p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return value


cdef inline uint64_t get64(const uint8_t* p) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, p, 8)
    return value


cdef inline void put32(uint8_t* p, uint32_t value) noexcept nogil:
    memcpy(p, &value, 4)


cdef inline void put64(uint8_t* p, uint64_t value) noexcept nogil:
    memcpy(p, &value, 8)


cdef inline Py_ssize_t whole(const uint8_t* p) noexcept nogil:
    """The size of the D-Bus message that begins with these 16 bytes."""
    return 16 + ((get32(p + 12) + 7) & ~7) + get32(p + 4)
