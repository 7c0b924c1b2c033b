# cython: language_level=3
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .accounting cimport Accounts, Tally, User
from .mem cimport Map64
from .meter cimport Counts
from .queue cimport Queue

cdef class Connection:
    cdef readonly uint64_t id
    cdef readonly int state
    cdef readonly bytes unique_name
    cdef bytes field_le
    cdef bytes field_be
    cdef readonly User user
    cdef readonly Queue queue
    cdef Tally tally
    cdef readonly Tally own_tally
    cdef readonly dict tallies
    cdef public object policy
    cdef public uint32_t policy_number
    cdef uint32_t[4] to_keys
    cdef uint32_t[4] from_keys
    cdef uint8_t[4] to_types
    cdef uint8_t[4] from_types
    cdef public bint accepts_fds
    cdef public bint send_open
    cdef public bint receive_open
    cdef public int send_types
    cdef public int receive_types
    cdef readonly dict names
    cdef readonly dict owned
    cdef Map64 rule_table
    cdef readonly Py_ssize_t n_rules
    cdef public object referers
    cdef Map64 calls
    cdef readonly int64_t n_calls
    cdef object owes
    cdef object owes_first
    cdef readonly int64_t n_owes
    cdef readonly int64_t since
    cdef public Counts counts
    cdef uint64_t stamp
    cdef public int64_t dropped
    cdef readonly Py_ssize_t peak_size
    cdef readonly Py_ssize_t peak_fds
    cdef public Py_ssize_t peak_rules
    cdef public Py_ssize_t peak_names
    cdef public object taker
    cdef public object tracer
    cdef public object endpoint
    cdef public set seen
    cdef public set seen_by
    cdef public uint32_t version
    cdef public object transport
    cdef public object creds
    cdef public object subject
    cdef public uint32_t subject_number
    cdef uint64_t[4] subject_keys

    cpdef void forget_verdicts(self)
    @cython.locals(number=uint32_t, slot=uint32_t)
    cdef int types_to(self, Connection sender) except -1
    @cython.locals(number=uint32_t, slot=uint32_t)
    cdef int types_from(self, Connection receiver) except -1
    @cython.locals(i=Py_ssize_t)
    cpdef list some_rules(self, Py_ssize_t start, Py_ssize_t count)
