# cython: language_level=3
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .connection cimport Connection
from .mem cimport Map64, hash64, mix, same
from .message cimport Message

cdef uint64_t _SHUT

cdef class Case:
    cdef uint64_t sender
    cdef uint32_t target
    cdef int type
    cdef bint requested
    cdef bytes destination, path, interface, member
    cdef Case next
    cdef bint fits(self, Connection sender, uint32_t target, Message msg, bint requested) except -1

cdef bint is_field(const uint8_t* p, Py_ssize_t off, Py_ssize_t n, bytes text) except -1

cdef class Guard:
    cdef readonly list modules
    cdef readonly uint32_t generation
    cdef bint watching
    cdef uint32_t seen
    cdef const uint8_t[::1] held
    cdef dict numbers
    cdef uint32_t last_number
    cdef Map64 cases
    cdef readonly Py_ssize_t n_cases
    cdef uint64_t[4] keys

    cpdef watch(self, object memory)
    cpdef unwatch(self)
    @cython.locals(number=uint32_t)
    cpdef enter(self, Connection conn, object subject)
    @cython.locals(now=uint32_t)
    cdef int look(self) except -1
    cpdef flush(self)
    @cython.locals(number=uint32_t, key=uint64_t, have=uint64_t, slot=uint32_t, high=uint64_t)
    cpdef bint open_to(self, Connection sender, Connection receiver) except -1
    @cython.locals(key=uint64_t)
    cdef uint64_t place(self, Connection sender, uint32_t target, Message msg) except? 0
    @cython.locals(target=uint32_t, case=Case)
    cdef bint known(self, Connection sender, Connection receiver, Message msg, bint requested) except -1
    @cython.locals(target=uint32_t, key=uint64_t, case=Case)
    cdef keep(self, Connection sender, Connection receiver, Message msg, bint requested)
    cdef bint passes(self, object bus, Connection sender, Connection receiver, Message msg, bint asked) except -1
    cdef bint hears(self, object bus, Connection receiver, Message msg, Connection sender) except -1
    @cython.locals(keeps=cython.bint)
    cpdef object send(self, Connection sender, Connection receiver, Message msg, bint requested)
    cpdef check_own(self, Connection conn, bytes name)
    cpdef check_eavesdrop(self, Connection conn)
