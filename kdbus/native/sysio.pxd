# cython: language_level=3
from libc.stdint cimport uint8_t

cdef class Reader:
    cdef readonly bytearray buffer
    cdef readonly object fds
    cdef readonly bytes said
    cdef readonly bint cut
    cdef readonly bint lost
    cdef uint8_t* control
    cpdef Py_ssize_t receive(self, object sock, int fd) except -9

cpdef Py_ssize_t send(object sock, int fd, bytes data) except -9
