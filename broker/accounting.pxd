# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t

cdef class User:
    cdef readonly object uid
    cdef readonly int64_t index
    cdef public int64_t bytes
    cdef public int64_t fds
    cdef public int64_t connections
    cdef public int64_t matches
    cdef public int64_t names
    cdef public int64_t replies
    cpdef bint idle(self)

cdef class Accounts:
    cdef readonly dict by_uid
    cdef readonly list users
    cdef readonly User bus
    cpdef User user(self, object uid)
    @cython.locals(user=User)
    cdef void charge(self, int64_t index, Py_ssize_t size, Py_ssize_t fds)
    @cython.locals(user=User)
    cdef void discharge(self, int64_t index, Py_ssize_t size, Py_ssize_t fds)
