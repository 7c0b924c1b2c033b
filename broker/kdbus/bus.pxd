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
    cdef public object name
    cdef public uint64_t flags
    cdef public object bloom_size
    cdef public object bloom_hashes
    cdef public uint64_t attach
    cdef public object uid
    cdef public object gid
    cdef public object creator
    cdef public object creator_facts
    cdef public object id
    cdef public bytes id128
    cdef public object next
    cdef public object policy
    cdef public dict endpoints
    cdef public object default

    cpdef flush(self)
    cpdef tell(self, Message notice)
    cpdef is_own(self, object who)
    cpdef conn_of(self, object core)
