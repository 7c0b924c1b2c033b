# cython: language_level=3
cimport cython
from libc.stdint cimport uint64_t

from .area cimport Area
from .connection cimport Connection
from .message cimport Message
from .pool cimport Slice
from .queue cimport Entry
from .reply cimport Replies, Reply

cdef uint64_t _BROADCAST, _EXPECT_REPLY, _SIGNAL, _ACCEPT_FD, _PROCESS
cdef list _NOTHING

cdef class Routing:
    cdef dict __dict__
    cdef public object domain
    cdef public object core
    cdef public object names
    cdef public Replies replies
    cdef public dict connections
    cdef public dict monitors
    cdef public dict listeners
    cdef public object foreign
    cdef public uint64_t last_message

    cpdef send(self, object source, Message message, object caller, object done)
    cpdef flush(self)
    cpdef tell(self, Message notice)
    cpdef accept(self, Message message)
    cpdef tuple find(self, Message message)
    cpdef is_own(self, object who)
    cpdef conn_of(self, object core)
    cpdef unicast(self, object source, Message message, object caller)
    @cython.locals(reply=Reply)
    cpdef call(self, object source, Message message, object caller, object done)
    @cython.locals(reply=Reply, entry=Entry)
    cpdef answer(self, object source, Message message)
    cpdef eavesdrop(self, Message message)
    @cython.locals(entry=Entry)
    cpdef deliver(self, Message message, Connection conn, Reply reply, object name)
    @cython.locals(area=Area, part=Slice, entry=Entry, meta=list)
    cpdef Entry write(self, Message message, Connection conn)
    @cython.locals(part=Slice)
    cpdef Slice room(self, Connection conn, object user, Py_ssize_t size)
    @cython.locals(asked=uint64_t, mask=uint64_t)
    cpdef list meta(self, Message message, Connection conn)
