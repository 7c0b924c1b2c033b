# cython: language_level=3
cimport cython

from .accounting cimport Accounts, Tally, User
from .bus cimport Bus
from .connection cimport Connection
from .endpoint cimport Endpoint, Grant
from .match cimport MatchIndex, Rule
from .mem cimport Buffer, Map64, Ring
from .meter cimport Counts, Histogram
from .names cimport Name, Owner
from .queue cimport Queue, buffer_run
from .trace cimport Tracer

cdef int _NEW, _ACTIVE, _MONITOR

cpdef bytes raw(object text)
cpdef list restore(Bus bus, dict state, object source, object ready=*)
@cython.locals(user=User)
cdef User _user(Bus bus, Py_ssize_t index, dict record)
@cython.locals(user=User, conn=Connection, counts=Counts)
cdef Connection _connection(Bus bus, list users, dict record)
@cython.locals(endpoint=Endpoint)
cdef _endpoint(Bus bus, dict record)
@cython.locals(peer=Connection)
cdef _see(Bus bus, Connection conn, list seen)
@cython.locals(tally=Tally, conn=Connection)
cdef Tally _tally(Bus bus, list users, list conns, list record)
@cython.locals(queue=Queue, buffer=Buffer, tally=Tally)
cdef _fill(Connection conn, dict record, object source, list tallies)
@cython.locals(name=Name, claim=Owner)
cdef _name(Bus bus, list conns, list record)
@cython.locals(name=Name)
cdef _own(Bus bus, Connection conn, dict record)
@cython.locals(conn=Connection)
cdef _monitors(Bus bus, list conns, list places)
@cython.locals(conn=Connection, rule=Rule, index=MatchIndex)
cdef _rule(Bus bus, list conns, list record)
cdef _reply(Bus bus, list conns, list record)
@cython.locals(tracer=Tracer, pending=Buffer)
cdef _tracer(Bus bus, Connection conn, dict record, object source, object ready)
@cython.locals(counts=Counts)
cdef Counts _counts(list record)
@cython.locals(histogram=Histogram)
cdef Histogram _histogram(list record)
@cython.locals(user=User, tally=Tally, name=Name, claim=Owner)
cpdef verify(Bus bus, list conns, list tallies, dict state)
