# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t, uint64_t

from .match cimport Matches
from .pool cimport Pool
from .queue cimport Entry, Queue

cdef class Transport:
    pass

cdef class Received:
    cdef public object offset
    cdef public Py_ssize_t size
    cdef public int64_t return_flags
    cdef public object fds

cdef class Connection:
    cdef dict __dict__
    cdef readonly bint monitor
    cdef readonly bint activator
    cdef readonly bint holder
    cdef readonly bint ordinary
    cdef readonly bint privileged
    cdef readonly bint owner
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
    cdef public object transport
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
    cpdef take(self, Entry entry, bint peek)
    @cython.locals(reply=object)
    cpdef forget(self, Entry entry)
    cpdef free(self, object offset)
    cpdef lose(self)
    cpdef wake(self)
    @cython.locals(quota=list, memory=Py_ssize_t, messages=Py_ssize_t, held_fds=Py_ssize_t,
                   room=Py_ssize_t, share=Py_ssize_t, index=int64_t)
    cpdef charge(self, object user, Py_ssize_t size, Py_ssize_t fds)
    @cython.locals(quota=list, index=int64_t)
    cpdef discharge(self, object user, Py_ssize_t size, Py_ssize_t fds)
