# cython: language_level=3
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .connection cimport Connection
from .message cimport Message

cdef class Guard:
    cdef readonly list modules
    cdef readonly uint32_t generation
    cdef bint watching
    cdef uint32_t seen
    cdef const uint8_t[::1] held
    cdef dict numbers
    cdef uint32_t last_number
    cdef uint64_t[4] keys

    cpdef watch(self, object memory)
    cpdef unwatch(self)
    @cython.locals(number=uint32_t)
    cpdef enter(self, Connection conn, object subject)
    @cython.locals(now=uint32_t)
    cdef int look(self) except -1
    cpdef flush(self)
    @cython.locals(number=uint32_t, key=uint64_t, slot=uint32_t, high=uint64_t)
    cpdef bint open_to(self, Connection sender, Connection receiver) except -1
    cdef bint passes(self, object bus, Connection sender, Connection receiver, Message msg, bint asked) except -1
    cdef bint hears(self, object bus, Connection receiver, Message msg, Connection sender) except -1
    cpdef object send(self, Connection sender, Connection receiver, Message msg, bint requested)
    cpdef check_own(self, Connection conn, bytes name)
    cpdef check_eavesdrop(self, Connection conn)
