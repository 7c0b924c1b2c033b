# cython: language_level=3
cdef class FdSet:
    cdef readonly list fds
