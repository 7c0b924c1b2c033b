# cython: language_level=3
from libc.stdint cimport uint64_t

from jitney.broker.kdbus.connection cimport Connection, Transport
from jitney.broker.kdbus.domain cimport Domain

from ..ordinary cimport Payload
from .sysio cimport Poll, Reader

cdef class FrontSlots:
    cdef public Domain domain
    cdef public bint stream
    cdef public dict peers
    cdef public list news
    cdef public list doomed
    cdef public list settling
    cdef public list others
    cdef public bint serving
    cdef public bint whole
    cdef public uint64_t number
    cdef public Reader reader
    cdef public bytearray out
    cdef public Poll ready

cdef class HandleSlots:
    cdef public Connection conn
    cdef public PeerSlots first
    cdef public bint fed
    cdef public bint told
    cdef public bint noted
    cdef public Py_ssize_t credit
    cdef public dict numbers

cdef class PeerSlots:
    cdef public object sock
    cdef public int fd
    cdef public HandleSlots handle
    cdef public object memory
    cdef public Payload payload
    cdef public dict calls
    cdef public object owed
    cdef public bint used
    cdef public bint dead
    cdef public uint64_t turned
    cdef public object paused
    cdef public object caller
    cdef public object plain_caller
    cdef public object said

cdef class Waker(Transport):
    cdef public FrontSlots front
    cdef public HandleSlots handle

    cpdef wake(self)
    cdef stir(self)
