# cython: language_level=3
cimport cython
from libc.stdint cimport uint64_t

cdef class Reply:
    cdef public object callee
    cdef public object caller
    cdef public uint64_t cookie
    cdef public object deadline
    cdef public object done
    cdef public bint linked
    cdef public object name
    cdef public bint queued
    cdef dict __dict__
    cpdef settle(self)

cdef class Replies:
    cdef public list deadlines
    cdef readonly uint64_t last
    cdef public Py_ssize_t n_linked

    @cython.locals(found=list)
    cpdef link(self, Reply reply)
    @cython.locals(other=Reply, waiting=dict, left=list)
    cpdef unlink(self, Reply reply)
    @cython.locals(reply=Reply, i=Py_ssize_t, calls=list)
    cpdef Reply find(self, object callee, object caller, uint64_t cookie)
    cpdef move(self, Reply reply, object callee)
    @cython.locals(reply=Reply)
    cpdef next_deadline(self)
