# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t

from jitney.broker.kdbus.loads cimport get32

from .quick cimport send as quick_send
from .sysio cimport Reader

cdef int _OUT, _HEAD, _TURN

@cython.locals(reader=Reader, buffer=bytearray, n=Py_ssize_t, lost=bint)
cpdef drain(object front, object peer)
@cython.locals(peers=dict, events=int, others=list)
cpdef list serve(object front, list ready)

cdef class Waiter:
    cdef public object front
    cdef public object poll
    cdef public bint stirred

    @cython.locals(until=double, left=double, others=list)
    cpdef list wait(self, int milliseconds)
