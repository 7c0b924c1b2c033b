# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t

from jitney.broker.connection cimport Connection
from jitney.broker.match cimport Rule
from jitney.broker.mem cimport load32
from jitney.broker.message cimport Message

from ..matchrule cimport parse
from ..wire cimport string, u32
from .driver cimport Driver
from .table cimport arg

cdef bytes DRIVER

@cython.locals(conn=Connection)
cpdef Connection peer_of(Driver driver, bytes name, str what)
cdef uint32_t _last_u32(Message msg)
cpdef bytes hello(Driver driver, Connection conn, Message msg)
cpdef bytes request_name(Driver driver, Connection conn, Message msg)
cpdef bytes release_name(Driver driver, Connection conn, Message msg)
@cython.locals(name=bytes)
cpdef bytes name_has_owner(Driver driver, Connection conn, Message msg)
@cython.locals(owner=Connection)
cpdef bytes get_name_owner(Driver driver, Connection conn, Message msg)
@cython.locals(rule=Rule)
cpdef bytes add_match(Driver driver, Connection conn, Message msg)
cpdef bytes remove_match(Driver driver, Connection conn, Message msg)
@cython.locals(peer=Connection, name=bytes)
cpdef bytes get_connection_unix_user(Driver driver, Connection conn, Message msg)
@cython.locals(peer=Connection, name=bytes)
cpdef bytes get_connection_unix_process_id(Driver driver, Connection conn, Message msg)
