# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint64_t

from .area cimport Area
from .pool cimport Slice

cdef class Message:
    cdef public uint64_t flags
    cdef public int64_t priority
    cdef public uint64_t dst_id
    cdef public uint64_t src_id
    cdef public uint64_t payload_type
    cdef public uint64_t cookie
    cdef public uint64_t timeout
    cdef public bytes dst_name
    cdef public tuple bloom
    cdef public list parts
    cdef bytearray lent
    cdef Py_ssize_t lent_at
    cdef Py_ssize_t lent_size
    cdef public object fds
    cdef public Py_ssize_t memfds
    cdef public bint plain
    cdef public Slice placed
    cdef public object source
    cdef public object entry
    cdef public object caller
    cdef public uint64_t number
    cdef public bytes stamp
    cdef public dict meta
    cdef public uint64_t kind
    cdef public bytes name
    cdef public uint64_t old_id
    cdef public uint64_t new_id

    cdef begin(self, uint64_t dst_id, uint64_t flags, uint64_t cookie, uint64_t timeout)
    cdef lend(self, bytearray data, Py_ssize_t at, Py_ssize_t size)
    cpdef unfold(self)
    cpdef add_raw(self, uint64_t kind, bytes data)
    cpdef add_data(self, object data)
    @cython.locals(part=tuple, size=Py_ssize_t, data=bytes)
    cdef Py_ssize_t measure(self, list meta) except -1
    @cython.locals(part=tuple, size=Py_ssize_t, end=Py_ssize_t, n=Py_ssize_t, at_item=Py_ssize_t,
                   payload=Py_ssize_t, data=bytes)
    cdef write(self, Area area, Py_ssize_t at, list meta)
