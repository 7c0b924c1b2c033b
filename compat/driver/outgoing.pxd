# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t, uint8_t

from jitney.broker.mem cimport Buffer, copy, of_bytes, store32, zero

cdef bytes _SENDER
cdef dict _tails
cdef dict _error_fields

cpdef bytes padded(bytes piece)
cpdef bytes text_field(int code, bytes kind, bytes text)
@cython.locals(text=bytes)
cpdef bytes tail(str signature)
cpdef bytes error_field(str name)

cdef class Outgoing:
    cdef readonly Buffer buffer
    @cython.locals(out=Buffer, pos=Py_ssize_t, n_dest=Py_ssize_t, n_end=Py_ssize_t)
    cdef write(self, uint32_t kind, uint32_t serial, bytes first, bytes destination, bytes second,
               uint32_t reply_serial, bytes end, bytes body)
