# cython: language_level=3
from .sysio cimport now

cdef class Worker:
    cdef readonly bytearray buffer
    cdef readonly object view
    cdef readonly bytearray room
    cdef public bint leading
    cdef public int tid
    cdef public double since
    cdef public double began
    cdef public object busy_with
    cdef public list finished
    cdef public object scratch

    cpdef away(self, object what)
    cpdef back(self)
