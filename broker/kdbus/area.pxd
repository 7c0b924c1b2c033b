# cython: language_level=3
from libc.stdint cimport uint8_t, uint64_t

cdef class Area:
    cdef uint8_t[::1] held
    cdef object memory
    cdef uint8_t* p
    cdef readonly Py_ssize_t size
    cdef int put64(self, Py_ssize_t at, uint64_t value) except -1
    cdef Py_ssize_t put(self, Py_ssize_t at, object data) except -1
    cdef Py_ssize_t copy(self, Py_ssize_t at, bytearray data, Py_ssize_t start, Py_ssize_t n) except -1
    cdef int zero(self, Py_ssize_t at, Py_ssize_t n) except -1
    cpdef release(self)
