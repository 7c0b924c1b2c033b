# cython: language_level=3
cimport cython
from libc.stdint cimport uint64_t

from jitney.broker.kdbus.bus cimport Bus
from jitney.broker.kdbus.loads cimport get64
from jitney.broker.kdbus.message cimport Message

cdef uint64_t _VEC_MAX, _ANYBODY, _SIGN

cdef class Payload:
    cdef bint take(self, Message message, uint64_t where, uint64_t size) except -1

@cython.locals(size=uint64_t, flags=uint64_t, dst=uint64_t, source=uint64_t, timeout=uint64_t,
               priority=uint64_t, message=Message, total=uint64_t, end=uint64_t, item=uint64_t,
               length=uint64_t, kind=uint64_t, room=uint64_t, where=uint64_t, name=bytes)
cpdef Message read(Bus bus, uint64_t sender, bytearray buffer, uint64_t at, uint64_t n, bint sync, Payload payload)
