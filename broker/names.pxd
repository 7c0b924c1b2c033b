# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t
from .atoms cimport Atom, Atoms
from .connection cimport Connection

cdef class Owner:
    cdef readonly Connection conn
    cdef public int64_t flags

cdef class Name:
    cdef readonly bytes text
    cdef readonly Atom atom
    cdef readonly Connection owner
    cdef readonly list queue
    cdef public object activator
    @cython.locals(owner=Owner)
    cpdef Owner find(self, Connection conn)

cdef class Registry:
    cdef Atoms atoms
    cdef public object listener
    cdef readonly dict names
    cpdef Name get(self, bytes text)
    @cython.locals(name=Name, atom=Atom)
    cpdef Name ensure(self, bytes text)
    cpdef forget(self, Name name)
    @cython.locals(name=Name, first=Owner, claim=Owner)
    cpdef int request(self, Connection conn, bytes text, int64_t flags) except -1
    @cython.locals(name=Name, claim=Owner)
    cpdef int release(self, Connection conn, bytes text) except -1
    @cython.locals(claim=Owner)
    cdef enqueue(self, Name name, Connection conn, int64_t flags)
    cpdef release_all(self, Connection conn, bint latest_first)
    cdef unqueue(self, Name name, Owner claim)
    @cython.locals(new=Connection, head=Owner)
    cdef promote(self, Name name, Connection old)
