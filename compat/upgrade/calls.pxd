# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint64_t

from jitney.broker.bus cimport Bus
from jitney.broker.connection cimport Connection
from jitney.broker.replies cimport Replies, Slot

from ..front cimport Front
from ..hub cimport Hub
from ..peer cimport Peer

cdef uint64_t PLACES, READERS, AWAITED, OVER, _FIRST, _WIDTH
cdef int _TRIES

cdef class KeptSlot(Slot):
    cdef Py_ssize_t place

cdef class KeptReplies(Replies):
    cdef readonly int fd
    cdef object memory
    cdef uint64_t[::1] cells
    cdef Py_ssize_t next_place
    @cython.locals(slot=KeptSlot, at=Py_ssize_t)
    cpdef bint expect(self, Connection caller, Connection callee, uint64_t serial, double deadline, int64_t since) except -1
    @cython.locals(kept=KeptSlot, at=Py_ssize_t)
    cdef void end(self, Slot slot)
    @cython.locals(at=Py_ssize_t, how=uint64_t)
    cdef Py_ssize_t room(self) noexcept
    cdef void flushed(self) noexcept
    @cython.locals(count=uint64_t)
    cdef void reading(self, uint64_t number) noexcept
    cpdef install(self, Bus bus)

cdef class KeptHub(Hub):
    cdef public KeptReplies calls
    cdef read(self, Peer peer)
    cpdef flush(self)
