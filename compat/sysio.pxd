# cython: language_level=3
from libc.stdint cimport int64_t, uint8_t

cdef int64_t now() noexcept

cpdef int accept_one(int fd) except -200
cpdef void close_socket(int fd) noexcept
cpdef void widen(int fd) noexcept
cpdef object option(int fd, int number, Py_ssize_t size)

cdef class Intake:
    cdef public list fds
    cdef public bint truncated
    cdef Py_ssize_t recv(self, int fd, uint8_t* p, Py_ssize_t off, Py_ssize_t n, bint with_fds,
                         uint8_t* p2, Py_ssize_t n2)

cdef class Outlet:
    cdef void* vectors
    cdef Py_ssize_t count
    cdef Py_ssize_t size
    cdef object fds
    cdef void start(self, object fds)
    cdef bint add(self, const uint8_t* p, Py_ssize_t off, Py_ssize_t n)
    cdef Py_ssize_t send(self, int fd)

cdef Py_ssize_t send_one(int fd, const uint8_t* p, Py_ssize_t off, Py_ssize_t n)

cdef class Poller:
    cdef int epfd
    cdef void* events
    cdef int capacity
    cdef bint shared
    cdef public object lock
    cpdef void close(self) noexcept
    cdef int add(self, int fd) except -2
    cdef int modify(self, int fd, bint readable, bint writable) except -2
    cdef int remove(self, int fd) except -2
    cdef void shut(self, int fd) noexcept
    cdef int wait(self, int timeout) except -2
    cdef int spin(self, int microseconds) except -2
    cdef int wait_without(self, int timeout) except -2
    cdef int fd_at(self, int i)
    cdef int events_at(self, int i)
