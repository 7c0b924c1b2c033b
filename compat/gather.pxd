# cython: language_level=3
cimport cython

from jitney.broker.mem cimport Buffer
from jitney.broker.queue cimport Queue, Segment

from .sysio cimport Outlet

@cython.locals(segment=Segment, tail=Buffer, first=bint)
cdef Py_ssize_t gather(Outlet outlet, Queue queue) except -1
