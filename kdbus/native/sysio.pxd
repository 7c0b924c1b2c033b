# cython: language_level=3
from libc.stdint cimport uint8_t, uint64_t

cdef class Reader:
    cdef readonly bytearray buffer
    cdef readonly object fds
    cdef readonly bytes said
    cdef readonly bint cut
    cdef readonly bint lost
    cdef uint8_t* control
    cpdef Py_ssize_t receive(self, object sock, int fd) except -9

cdef class Poll:
    cdef object epoll
    cdef int fd
    cdef void* events
    cdef Py_ssize_t room
    cdef int timer
    cdef uint64_t due
    cdef bint arm(self, int milliseconds)
    cdef int without_timer(self, int n)
    cpdef void close(self) noexcept
    cdef int wait(self, int milliseconds, Py_ssize_t most) except -9
    cdef int fd_at(self, int i)
    cdef int events_at(self, int i)

cdef Py_ssize_t send(object sock, int fd, bytearray data, Py_ssize_t size) except -9
cdef uint64_t milliseconds_now() noexcept
