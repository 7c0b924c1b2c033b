# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from jitney.broker.kdbus.bus cimport Bus
from jitney.broker.kdbus.connection cimport Connection, Received
from jitney.broker.kdbus.loads cimport get32, get64, set32, set64
from jitney.broker.kdbus.message cimport Message
from jitney.broker.kdbus.reply cimport Awaiting

from ..ordinary cimport Payload, read as read_message
from .slots cimport FrontSlots, HandleSlots, PeerSlots
from .sysio cimport send as socket_send

cdef uint64_t _SEND, _ANSWER, _FED, _PROCESS, _OUTBOX
cdef Py_ssize_t _CREDIT_MAX
cdef tuple _NO_FDS

cdef class Framed(Payload):
    cdef object memory
    cdef bytearray buffer
    cdef uint64_t first
    cdef uint64_t end

cdef class QuickCall(Awaiting):
    cdef public FrontSlots server
    cdef public PeerSlots peer
    cdef public uint32_t serial
    cdef uint64_t flags
    cdef uint64_t address
    cdef uint64_t reply_offset
    cdef uint64_t reply_size
    cdef uint64_t reply_flags
    cdef public object pending
    cdef public bint over

    cpdef tell(self, int number, Received received)
    cpdef end(self, int number, Received received)
    @cython.locals(out=bytearray)
    cdef answer(self, uint32_t number, Received received)

@cython.locals(made=QuickCall)
cdef QuickCall new_call(FrontSlots server, PeerSlots peer, uint32_t serial, bytearray buffer, Py_ssize_t first)
@cython.locals(sent=Py_ssize_t)
cdef bint put(PeerSlots peer, bytearray out, Py_ssize_t size, object handles) except -1
cdef bint plain(PeerSlots peer) except -1
@cython.locals(flags=uint32_t, serial=uint32_t, frees=uint32_t, credit=uint32_t, first=Py_ssize_t,
               at=Py_ssize_t, freed=Py_ssize_t, handle=HandleSlots, conn=Connection, bus=Bus,
               message=Message, payload=Framed, sync=bint, error=int, call=QuickCall)
cpdef bint send(FrontSlots server, PeerSlots peer, bytearray buffer, Py_ssize_t n, object said) except -1
cdef bytes bare(uint32_t serial, uint32_t error)
@cython.locals(conn=Connection, received=Received, out=bytearray, lost=uint64_t)
cpdef feed(FrontSlots server, HandleSlots handle, PeerSlots first)
