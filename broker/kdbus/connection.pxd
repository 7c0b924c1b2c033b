# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint64_t

from jitney.broker.accounting cimport User

from .match cimport Matches
from .pool cimport Pool, Slice
from .queue cimport Entry, Hanging, Queue

cdef uint64_t _ACCEPT_FD
cdef int64_t _INCOMPLETE
cdef Py_ssize_t _MSGS_MAX, _FDS_MAX
cdef list _NO_FDS

cdef class Transport:
    cpdef wake(self)
    cdef stir(self)

cdef class Received:
    cdef public uint64_t offset
    cdef public Py_ssize_t size
    cdef public int64_t return_flags
    cdef public object fds

@cython.locals(made=Received)
cdef Received new_received(uint64_t offset, Py_ssize_t size, int64_t return_flags, object fds)

cdef class Quota:
    cdef readonly Py_ssize_t memory
    cdef readonly Py_ssize_t messages
    cdef readonly Py_ssize_t fds

@cython.locals(made=Quota)
cdef Quota new_quota()

cdef class Connection:
    cdef readonly object names_held
    cdef readonly bint monitor
    cdef readonly bint activator
    cdef readonly bint holder
    cdef readonly bint ordinary
    cdef readonly bint privileged
    cdef readonly bint owner
    cdef readonly bint confined
    cdef public uint64_t send_flags
    cdef public uint64_t recv_flags
    cdef readonly object bus
    cdef readonly object endpoint
    cdef public uint64_t flags
    cdef readonly object creds
    cdef public object description
    cdef public object namespaces
    cdef public object fake
    cdef public object facts
    cdef public Transport transport
    cdef public bint installs
    cdef public object activates
    cdef readonly Matches matches
    cdef readonly Queue queue
    cdef readonly dict quota
    cdef readonly dict awaited
    cdef readonly dict owed
    cdef public Py_ssize_t requests
    cdef public uint64_t lost
    cdef public bint active
    cdef readonly object account
    cdef public object user
    cdef readonly Pool pool
    cdef readonly object core
    cdef public uint64_t id

    @cython.locals(entry=Entry)
    cpdef recv(self, uint64_t flags, int64_t priority)
    @cython.locals(part=Slice, offset=uint64_t, size=Py_ssize_t, flags=int64_t, fds=list)
    cpdef Received take(self, Entry entry, bint peek)
    @cython.locals(reply=Hanging)
    cpdef forget(self, Entry entry)
    cpdef free(self, uint64_t offset)
    @cython.locals(entry=Entry, received=Received)
    cdef Received next(self)
    cpdef bint may_talk(self, object creds, Connection whom) except -1
    cpdef lose(self)
    cpdef wake(self)
    @cython.locals(quota=Quota, memory=Py_ssize_t, messages=Py_ssize_t, held_fds=Py_ssize_t,
                   room=Py_ssize_t, share=Py_ssize_t, index=int64_t)
    cpdef charge(self, User user, Py_ssize_t size, Py_ssize_t fds)
    @cython.locals(quota=Quota, index=int64_t)
    cpdef discharge(self, User user, Py_ssize_t size, Py_ssize_t fds)
