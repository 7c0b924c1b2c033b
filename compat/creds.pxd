# cython: language_level=3

cdef class Credentials:
    cdef readonly object uid
    cdef readonly object gid
    cdef readonly object pid
    cdef public object described
    cdef object _fd
    cdef object _groups
    cdef bint _groups_asked
    cdef bint _database_asked
    cdef object _label
    cdef bint _label_asked
