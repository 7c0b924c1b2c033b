# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from .connection cimport Connection
from .mem cimport Map64

cdef class Slot:
    cdef Connection caller
    cdef Connection callee
    cdef uint64_t serial
    cdef double deadline
    cdef int64_t since
    cdef Slot prev
    cdef Slot next
    cdef Slot earlier
    cdef Slot later
    cdef bint of(self, Connection caller, Connection callee, uint64_t serial) except -1

cdef class Replies:
    cdef Slot spare
    cdef int n_spare
    cdef Slot first
    cdef Slot last
    cdef Py_ssize_t count
    @cython.locals(slot=Slot)
    cpdef bint expect(self, Connection caller, Connection callee, uint64_t serial, double deadline, int64_t since) except -1
    @cython.locals(slot=Slot)
    cdef Slot find(self, Connection caller, Connection callee, uint64_t serial)
    cdef void end(self, Slot slot)
    @cython.locals(slot=Slot)
    cpdef bint give_up(self, Connection caller, Connection callee, uint64_t serial) except -1
    cpdef void drop_caller(self, Connection conn)
    @cython.locals(slot=Slot)
    cpdef list owed_by(self, Connection conn)
    @cython.locals(slot=Slot)
    cpdef list expired(self, double now)
    cpdef double next_deadline(self)
    @cython.locals(slot=Slot)
    cpdef int64_t oldest_owed(self, Connection conn)
    @cython.locals(slot=Slot)
    cpdef list owed(self, Connection conn, int limit)
    @cython.locals(slot=Slot)
    cpdef list awaited(self, Connection conn, int limit)
