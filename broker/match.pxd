# cython: language_level=3
cimport cython
from libc.stdint cimport int32_t, uint8_t, uint64_t

from .atoms cimport Atom, Atoms
from .connection cimport Connection
from .mem cimport Map64, hash64, mix, of_bytes, same
from .message cimport Message
from .names cimport Name

cdef int S_SENDER, S_INTERFACE, S_MEMBER, S_PATH, S_PATH_NS, S_ARG, S_ARG_NS, S_EAVESDROP
cdef bytes DRIVER_NAME

cdef class Arg:
    cdef readonly int index
    cdef readonly int kind
    cdef readonly bytes text
    cdef bint matches(self, Message msg)

cdef class Rule:
    cdef readonly int type
    cdef readonly bytes sender
    cdef readonly bytes interface
    cdef readonly bytes member
    cdef readonly bytes path
    cdef readonly bytes path_namespace
    cdef readonly bytes destination
    cdef public bint eavesdrop
    cdef readonly tuple args
    cdef readonly Connection owner
    cdef public uint64_t number
    cdef uint64_t digest
    cdef readonly Rule earlier
    cdef Rule before
    cdef Rule after
    cdef Shape shape
    cdef uint64_t key
    cdef uint64_t sender_id
    cdef Atom sender_atom
    cdef Atom interface_atom
    cdef Atom member_atom
    cdef Atom path_atom
    cdef Atom arg_atom
    @cython.locals(arg=Arg, key=uint64_t)
    cpdef uint64_t content(self)
    @cython.locals(mine=Arg, its=Arg)
    cpdef bint same_as(self, Rule other)
    @cython.locals(arg=Arg)
    cpdef bint matches(self, Message msg, Connection sender, Connection dest)
    cdef bint sender_is(self, Connection sender)

cdef class Shape:
    cdef int bits
    cdef int arg
    cdef Py_ssize_t count
    cdef Py_ssize_t most
    cdef Map64 table

cdef class MatchIndex:
    cdef Atoms atoms
    cdef list shapes
    cdef dict by_bits
    cdef readonly Py_ssize_t count
    cdef readonly Py_ssize_t n_eavesdrop
    cdef Atom driver
    cdef uint64_t driver_key
    cdef uint64_t stamp
    cdef public uint64_t first
    cdef list found
    cdef Message msg
    cdef Connection sender
    cdef Connection dest
    cdef uint64_t interface_n
    cdef uint64_t member_n
    cdef uint64_t path_n

    @cython.locals(shape=Shape, first=Rule, arg=Arg, key=uint64_t)
    cpdef add(self, Rule rule, Connection owner)
    @cython.locals(shape=Shape)
    cpdef remove(self, Rule rule)
    @cython.locals(first=Rule)
    cdef unlink(self, Shape shape, Rule rule)
    cdef give_back(self, Atom atom)
    @cython.locals(shape=Shape, name=Name, atom=Atom, unicast=bint, bits=int)
    cpdef list collect(self, Message msg, Connection sender, Connection dest)
    @cython.locals(atom=Atom)
    cdef uint64_t number_of(self, Message msg, Py_ssize_t off, Py_ssize_t n)
    @cython.locals(atom=Atom)
    cdef void probe_names(self, Shape shape, uint64_t key) except *
    @cython.locals(atom=Atom)
    cdef void probe_args(self, Shape shape, uint64_t key) except *
    @cython.locals(rule=Rule, owner=Connection)
    cdef void probe(self, Shape shape, uint64_t key) except *

cdef uint64_t blend(uint64_t key, bytes text)
cpdef uint64_t unique_id(bytes name, uint64_t first)
