# cython: language_level=3

cpdef bint below(bytes name, bytes prefix)
cpdef bint holds(object conn, bytes name)

cdef class Facts:
    cdef readonly int type
    cdef readonly long n_fds
    cdef readonly bint is_reply, is_requested, is_broadcast
    cdef readonly bytes path, interface, member, error, destination, sender

cdef class MessageRule:
    cdef readonly bint allow, send, requested_reply, eavesdrop, log, blanket, plain, unconditional
    cdef readonly int type, broadcast, line
    cdef readonly long min_fds, max_fds
    cdef readonly bytes path, interface, member, error, peer, prefix
    cdef readonly str file

    cpdef bint fits(self, Facts facts)
    cpdef bint fits_send(self, Facts facts, object receiver)
    cpdef bint fits_receive(self, Facts facts, object sender, bint eavesdropping)
