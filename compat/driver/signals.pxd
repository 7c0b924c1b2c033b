# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t

from jitney.broker.mem cimport Buffer
from jitney.broker.message cimport Message

from ..wire cimport string, three_strings
from .outgoing cimport Outgoing, tail, text_field

cdef class Signals:
    cdef bytes owner_changed
    cdef bytes acquired
    cdef bytes lost
    cdef bytes tail
    cdef bytes tail3
    cdef Outgoing out
    cdef Message msg
    @cython.locals(out=Outgoing, buffer=Buffer, msg=Message, body=bytes, pos=Py_ssize_t, n=Py_ssize_t)
    cdef Message name_owner_changed(self, uint32_t serial, bytes name, bytes old, bytes new)
    @cython.locals(body=bytes)
    cdef name_acquired(self, Outgoing out, uint32_t serial, bytes destination, bytes name)
    @cython.locals(body=bytes)
    cdef name_lost(self, Outgoing out, uint32_t serial, bytes destination, bytes name)
