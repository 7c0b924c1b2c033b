# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t

from jitney.broker.accounting cimport Accounts, Tally
from jitney.broker.connection cimport Connection

from .peer cimport Peer
from .sysio cimport Poller

cdef int _OPEN
cdef Py_ssize_t _RECEIVE, _LEAST
cdef int64_t _PATIENCE

cdef class Throttle:
    cdef Accounts accounts
    cdef readonly int64_t max_bytes
    cdef readonly int64_t max_fds
    cpdef set_limits(self, object limits)
    cdef bint over(self, Tally tally) noexcept
    @cython.locals(tally=Tally)
    cdef bint must_wait(self, Peer peer) noexcept
    cdef void spent(self, Peer peer, int64_t microseconds) noexcept
    cdef hold(self, Peer peer, Poller poller)
    @cython.locals(tally=Tally, owner=Connection, peer=Peer, released=list)
    cdef release(self, Poller poller)
