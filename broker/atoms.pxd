# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint64_t

from .mem cimport Map64, hash64, of_bytes, same

cdef class Atom:
    cdef readonly bytes text
    cdef readonly uint64_t number
    cdef uint64_t key
    cdef public int64_t refs
    cdef public int64_t watched
    cdef Atom next
    cdef public object name

cdef class Atoms:
    cdef Map64 table
    cdef uint64_t last
    cdef Py_ssize_t count
    cdef uint64_t stamp
    @cython.locals(atom=Atom)
    cdef Atom find(self, const uint8_t* p, Py_ssize_t off, Py_ssize_t n)
    cpdef Atom lookup(self, bytes text)
    @cython.locals(atom=Atom, first=Atom, key=uint64_t)
    cpdef Atom intern(self, bytes text)
    @cython.locals(first=Atom)
    cpdef void release(self, Atom atom)
