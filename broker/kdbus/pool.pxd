# cython: language_level=3
cimport cython
from libc.stdint cimport uint64_t

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

@cython.locals(made=Slice)
cdef Slice new_slice(Py_ssize_t offset, Py_ssize_t size)

cdef void tie(Slice before, Slice after) noexcept
cdef void leave(Slice part) noexcept

cdef class Pool:
    cdef readonly Py_ssize_t size
    cdef readonly object memory
    cdef Area area
    cdef readonly Py_ssize_t accounted
    cdef readonly Slice top
    cdef readonly dict busy
    cdef readonly dict holes
    cdef readonly list sizes

    cdef Area writable(self)
    cpdef close(self)
    @cython.locals(found=Slice)
    cpdef Slice alloc(self, Py_ssize_t size, bint accounted)
    @cython.locals(at=Py_ssize_t, top=Slice)
    cdef Slice hole(self, Py_ssize_t size)
    @cython.locals(found=Slice, rest=Slice)
    cdef Slice split(self, Slice part, Py_ssize_t size)
    cpdef tuple publish(self, Slice part)
    cpdef release(self, Slice part)
    @cython.locals(part=Slice, end=uint64_t)
    cpdef free(self, uint64_t offset)
    cdef put_free(self, Slice part)
    cdef take_free(self, Slice part)
    @cython.locals(after=Slice, before=Slice)
    cdef give_back(self, Slice part)
    cpdef Slice store(self, list parts, Py_ssize_t size)
