# cython: language_level=3
from jitney.broker.connection cimport Connection
from jitney.broker.mem cimport Buffer

from .auth cimport Auth
from .sysio cimport Poller

cdef Py_ssize_t _RECEIVE

cdef class Peer:
    cdef readonly int fd
    cdef readonly object listener
    cdef readonly int state
    cdef public Auth auth
    cdef public bytes nonce
    cdef public object creds
    cdef public Connection conn
    cdef Buffer partial
    cdef list fds_in
    cdef bint with_fds
    cdef readonly bint blocked
    cdef bint wide
    cdef readonly Py_ssize_t turn
    cdef readonly bint held
    cdef Py_ssize_t wanted
    cdef public object store

    cdef discard_fds(self)
    cdef watch(self, Poller poller, bint writable)
