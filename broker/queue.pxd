# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint8_t

from .accounting cimport Accounts, Tally
from .fds cimport FdSet
from .mem cimport Buffer, Ring, borrow, copy, give, of_bytes, store32, take, view, zero
from .message cimport Message
from .meter cimport Counts, Histogram

cpdef bytes sender_field(bytes name, bint big)
@cython.locals(payload=Payload)
cdef Payload msg_payload(Message msg)
cdef Segment buffer_run(Buffer buffer, FdSet fds)
cdef Segment payload_run(Payload payload)

cdef class Payload:
    cdef const uint8_t* p
    cdef readonly Py_ssize_t size
    cdef readonly bint loaned
    cdef public Py_ssize_t holders
    cdef object owner
    @cython.locals(data=Buffer)
    cpdef bint pin(self)

cdef class Segment:
    cdef Buffer buffer
    cdef Payload payload
    cdef FdSet fds
    cdef Py_ssize_t off
    cdef Py_ssize_t end

cdef class Queue:
    cdef Accounts accounts
    cdef Buffer tail
    cdef FdSet tail_fds
    cdef list segments
    cdef Ring charges
    cdef readonly Py_ssize_t size
    cdef readonly Py_ssize_t n_fds
    cdef public bint dirty
    cdef public Counts counts

    @cython.locals(payload=Payload, tail=Buffer, fds=FdSet, fresh=bint, total=Py_ssize_t, count=Py_ssize_t)
    cdef Py_ssize_t push(self, Message msg, const uint8_t* head, Py_ssize_t head_len, bytes field, Tally tally) except -1
    cdef void seal(self)
    @cython.locals(tail=Buffer, tally=int64_t, size=Py_ssize_t, fds=Py_ssize_t, counts=Counts,
                   moment=int64_t, gone=Py_ssize_t)
    cpdef void sent(self, Py_ssize_t n)
    @cython.locals(segment=Segment)
    cdef Py_ssize_t drop_segments(self, Py_ssize_t n)
    @cython.locals(first=Segment)
    cpdef bint begins_with_fds(self)
    cpdef bytes skip(self)
    cpdef int64_t oldest(self)
    @cython.locals(counts=Counts)
    cdef void waited(self, int64_t microseconds)
    @cython.locals(segment=Segment)
    cpdef void clear(self)
    @cython.locals(segment=Segment)
    cpdef bint holds(self, Payload payload)
    @cython.locals(segment=Segment)
    cpdef bytes peek(self)
    @cython.locals(segment=Segment)
    cpdef list runs(self)
