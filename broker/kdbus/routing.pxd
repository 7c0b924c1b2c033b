# cython: language_level=3
cimport cython
from libc.stdint cimport uint64_t

from jitney.broker.accounting cimport User

from .area cimport Area
from .connection cimport Connection, Received
from .domain cimport Domain
from .message cimport Message
from .pool cimport Slice
from .queue cimport Entry, new_entry
from .reply cimport Replies, Reply, new_reply, tell as tell_caller

cdef uint64_t _BROADCAST, _EXPECT_REPLY, _SIGNAL, _ACCEPT_FD, _PROCESS, _DST_NAME, _NO_AUTO_START
cdef list _NOTHING

cdef class Routing:
    cdef public Domain domain
    cdef public object core
    cdef public object names
    cdef public Replies replies
    cdef public dict connections
    cdef public dict monitors
    cdef public dict listeners
    cdef public object foreign
    cdef public uint64_t last_message

    cpdef send(self, Connection source, Message message, object caller, object done)
    cpdef flush(self)
    cpdef tell(self, Message notice)
    cpdef accept(self, Message message)
    cpdef tuple find(self, Message message)
    @cython.locals(conn=Connection)
    cdef object seek(self, Message message)
    cdef object seek_name(self, Message message)
    cpdef is_own(self, object who)
    cpdef conn_of(self, object core)
    cpdef unicast(self, Connection source, Message message, object caller)
    @cython.locals(reply=Reply, now=uint64_t, own=bint)
    cpdef call(self, Connection source, Message message, object caller, object done)
    @cython.locals(reply=Reply)
    cpdef answer(self, Connection source, Message message)
    @cython.locals(entry=Entry, received=Received)
    cpdef hand_over(self, Reply reply, Message message, Connection receiver, object name)
    cpdef eavesdrop(self, Message message)
    cpdef overhear(self, Message message, object receiver)
    @cython.locals(entry=Entry)
    cpdef deliver(self, Message message, Connection conn, Reply reply, object name)
    @cython.locals(area=Area, part=Slice, entry=Entry, meta=list, user=User, source=Connection,
                   size=Py_ssize_t)
    cpdef Entry write(self, Message message, Connection conn)
    @cython.locals(part=Slice)
    cpdef Slice room(self, Connection conn, object user, Py_ssize_t size)
    @cython.locals(asked=uint64_t, mask=uint64_t)
    cpdef list meta(self, Message message, Connection conn)

cdef bint may_talk(Connection source, object caller, Connection receiver) except -1
