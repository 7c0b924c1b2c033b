# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .connection cimport Connection
from .match cimport unique_id
from .mem cimport Map64, hash64, of_bytes, same, take
from .message cimport Message
from .replies cimport Replies

cdef int _SEE, _TALK, _OWN, _CALLS, _BROADCASTS, _PASSED, _DENIED, _HIDDEN
cdef bytes DRIVER, NAME_OWNER_CHANGED

cdef class Grant:
    cdef readonly bytes name
    cdef readonly int level
    cdef readonly bint subtree
    cdef readonly int what
    cdef readonly bytes path
    cdef readonly bint below
    cdef readonly bytes interface
    cdef readonly bytes member
    @cython.locals(n=Py_ssize_t, want=Py_ssize_t)
    cpdef bint fits(self, int what, Message msg) except -1

cdef class Verdict:
    cdef readonly bytes text
    cdef readonly int level
    cdef readonly list grants
    cdef readonly bint calls_open
    cdef readonly bint signals_open
    cdef uint32_t version
    cdef Verdict next

cdef class Endpoint:
    cdef readonly bytes name
    cdef readonly bint filtering
    cdef readonly bint sloppy
    cdef public object learned
    cdef public object holder
    cdef readonly set connections
    cdef readonly int64_t n_refused
    cdef Replies replies
    cdef Map64 table
    cdef public uint64_t first
    cdef readonly list grants
    cdef dict by_name
    cdef Map64 names
    cdef Map64 peers
    cdef Py_ssize_t n_names
    cdef Py_ssize_t n_peers

    cpdef enter(self, Connection conn)
    cpdef leave(self, Connection conn)
    @cython.locals(seen=set)
    cdef notice(self, Connection conn, Connection peer)
    @cython.locals(conn=Connection)
    cpdef losing(self, bytes text, Connection old)
    @cython.locals(key=uint64_t, first=Verdict, found=Verdict)
    cdef Verdict of_name(self, const uint8_t* p, Py_ssize_t off, Py_ssize_t n)
    @cython.locals(found=Verdict, text=bytes)
    cdef Verdict of_peer(self, Connection peer)
    @cython.locals(grant=Grant)
    cdef weigh(self, Verdict verdict, bytes text)
    @cython.locals(grant=Grant)
    cdef conclude(self, Verdict verdict)
    cdef int level_of(self, bytes text) except -1
    cpdef int level(self, Connection conn, bytes text) except -1
    cpdef int level_on(self, Connection conn, Connection peer) except -1
    cpdef bint may_own(self, bytes text) except -1
    @cython.locals(found=Verdict, grant=Grant)
    cpdef int judge(self, Connection conn, Message msg, Connection dest) except -1
    cdef bint lets_out(self, object bus, Connection conn, Message msg, Connection dest) except -1
    cdef bint lets_in(self, Connection conn, Message msg, Connection sender, bint requested) except -1
    cdef bint hears(self, Connection conn, Message msg, Connection sender) except -1
    @cython.locals(found=Verdict, grant=Grant)
    cdef bint open_to(self, Connection conn, Message msg, Connection sender) except -1
    @cython.locals(off=Py_ssize_t, n=Py_ssize_t)
    cdef bint of_the_bus(self, Connection conn, Message msg) except -1

@cython.locals(other=Connection)
cpdef forget(Connection conn)
