# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint64_t

from .pool cimport Slice

cdef class Hanging:
    cdef public bint queued
    cpdef settle(self)

cdef class Entry:
    cdef public Slice slice
    cdef public Py_ssize_t size
    cdef public int64_t priority
    cdef public object user
    cdef public object fds
    cdef public list patches
    cdef public object reply
    cdef public object name
    cdef public object kept
    cdef public Py_ssize_t n_fds

@cython.locals(made=Entry)
cdef Entry new_entry(Slice part, int64_t priority, object user, object fds, list patches)

cdef class Queue:
    cdef public dict entries
    cdef public list urgent
    cdef readonly uint64_t last

    cpdef add(self, Entry entry)
    @cython.locals(number=uint64_t, entry=Entry)
    cpdef tuple first(self, object priority)
    @cython.locals(entry=Entry)
    cdef Entry pop(self)
    cpdef Entry remove(self, uint64_t number)
    cdef tidy(self)
