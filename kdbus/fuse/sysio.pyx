# cython: language_level=3, boundscheck=False, wraparound=False
"""Sysio: /dev/fuse and the memory of clients, without an object for each system call.

Invariant: nothing here raises for what the kernel says; a failure is a negative errno. The
interpreter's lock is let go of where a client may keep us waiting, and while there is nothing to
read. Nothing is written outside of a buffer, which is held as long as the kernel writes to it.
`sysio.py` is the same in plain Python.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from libc.errno cimport EFAULT, errno
from libc.stdint cimport int32_t, uint32_t, uint64_t, uintptr_t

from jitney.broker.ticks cimport now_ns
from jitney.compat.csocket cimport iovec

cdef extern from "sys/uio.h":
    ssize_t process_vm_readv(int pid, const iovec* to, unsigned long n_to, const iovec* of,
                             unsigned long n_of, unsigned long flags) nogil
    ssize_t process_vm_writev(int pid, const iovec* of, unsigned long n_of, const iovec* to,
                              unsigned long n_to, unsigned long flags) nogil
    ssize_t writev(int fd, const iovec* parts, int n) nogil

cdef extern from "unistd.h":
    ssize_t c_read "read" (int fd, void* buf, size_t n) nogil
    ssize_t c_write "write" (int fd, const void* buf, size_t n) nogil

cdef enum:
    VECS_MAX = 16
    NOTIFY_POLL = 1

cdef struct Head:
    uint32_t size
    int32_t error
    uint64_t unique

cdef struct IoctlHead:
    Head head
    int32_t result
    uint32_t flags
    uint32_t in_iovs
    uint32_t out_iovs

cdef struct PollNews:
    Head head
    uint64_t handle


cpdef double now() noexcept:
    """Seconds on a clock that only goes forward; that of time.monotonic()."""
    return now_ns() * 1e-9


cpdef Py_ssize_t read(int fd, bytearray buffer) except -9999:
    """The next request; its size."""
    cdef char* p = PyByteArray_AS_STRING(buffer)
    cdef size_t room = PyByteArray_GET_SIZE(buffer)
    cdef ssize_t got
    with nogil:
        got = c_read(fd, p, room)
    return got if got >= 0 else -errno


cdef int put(int fd, void* head, size_t n_head, bytearray data, Py_ssize_t at, Py_ssize_t n) noexcept:
    cdef iovec[2] parts
    cdef ssize_t done
    if n == 0:
        done = c_write(fd, head, n_head)
    else:
        parts[0].iov_base = head
        parts[0].iov_len = n_head
        parts[1].iov_base = PyByteArray_AS_STRING(data) + at
        parts[1].iov_len = n
        done = writev(fd, parts, 2)
    # It was interrupted, or the mount is gone.
    return 0 if done >= 0 else -errno


cpdef int answer(int fd, uint64_t unique, int number, bytearray data, Py_ssize_t at, Py_ssize_t n) except -9999:
    """Answers a request with an errno or with bytes."""
    cdef Head head
    if n < 0 or at < 0 or (n and at + n > PyByteArray_GET_SIZE(data)):
        raise IndexError("outside of the buffer")
    head.size = <uint32_t>(sizeof(Head) + n)
    head.error = -number
    head.unique = unique
    return put(fd, &head, sizeof(Head), data, at, n)


cpdef int answer_ioctl(int fd, uint64_t unique, int number, bytearray data, Py_ssize_t at, Py_ssize_t n) except -9999:
    """Answers an ioctl; with an errno the bytes go to the client as well."""
    cdef IoctlHead head
    if n < 0 or at < 0 or (n and at + n > PyByteArray_GET_SIZE(data)):
        raise IndexError("outside of the buffer")
    head.head.size = <uint32_t>(sizeof(IoctlHead) + n)
    head.head.error = 0
    head.head.unique = unique
    head.result = -number
    head.flags = head.in_iovs = head.out_iovs = 0
    return put(fd, &head, sizeof(IoctlHead), data, at, n)


cpdef int notify_poll(int fd, uint64_t handle) except -9999:
    """Wakes up those who poll."""
    cdef PollNews news
    news.head.size = sizeof(PollNews)
    news.head.error = NOTIFY_POLL
    news.head.unique = 0
    news.handle = handle
    return put(fd, &news, sizeof(PollNews), None, 0, 0)


cpdef Py_ssize_t copy_in(int tid, uint64_t address, bytearray buffer, Py_ssize_t n) except -9999:
    """Up to `n` bytes of a client's memory; how many there are."""
    cdef iovec here, there
    cdef ssize_t got
    if n < 0 or n > PyByteArray_GET_SIZE(buffer):
        raise IndexError("outside of the buffer")
    here.iov_base = PyByteArray_AS_STRING(buffer)
    there.iov_base = <void*><uintptr_t>address
    here.iov_len = there.iov_len = n
    with nogil:
        got = process_vm_readv(tid, &here, 1, &there, 1, 0)
    return got if got >= 0 else -errno


cpdef Py_ssize_t copy_out(int tid, uint64_t address, bytearray buffer, Py_ssize_t at, Py_ssize_t n) except -9999:
    """Writes into a client's memory; how much it took."""
    cdef iovec here, there
    cdef ssize_t done
    if n < 0 or at < 0 or at + n > PyByteArray_GET_SIZE(buffer):
        raise IndexError("outside of the buffer")
    here.iov_base = PyByteArray_AS_STRING(buffer) + at
    there.iov_base = <void*><uintptr_t>address
    here.iov_len = there.iov_len = n
    with nogil:
        done = process_vm_writev(tid, &here, 1, &there, 1, 0)
    return done if done >= 0 else -errno


cpdef Py_ssize_t gather(int tid, list vecs, object target, Py_ssize_t at) except -9999:
    """Copies a client's bytes, given as address and size by turns, one after the other to
    `target[at:]`; how many."""
    cdef Py_buffer room
    cdef iovec here
    cdef iovec[VECS_MAX] there
    cdef Py_ssize_t i, count = len(vecs) // 2
    cdef Py_ssize_t total = 0
    cdef uint64_t address
    cdef Py_ssize_t size
    cdef ssize_t got
    if count > VECS_MAX or at < 0:
        raise IndexError("outside of the buffer")
    for i in range(count):
        address = vecs[2 * i]
        size = vecs[2 * i + 1]
        if size < 0:
            raise IndexError("outside of the buffer")
        there[i].iov_base = <void*><uintptr_t>address
        there[i].iov_len = size
        total += size
    PyObject_GetBuffer(target, &room, PyBUF_WRITABLE)
    try:
        if total > room.len - at:
            raise IndexError("outside of the buffer")
        here.iov_base = <char*>room.buf + at
        here.iov_len = total
        with nogil:
            got = process_vm_readv(tid, &here, 1, there, count, 0)
        return got if got >= 0 else -errno
    finally:
        PyBuffer_Release(&room)
