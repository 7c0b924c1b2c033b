# cython: language_level=3
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .accounting cimport Accounts, Pool, Tally, User
from .atoms cimport Atom, Atoms
from .connection cimport Connection
from .endpoint cimport Endpoint
from .match cimport MatchIndex, Rule
from .mem cimport Buffer, Map64, load32, of_bytes, same, take, view
from .message cimport Message
from .meter cimport Counts
from .names cimport Name, Registry
from .queue cimport Queue
from .replies cimport Replies, Slot
from .security cimport Guard
from .trace cimport Tracer

cdef int _NEW, _ACTIVE, _MONITOR, _CLOSED

cdef class Router:
    cdef public object front
    cdef public str guid
    cdef public object clock
    cdef readonly Accounts accounts
    cdef readonly Atoms atoms
    cdef readonly Registry names
    cdef readonly MatchIndex match_index
    cdef readonly MatchIndex monitor_index
    cdef readonly list monitors
    cdef Tracer sole
    cdef readonly Replies replies
    cdef Map64 table
    cdef readonly dict connections
    cdef public uint64_t last_id
    cdef public uint64_t first
    cdef public object outside
    cdef public Guard guard
    cdef uint64_t last_rule
    cdef readonly list dirty
    cdef public bint flushing
    cdef public bint metered
    cdef bytes field_inactive_le
    cdef bytes field_inactive_be
    cdef bytes head
    cdef Message greeting
    cdef Message own
    cdef readonly uint64_t n_messages
    cdef public uint64_t n_denied
    cdef readonly uint64_t n_dropped
    cdef readonly Py_ssize_t peak_rules
    cdef readonly Py_ssize_t peak_names
    cdef readonly object limits
    cdef readonly Pool pool
    cdef Py_ssize_t max_replies
    cdef Py_ssize_t max_connections
    cdef Py_ssize_t max_connections_per_user
    cdef double reply_timeout

    @cython.locals(dest=Connection, counts=Counts, endpoint=Endpoint)
    cpdef dispatch(self, Connection conn, Message msg)
    cdef dispatch_inactive(self, Connection conn, Message msg)
    cdef no_owner(self, Connection conn, Message msg)
    cpdef Connection lookup(self, bytes text)
    @cython.locals(atom=Atom, name=Name, number=uint64_t)
    cdef Connection find_dest(self, const uint8_t* p, Py_ssize_t off, Py_ssize_t n)
    @cython.locals(slot=Slot)
    cdef unicast(self, Connection conn, Connection dest, Message msg)
    @cython.locals(queue=Queue, tally=Tally, endpoint=Endpoint)
    cdef unicast_for(self, Connection conn, Connection dest, Message msg, bint requested)
    @cython.locals(tallies=dict, tally=Tally)
    cdef Tally tally_of(self, Connection conn, User receiver)
    cdef bint expect_reply(self, Connection conn, Connection dest, Message msg) except -1
    @cython.locals(conn=Connection, queue=Queue, user=User, tally=Tally, endpoint=Endpoint)
    cpdef broadcast(self, Message msg, Connection sender, Connection dest)
    @cython.locals(conn=Connection, tally=Tally, tracer=Tracer)
    cpdef capture(self, Message msg, Connection sender, Connection dest)
    @cython.locals(queue=Queue, msg=Message, tally=Tally)
    cpdef emit(self, Connection dest, bytes wire, object fds=*, bint captured=*)
    @cython.locals(queue=Queue, msg=Message, tally=Tally)
    cpdef post(self, Connection dest, Buffer data)
    cpdef tell(self, Message msg)
    cpdef bint heard(self)
    cpdef show(self, bytes wire)
    @cython.locals(counts=Counts)
    cdef enqueue(self, Connection dest, Message msg, Connection sender, Tally tally)
    cpdef stir(self, Connection conn)
    @cython.locals(guard=Guard)
    cdef bint may_send(self, Connection conn, Connection addressed, Connection proposed, Message msg, bint requested) except -1
    cdef bint may_receive(self, Connection conn, Connection addressed, Connection proposed, Message msg, bint requested) except -1
    cpdef refuse(self, Connection conn, Message msg, str code, str text)
    cpdef deliver_kept(self, Connection conn, Message msg, Connection dest)
