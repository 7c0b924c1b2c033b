# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t, uint64_t

from jitney.broker.kdbus.loads cimport get32

from .quick cimport feed, send as quick_send
from .slots cimport FrontSlots, HandleSlots, PeerSlots
from .sysio cimport Poll, Reader, milliseconds_now

cdef int _OUT, _HEAD, _TURN, _ROUND

@cython.locals(reader=Reader, buffer=bytearray, n=Py_ssize_t, lost=bint, number=uint64_t, turn=int,
               i=int, fds=object, said=object)
cpdef drain(FrontSlots front, PeerSlots peer)
@cython.locals(peers=dict, events=int, settling=list, most=Py_ssize_t, poll=Poll, i=int, n=int, fd=int,
               peer=object)
cpdef int serve(FrontSlots front, int milliseconds) except -9
@cython.locals(news=list, handle=HandleSlots)
cdef pass_on(FrontSlots front)

cdef class Waiter:
    cdef public FrontSlots front
    cdef public bint stirred

    @cython.locals(until=uint64_t, now=uint64_t, ready=int, front=FrontSlots)
    cpdef list wait(self, int milliseconds)
