# cython: language_level=3
cimport cython

from jitney.broker.connection cimport Connection
from jitney.broker.mem cimport Buffer

from ..auth cimport Auth
from ..creds cimport Credentials
from ..hub cimport Hub
from ..peer cimport Peer

cdef int _OPEN, _CLOSED

@cython.locals(peer=Peer)
cpdef list newcomers(Hub hub)
@cython.locals(hub=Hub, conn=Connection)
cpdef str stays(object service)
@cython.locals(peer=Peer)
cpdef dict export_peers(Hub hub, list listeners, dict places, object luggage)
cdef dict _peer(Peer peer, Py_ssize_t listener, dict places, object luggage)
cdef dict _auth(Auth auth)
@cython.locals(peer=Peer, conn=Connection)
cpdef list restore_peers(Hub hub, dict record, object source, list fds, list conns, list listeners)
@cython.locals(peer=Peer, conn=Connection, partial=Buffer)
cdef Peer _restored(dict one, object source, list fds, list conns, list listeners)
@cython.locals(auth=Auth)
cdef Auth _conversation(dict record, object offer)
