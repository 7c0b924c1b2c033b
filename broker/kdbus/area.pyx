# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Area: a pool's memory, for whoever writes messages into it.

Invariant: nothing is written outside of it, nor after `release()`. `area.py` is the same in plain
Python.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset


cdef class Area:
    """Over any memory that can be written to; what it is over cannot be closed before it is."""

    def __init__(self, memory):
        self.memory = memory
        self.held = memory
        self.p = &self.held[0]
        self.size = self.held.shape[0]

    cpdef release(self):
        self.p = NULL
        self.size = 0
        self.held = None
        self.memory = None

    cdef int put64(self, Py_ssize_t at, uint64_t value) except -1:
        if at < 0 or at > self.size - 8:
            raise IndexError("outside of the pool")
        cdef uint8_t* p = self.p + at
        cdef int i
        for i in range(8):
            p[i] = <uint8_t>(value >> (8 * i))
        return 0

    cdef Py_ssize_t put(self, Py_ssize_t at, object data) except -1:
        """Writes any bytes; how many. What is not bytes knows how to get there, `into()`."""
        cdef Py_buffer buffer
        cdef Py_ssize_t n
        if PyBytes_CheckExact(data):
            n = PyBytes_GET_SIZE(data)
            if at < 0 or at > self.size - n:
                raise IndexError("outside of the pool")
            memcpy(self.p + at, PyBytes_AS_STRING(data), n)
            return n
        if hasattr(data, "into"):
            n = len(data)
            if at < 0 or at > self.size - n:
                raise IndexError("outside of the pool")
            data.into(self.memory, at)
            return n
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        n = buffer.len
        try:
            if at < 0 or at > self.size - n:
                raise IndexError("outside of the pool")
            memcpy(self.p + at, buffer.buf, n)
        finally:
            PyBuffer_Release(&buffer)
        return n

    cdef Py_ssize_t copy(self, Py_ssize_t at, bytearray data, Py_ssize_t start, Py_ssize_t n) except -1:
        """Writes `data[start : start + n]`, without a view of it."""
        if n < 0 or at < 0 or at > self.size - n or start < 0 or start > PyByteArray_GET_SIZE(data) - n:
            raise IndexError("outside of the pool")
        memcpy(self.p + at, PyByteArray_AS_STRING(data) + start, n)
        return n

    cdef int zero(self, Py_ssize_t at, Py_ssize_t n) except -1:
        if at < 0 or n < 0 or at > self.size - n:
            raise IndexError("outside of the pool")
        memset(self.p + at, 0, n)
        return 0
