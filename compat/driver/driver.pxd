# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t

from jitney.broker.bus cimport Bus
from jitney.broker.connection cimport Connection
from jitney.broker.mem cimport Map64, hash64, of_bytes, same
from jitney.broker.message cimport Message

from .outgoing cimport Outgoing, error_field, tail
from .signals cimport Signals
from ..wire cimport string
from .table cimport Method

cdef bytes DRIVER_PATH
cdef int _CLOSED

cdef class Driver:
    cdef readonly Bus bus
    cdef readonly object activation
    cdef readonly object context
    cdef readonly tuple interfaces
    cdef readonly bytes id_body
    cdef Outgoing out
    cdef Signals signals
    cdef Map64 methods
    cdef public uint32_t serial
    cdef public object stats_serial
    cdef public object connection_stats_serial

    cpdef uint32_t next_serial(self)
    @cython.locals(before=Method)
    cdef learn(self, Method method)
    cpdef Connection find(self, bytes name)
    @cython.locals(method=Method)
    cpdef bint call(self, Connection conn, Message msg) except -1
    @cython.locals(method=Method)
    cdef Method find_method(self, Message msg)
    @cython.locals(method=Method, in_sig=bytes, n=Py_ssize_t)
    cdef Method method(self, Connection conn, Message msg)
    @cython.locals(out=Outgoing)
    cpdef answer(self, Connection conn, uint32_t serial, bytes end, bytes body)
    cpdef reply(self, Connection conn, uint32_t serial, str signature, bytes body, object fd=*)
    cdef _error(self, Connection conn, uint32_t serial, str name, str text)
    cpdef error(self, Connection conn, uint32_t serial, str name, str text)
    @cython.locals(bus=Bus, before=bytes, after=bytes)
    cpdef name_owner_changed(self, bytes name, Connection old, Connection new)
    cpdef name_acquired(self, Connection conn, bytes name)
    cpdef name_lost(self, Connection conn, bytes name)
