# cython: language_level=3
cimport cython
from libc.stdint cimport uint64_t

from jitney.broker.kdbus.connection cimport Transport

from .sysio cimport notify_poll

cdef class FuseTransport(Transport):
    cdef dict __dict__
    cdef readonly int device
    cdef readonly object node
    cdef readonly object pool
    cdef public set polls

    @cython.locals(handle=uint64_t)
    cpdef wake(self)
