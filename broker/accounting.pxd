# cython: language_level=3
cimport cython
from libc.stdint cimport int64_t

from .meter cimport Counts

cdef class User:
    cdef readonly object uid
    cdef readonly int64_t index
    cdef public int64_t bytes
    cdef public int64_t fds
    cdef public int64_t kept_bytes
    cdef public int64_t kept_fds
    cdef public int64_t connections
    cdef public int64_t matches
    cdef public int64_t names
    cdef public int64_t replies
    cdef readonly dict shares
    cdef readonly dict tallies
    cdef Tally latest
    cdef public Counts totals
    cpdef bint idle(self)

cdef class Share:
    cdef readonly User sender
    cdef readonly User receiver
    cdef readonly int64_t bytes
    cdef readonly int64_t fds

cdef class Tally:
    cdef readonly int64_t index
    cdef readonly Share share
    cdef readonly User receiver
    cdef readonly object owner
    cdef readonly int64_t bytes
    cdef readonly int64_t fds
    cdef public bint held
    cdef readonly bint ended

cdef class Accounts:
    cdef readonly dict by_uid
    cdef readonly list users
    cdef readonly list tallies
    cdef readonly list spare
    cdef readonly list released
    cdef readonly User bus
    cdef public int64_t moment
    cpdef User user(self, object uid)
    @cython.locals(share=Share, tally=Tally)
    cpdef Tally tally(self, User sender, User receiver, object owner)
    @cython.locals(tally=Tally)
    cpdef Tally to_many(self, User sender, User receiver)
    cpdef end(self, Tally tally)
    cdef forget(self, Tally tally)
    @cython.locals(share=Share)
    cdef void charge(self, Tally tally, Py_ssize_t size, Py_ssize_t fds)
    @cython.locals(tally=Tally, share=Share)
    cdef void discharge(self, int64_t index, Py_ssize_t size, Py_ssize_t fds)

cpdef bint leaves_room(int64_t used, int64_t limit, int64_t claim, int64_t need)
cpdef bint room_for_one(int64_t count, int64_t limit, int64_t claim)

cdef class Pool:
    cdef readonly int64_t bytes
    cdef readonly int64_t fds
    cdef readonly int64_t user_bytes
    cdef readonly int64_t user_fds
    @cython.locals(share=Share, receiver=User, claim=int64_t, claim_fds=int64_t)
    cdef bint admits(self, int64_t size, int64_t fds, Tally tally, int64_t need, int64_t need_fds)
