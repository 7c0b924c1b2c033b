# cython: language_level=3
cimport cython
from libc.stdint cimport uint64_t

from jitney.broker.kdbus.bus cimport Bus
from jitney.broker.kdbus.connection cimport Connection
from jitney.broker.kdbus.message cimport Message
from jitney.broker.kdbus.pool cimport Slice

from ..ordinary cimport Payload

cdef uint64_t _EXPECT_REPLY
cdef Py_ssize_t _VECS_MAX

cdef class Apart(Payload):
    cdef list vecs
    cdef Py_ssize_t total

cdef class Placed:
    cdef readonly Py_ssize_t size
    cdef readonly Py_ssize_t at

cdef class Places:
    cdef readonly set filling

    @cython.locals(bus=Bus, found=Connection)
    cpdef Connection receiver(self, Connection conn, Message message, object creds)
    @cython.locals(found=Connection, part=Slice, items=Py_ssize_t, size=Py_ssize_t,
                   at=Py_ssize_t, i=Py_ssize_t, n=Py_ssize_t, parts=list, old=tuple)
    cpdef tuple begin(self, Connection conn, Message message, list vecs, Py_ssize_t total, object creds)
    @cython.locals(part=Slice)
    cpdef undo(self, Connection conn, Connection receiver, Message message)
