# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint8_t

from jitney.broker.bus cimport Bus
from jitney.broker.connection cimport Connection
from jitney.broker.fds cimport FdSet
from jitney.broker.mem cimport Buffer, copy, of_bytes, pooled, take, trim, view
from jitney.broker.message cimport Message, frame_size
from jitney.broker.queue cimport Payload, Queue

from .accept cimport Acceptor
from .auth cimport Auth
from .front cimport Front
from .gather cimport gather
from .peer cimport Peer
from .throttle cimport Throttle
from .sysio cimport Intake, Outlet, Poller, close_socket, now, send_one, widen

cdef Py_ssize_t _RECEIVE
cdef Py_ssize_t LARGE
cdef Py_ssize_t KEEP
cdef int _EAGAIN, _OPEN, _CLOSED, _WRITABLE, _HUNG_UP

cdef class Hub:
    cdef readonly Bus bus
    cdef readonly Front front
    cdef public object loop
    cdef readonly Poller poller
    cdef Intake intake
    cdef Outlet outlet
    cdef Buffer buffer
    cdef Message msg
    cdef readonly list peers
    cdef readonly Py_ssize_t n_peers
    cdef readonly dict incomplete
    cdef readonly dict fd_waits
    cdef list loans
    cdef list released
    cdef list foreign
    cdef public bint stirred
    cdef readonly Acceptor acceptor
    cdef readonly Throttle throttle
    cdef object timer
    cdef object trimmer
    cdef double timer_at
    cdef public int busy_poll
    cdef int64_t gap
    cdef Py_ssize_t max_message
    cdef Py_ssize_t max_message_fds

    cpdef completed(self, Peer peer)
    cpdef bint listen(self, int fd, bint yes) except -1
    cpdef admit(self, int fd, object listener)
    cpdef turn(self)
    @cython.locals(foreign=list, deadline=double, left=double)
    cpdef list wait(self, int timeout)
    @cython.locals(n=int, start=int64_t)
    cdef int doze(self, int timeout) except -2
    @cython.locals(peer=Peer, since=int64_t)
    cdef serve(self, int n)
    @cython.locals(auth=Auth, data=bytes)
    cdef read_auth(self, Peer peer)
    @cython.locals(auth=Auth, conn=Connection, leftover=bytes)
    cdef open(self, Peer peer)
    @cython.locals(turn=Py_ssize_t, have=Py_ssize_t)
    cdef read(self, Peer peer)
    cdef bint take_fds(self, Peer peer) except -1
    cdef await_message(self, Peer peer)
    cdef consume(self, Peer peer, Buffer buffer)
    @cython.locals(payload=Payload)
    cdef bint route(self, Peer peer, Buffer buffer, Py_ssize_t size) except -1
    @cython.locals(payload=Payload)
    cdef settle(self)
    @cython.locals(conn=Connection, peer=Peer, i=Py_ssize_t, dirty=list)
    cpdef flush(self)
    cpdef send(self, Peer peer)
    cdef broken(self, Peer peer)
    @cython.locals(queue=Queue, tail=Buffer)
    cdef send_queue(self, Peer peer)
    cdef unsent(self, Peer peer, int code)
    cpdef retry(self, Peer peer)
    cdef block(self, Peer peer)
    cpdef drop(self, Peer peer)
