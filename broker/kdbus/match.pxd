# cython: language_level=3

cdef class Matches:
    cdef public list sets
