# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t

from .accounting cimport Tally, User, room_for_one
from .connection cimport Connection
from .endpoint cimport Endpoint, forget
from .match cimport MatchIndex, Rule
from .mem cimport Buffer, Map64, load32, view
from .message cimport Message
from .meter cimport Counts
from .routing cimport Router
from .trace cimport Tracer

cdef class Bus(Router):
    cdef readonly object name_totals
    cdef readonly list endpoints
    cpdef add_endpoint(self, Endpoint endpoint)
    cpdef remove_endpoint(self, Endpoint endpoint)
    @cython.locals(counts=Counts, user=User, total=Counts)
    cpdef settle(self, Connection conn)
    cpdef hello(self, Connection conn)
    cpdef announce(self, Connection conn)
    cpdef set_policy(self, Connection conn, object policy)
    cpdef disconnect(self, Connection conn)
    cpdef int request_name(self, Connection conn, bytes text, int64_t flags) except -1
    cpdef int release_name(self, Connection conn, bytes text) except -1
    @cython.locals(endpoint=Endpoint)
    cpdef owner_changing(self, bytes text, Connection old, Connection new)
    cpdef owner_changed(self, bytes text, Connection new)
    cdef show_greeting(self, Connection conn)
    cpdef add_match(self, Connection conn, Rule rule)
    @cython.locals(have=Rule)
    cpdef remove_match(self, Connection conn, Rule rule)
    cdef keep_rule(self, Connection conn, Rule rule)
    @cython.locals(have=Rule)
    cdef drop_rule(self, Connection conn, Rule rule)
    @cython.locals(peer=Connection)
    cdef refer(self, Rule rule, bytes name)
    @cython.locals(peer=Connection, name=bytes)
    cdef unrefer(self, Rule rule)
    @cython.locals(rule=Rule)
    cpdef become_monitor(self, Connection conn, list rules)
    @cython.locals(tally=Tally)
    cdef settle_tallies(self, Connection conn)
    @cython.locals(rule=Rule, owner=Connection)
    cdef drop_rules(self, Connection conn, MatchIndex index)
    @cython.locals(only=Connection, tracer=Tracer)
    cpdef find_sole(self)
    @cython.locals(msg=Message, tally=Tally, size=Py_ssize_t)
    cpdef bint hand(self, Connection conn, Buffer data) except -1
