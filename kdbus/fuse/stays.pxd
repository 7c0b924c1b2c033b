# cython: language_level=3
cimport cython

cdef dict _count(dict counts, object key, Py_ssize_t change)

cdef class Stays:
    cdef readonly dict suspected
    cdef public Py_ssize_t away
    cdef readonly dict user_away
    cdef readonly dict process_away

    @cython.locals(left=Py_ssize_t, process=Py_ssize_t, most=Py_ssize_t)
    cpdef begin(self, object handle)
    cpdef end(self, object handle)
    cdef count(self, object handle, Py_ssize_t change)
