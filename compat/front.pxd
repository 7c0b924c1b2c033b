# cython: language_level=3
from jitney.broker.bus cimport Bus
from jitney.broker.connection cimport Connection
from jitney.broker.message cimport Message

from .auth cimport Auth
from .peer cimport Peer

cdef class Front:
    cdef public Bus bus
    cdef public object policies
    cdef public object sink
    cdef public object uid
    cdef public object driver
    cdef public object activator
    cdef public object hub
    cdef readonly dict known

    cpdef Connection admit(self, Peer peer, Auth auth)
    cpdef bint may_connect(self, object uid) except -1
    cpdef give_policy(self, Connection conn)
    cpdef registered(self, Connection conn)
    cpdef gone(self, Connection conn)
    cpdef bint driver_call(self, Connection conn, Message msg) except -1
    cpdef name_owner_changed(self, bytes name, Connection old, Connection new)
    cpdef name_acquired(self, Connection conn, bytes name)
    cpdef name_owned(self, Connection conn, bytes name)
    cpdef name_lost(self, Connection conn, bytes name)
