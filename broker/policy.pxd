# cython: language_level=3
from .policy_rules cimport Facts, MessageRule

cdef class ClientPolicy:
    cdef readonly list sends, receives, owns, general_sends, general_receives
    cdef readonly dict named_sends, named_receives
    cdef readonly bint send_open, receive_open, receive_open_direct, own_open, log
    cdef readonly int send_types, receive_types, matched
    cdef readonly object rule
    cdef public tuple key
    cdef readonly long number

    cpdef bint may_send(self, object bus, object msg, object receiver, bint requested_reply) except -1
    cpdef bint may_receive(self, object bus, object msg, object sender, object addressed, object proposed,
                           bint requested_reply) except -1
    cpdef bint may_own(self, bytes name) except -1
    cdef bint decide(self, object rule) except -1
