# cython: language_level=3
from libc.stdint cimport uint64_t

from .message cimport Message
from .routing cimport Routing

cdef class Bus(Routing):
    cdef public object pending
    cdef public bint flushing
    cdef public uint64_t wanted
    cdef public Py_ssize_t installers
    cdef public bint active

    cpdef flush(self)
    cpdef tell(self, Message notice)
    cpdef is_own(self, object who)
    cpdef conn_of(self, object core)
