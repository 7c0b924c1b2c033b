# cython: language_level=3
cimport cython
from libc.stdint cimport uint64_t

from .connection cimport Connection, Received
from .queue cimport Hanging

cdef Py_ssize_t _REQUESTS_MAX

cdef class Reply(Hanging):
    cdef public object callee
    cdef public object caller
    cdef public uint64_t cookie
    cdef public uint64_t deadline
    cdef public object done
    cdef public bint linked
    cdef public object name
    cdef public object crossed
    @cython.locals(own=Connection)
    cpdef settle(self)

@cython.locals(own=Connection)
cdef dict awaited_by(object caller)
@cython.locals(own=Connection)
cdef dict owed_by(object callee)

@cython.locals(made=Reply)
cdef Reply new_reply(Connection caller, object callee, uint64_t cookie, uint64_t deadline, object name, object done)

cdef class Awaiting:
    cpdef tell(self, int number, Received received)

@cython.locals(quick=Awaiting)
cdef tell(object done, int number, Received received)

cdef class Replies:
    cdef public list deadlines
    cdef readonly uint64_t last
    cdef readonly uint64_t latest
    cdef public Py_ssize_t n_linked

    @cython.locals(found=list, waiting=dict)
    cpdef link(self, Reply reply)
    @cython.locals(other=Reply, waiting=dict, left=list)
    cpdef unlink(self, Reply reply)
    @cython.locals(reply=Reply, i=Py_ssize_t, calls=list)
    cpdef Reply find(self, object callee, object caller, uint64_t cookie)
    cpdef move(self, Reply reply, object callee)
    @cython.locals(reply=Reply)
    cpdef next_deadline(self)
