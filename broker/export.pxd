# cython: language_level=3
cimport cython

from .accounting cimport Tally, User
from .bus cimport Bus
from .connection cimport Connection
from .endpoint cimport Endpoint, Grant
from .match cimport Arg, Rule
from .meter cimport Counts, Histogram
from .names cimport Name, Owner
from .queue cimport Queue
from .replies cimport Slot
from .trace cimport Tracer

cpdef object text(bytes data)
@cython.locals(conn=Connection)
cpdef tuple export(Bus bus, list newcomers, object sink)
@cython.locals(conn=Connection)
cdef _insiders(Bus bus, list conns, dict places, dict state)
cdef dict _endpoint(Endpoint endpoint)
cdef list _grant(Grant grant)
cdef dict _user(User user)
@cython.locals(tally=Tally)
cdef list _tallies(Bus bus, dict places, dict numbers)
@cython.locals(queue=Queue)
cdef dict _connection(Connection conn, object sink, dict numbers)
cdef dict _tracer(Tracer tracer, object sink)
@cython.locals(claim=Owner)
cdef list _name(Name name, dict places)
cdef list _claim(Owner claim, dict places)
@cython.locals(conn=Connection, rule=Rule)
cdef list _rules(Bus bus, list conns, dict places)
cdef list _rule(Bus bus, Rule rule, Py_ssize_t place)
cdef bint _refers(Connection peer, Rule rule)
cdef list _arg(Arg arg)
@cython.locals(conn=Connection, slot=Slot)
cdef list _replies(Bus bus, list conns, dict places)
cdef list _slot(Slot slot, dict places)
cdef list _counts(Counts counts)
cdef list _histogram(Histogram histogram)
