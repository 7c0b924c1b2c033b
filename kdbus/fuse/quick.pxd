# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from jitney.broker.kdbus.bus cimport Bus
from jitney.broker.kdbus.connection cimport Connection, Received
from jitney.broker.kdbus.loads cimport get32, get64, set32, set64
from jitney.broker.kdbus.message cimport Message

from ..ordinary cimport read as read_message
from .places cimport Apart, Places
from .stays cimport Stays
from .sysio cimport answer, answer_ioctl, copy_in, copy_out, gather
from .transport cimport FuseTransport
from .worker cimport Worker

cdef uint32_t _IOCTL, _POLL, _SEND, _RECV, _FREE, _WRITABLE, _READABLE
cdef uint64_t _PROCESS, _DROPPED
cdef Py_ssize_t _GUESS, _MANY_SUSPECTS, _PLACED_MIN
cdef int _EAGAIN, _EIO, _EFAULT, _EPERM

cdef class QuickCall:
    cdef readonly Quick quick
    cdef readonly uint64_t unique
    cdef readonly uint32_t tid
    cdef readonly object handle
    cdef readonly uint64_t address
    cdef public bint interrupted
    cdef public bint over
    cdef public object pending
    cdef public bint done
    cdef public int number
    cdef public uint64_t offset
    cdef public uint64_t size
    cdef public uint64_t flags
    cdef set_result(self, int number, Received received)

cdef class Quick:
    cdef readonly object ioctls
    cdef readonly object filesystem
    cdef readonly object crew
    cdef readonly object lock
    cdef readonly int device
    cdef readonly dict handles
    cdef readonly dict active
    cdef readonly dict waiting
    cdef readonly Stays stays
    cdef readonly dict suspected
    cdef readonly dict users
    cdef readonly Places places
    cdef public Worker serving

    cpdef bint serve(self, Worker me, Py_ssize_t size) except -1
    @cython.locals(buffer=bytearray, opcode=uint32_t, command=uint32_t)
    cdef bint take(self, Worker me, Py_ssize_t size) except -1
    @cython.locals(conn=Connection, transport=FuseTransport, revents=uint32_t)
    cdef bint poll(self, Worker me, bytearray buffer) except -1
    @cython.locals(conn=Connection, number=int)
    cdef bint free(self, bytearray buffer, object handle) except -1
    cdef bint trusts(self, object handle, uint32_t uid) except -1
    cdef int enter(self, QuickCall call, Connection conn) except -1
    cdef bint leave(self, QuickCall call) except -1
    @cython.locals(conn=Connection, call=QuickCall, room=bytearray, received=Received,
                   transport=FuseTransport, number=int, entered=int, fits=bint, shown=bint, lost=uint64_t,
                   got=Py_ssize_t)
    cdef bint recv(self, Worker me, bytearray buffer, object handle) except -1
    @cython.locals(conn=Connection, bus=Bus, call=QuickCall, message=Message, sync=bint,
                   where=uint64_t, waits=bint, fine=bint, whole=bint, got=Py_ssize_t,
                   total=Py_ssize_t, payload=Apart, place=tuple, receiver=Connection)
    cdef bint send(self, Worker me, bytearray buffer, object handle) except -1
    @cython.locals(at=Py_ssize_t, i=Py_ssize_t, n=Py_ssize_t, size=Py_ssize_t, parts=list,
                   part=tuple, vecs=list)
    cdef bint fill(self, Worker me, QuickCall call, Message message, Apart payload) except -1
    cdef object caller(self, object handle, uint32_t tid, bytearray buffer)
    cpdef finished(self, QuickCall call)
    @cython.locals(call=QuickCall)
    cdef tell_finished(self, Worker me)
    @cython.locals(room=bytearray, done=Py_ssize_t, number=int, over=bint,
                   transport=FuseTransport)
    cdef conclude(self, Worker me, QuickCall call)
