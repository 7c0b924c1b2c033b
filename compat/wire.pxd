# cython: language_level=3
cimport cython
from libc.stdint cimport uint32_t

from jitney.broker.mem cimport Buffer, copy, of_bytes, store32, take, zero

cdef Buffer _scratch
cdef list _SMALL

@cython.locals(raw=bytes)
cpdef bytes string(object value)
cpdef bytes three_strings(bytes first, bytes second, bytes third)
@cython.locals(pos=Py_ssize_t, n=Py_ssize_t, pad=Py_ssize_t)
cdef _put(Buffer out, bytes raw)
cpdef bytes u32(object value)
