# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t, uint64_t

from jitney.broker.kdbus.loads cimport get32

from .quick cimport feed, send as quick_send
from .sysio cimport Reader

cdef int _OUT, _HEAD, _TURN

@cython.locals(reader=Reader, buffer=bytearray, n=Py_ssize_t, lost=bint, number=uint64_t, turn=int,
               i=int)
cpdef drain(object front, object peer)
@cython.locals(peers=dict, events=int, others=list, news=list, stream=bint,
               settling=list, ready=list)
cpdef tuple serve(object front, double left)

cdef class Waiter:
    cdef public object front
    cdef public bint stirred

    @cython.locals(until=double, left=double, others=list, ready=bint)
    cpdef list wait(self, int milliseconds)
