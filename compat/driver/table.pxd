# cython: language_level=3
cimport cython

from jitney.broker.mem cimport take
from jitney.broker.message cimport Message

from .outgoing cimport tail

cpdef bytes arg(Message msg, int number=*)

cdef class Method:
    cdef readonly str name
    cdef readonly bytes in_sig
    cdef readonly str out_sig
    cdef readonly object handler
    cdef readonly bint any_path
    cdef readonly bint privileged
    cdef readonly bint ack
    cdef readonly bytes member
    cdef readonly bytes tail
    cdef public bytes interface
    cdef public bint interface_any_path
    cdef public Method next
