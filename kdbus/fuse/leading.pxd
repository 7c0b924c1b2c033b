# cython: language_level=3
cimport cython

from .quick cimport Quick
from .sysio cimport now, read
from .worker cimport Worker

@cython.locals(size=Py_ssize_t, device=int, buffer=bytearray, quick=Quick)
cpdef bint lead(object crew, Worker me) except -1
