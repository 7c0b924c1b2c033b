# cython: language_level=3
from .sysio cimport accept_one, close_socket

cdef class Acceptor:
    cdef object hub
    cdef object loop
    cdef readonly dict listeners
    cdef readonly set resting
    cdef bint out_of_room

    cpdef accept(self, int fd)
