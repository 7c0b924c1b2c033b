# cython: language_level=3
from libc.stdint cimport uint64_t

cpdef double now() noexcept
cpdef Py_ssize_t read(int fd, bytearray buffer) except -9999
cpdef int answer(int fd, uint64_t unique, int number, bytearray data, Py_ssize_t at, Py_ssize_t n) except -9999
cpdef int answer_ioctl(int fd, uint64_t unique, int number, bytearray data, Py_ssize_t at, Py_ssize_t n) except -9999
cpdef int notify_poll(int fd, uint64_t handle) except -9999
cpdef Py_ssize_t copy_in(int tid, uint64_t address, bytearray buffer, Py_ssize_t n) except -9999
cpdef Py_ssize_t copy_out(int tid, uint64_t address, bytearray buffer, Py_ssize_t at, Py_ssize_t n) except -9999
cpdef Py_ssize_t gather(int tid, list vecs, object target, Py_ssize_t at) except -9999
