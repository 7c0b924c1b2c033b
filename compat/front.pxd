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
    cdef public object doors
    cdef public object mediation
    cdef public object driver_call, undirected, name_owner_changed, name_acquired, name_lost
    cdef readonly set known
    cdef readonly dict shared

    cpdef Connection admit(self, Peer peer, Auth auth)
    cpdef bint may_connect(self, object uid) except -1
    cpdef give_policy(self, Connection conn)
    cpdef registered(self, Connection conn)
    cpdef gone(self, Connection conn)
    cpdef name_owned(self, Connection conn, bytes name)
