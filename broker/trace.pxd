# cython: language_level=3
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .connection cimport Connection
from .match cimport Rule
from .little cimport put32, put_copy
from .mem cimport Buffer, Map64, copy, of_bytes, zero
from .message cimport Message
from .ticks cimport now_ns

cdef int _CLOSED, _PASSED, _JUDGED
cdef uint32_t _NO_UID
cdef Py_ssize_t _BATCH, _ROOM, _LONGEST, _FOLLOWED
cdef bytes DRIVER, NOT_ACTIVE

cdef Py_ssize_t put(uint8_t* p, Py_ssize_t pos, const uint8_t* src, Py_ssize_t off, Py_ssize_t n) noexcept
cdef uint32_t uid_of(Connection conn) except? 0xFFFFFFFE

cdef class Tracer:
    cdef object bus
    cdef readonly Connection conn
    cdef bytes head
    cdef object ready
    cdef readonly list rules
    cdef readonly object users
    cdef readonly Py_ssize_t every
    cdef readonly Py_ssize_t payload
    cdef readonly bint judged_only
    cdef bint follows
    cdef Map64 calls
    cdef Buffer pending
    cdef readonly Py_ssize_t count
    cdef readonly uint32_t lost
    cdef Py_ssize_t turn
    cdef uint32_t serial
    cdef bint armed

    cpdef note(self, Message msg, Connection sender, Connection dest)
    cpdef verdict(self, Message msg, Connection sender, Connection dest, bytes error, bytes why)
    cdef bint concerns(self, Connection sender, Connection dest) except -1
    cdef bint takes(self, Message msg, Connection sender, Connection dest) except -1
    @cython.locals(rule=Rule)
    cdef bint asked_for(self, Message msg, Connection sender, Connection dest) except -1
    @cython.locals(out=Buffer, stamp=uint64_t, cut=uint32_t, name=bytes, pos=Py_ssize_t, n_payload=Py_ssize_t, path_len=Py_ssize_t)
    cdef record(self, uint32_t kind, Message msg, Connection sender, Connection dest, bytes error, bytes why)
    cdef arm(self)
    @cython.locals(out=Buffer, base=Py_ssize_t)
    cpdef ship(self)
    @cython.locals(out=Buffer, n=Py_ssize_t)
    cdef clear(self, bint large)
