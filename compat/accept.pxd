# cython: language_level=3

cdef class Acceptor:
    cdef readonly object hub
    cdef object loop
    cdef readonly list listeners
    cdef readonly set resting
    cdef bint out_of_room
