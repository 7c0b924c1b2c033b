# cython: language_level=3
cimport cython

from .area cimport Area

cdef class Slice:
    cdef readonly Py_ssize_t offset
    cdef readonly Py_ssize_t size
    cdef readonly bint free
    cdef readonly bint accounted
    cdef readonly bint by_bus
    cdef readonly bint by_owner
    cdef readonly Slice previous
    cdef readonly Slice following

cdef class Pool:
    cdef readonly Py_ssize_t size
    cdef readonly object memory
    cdef Area area
    cdef readonly Py_ssize_t accounted
    cdef readonly dict busy
    cdef readonly dict unused
    cdef readonly list by_size

    cdef Area writable(self)
    cpdef close(self)
    @cython.locals(at=Py_ssize_t, found=Slice, rest=Slice, following=Slice, offset=Py_ssize_t)
    cpdef Slice alloc(self, Py_ssize_t size, bint accounted)
    cpdef tuple publish(self, Slice part)
    cpdef release(self, Slice part)
    @cython.locals(part=Slice)
    cpdef free(self, object offset)
    cpdef put_free(self, Slice part)
    cpdef take_free(self, Slice part)
    @cython.locals(after=Slice, before=Slice, following=Slice)
    cpdef give_back(self, Slice part)
    cpdef Slice store(self, list parts, Py_ssize_t size)
