# cython: language_level=3
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef uint32_t load32(const uint8_t* p, Py_ssize_t off, bint big) noexcept nogil
cdef void store32(uint8_t* p, Py_ssize_t off, uint32_t value, bint big) noexcept nogil
cdef void copy(uint8_t* dst, Py_ssize_t doff, const uint8_t* src, Py_ssize_t soff, Py_ssize_t n) noexcept nogil
cdef void zero(uint8_t* dst, Py_ssize_t off, Py_ssize_t n) noexcept nogil
cdef bint all_zero(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept nogil
cdef bint utf8_ok(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept nogil
cdef bint bools_ok(const uint8_t* p, Py_ssize_t off, Py_ssize_t n, bint big) noexcept nogil
cdef bytes take(const uint8_t* p, Py_ssize_t off, Py_ssize_t n)
cdef bint same(const uint8_t* p, Py_ssize_t off, Py_ssize_t n, bytes text)
cdef uint64_t hash64(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept nogil
cdef uint64_t mix(uint64_t a, uint64_t b) noexcept nogil
cdef const uint8_t* view(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept nogil
cdef const uint8_t* of_bytes(bytes data)
cdef int32_t* int_array(Py_ssize_t n) except NULL
cdef void free_ints(int32_t* p) noexcept nogil


cdef class Buffer:
    cdef uint8_t* p
    cdef Py_ssize_t head
    cdef Py_ssize_t end
    cdef Py_ssize_t cap
    cdef int reserve(self, Py_ssize_t n) except -1
    cdef void drop(self) noexcept
    cdef int append(self, const uint8_t* src, Py_ssize_t off, Py_ssize_t n) except -1

cdef Buffer borrow()
cdef void give(Buffer buffer)
cpdef Py_ssize_t pooled()
cpdef bint trim()

cdef struct Charge:
    uint32_t left
    uint32_t size
    uint32_t fds
    int32_t tally
    int64_t when

cdef class Ring:
    cdef Charge* slots
    cdef Py_ssize_t cap
    cdef Py_ssize_t first
    cdef Py_ssize_t count
    cdef int push(self, Py_ssize_t size, Py_ssize_t fds, int64_t tally, int64_t when) except -1
    cdef Py_ssize_t take_left(self, Py_ssize_t n) noexcept
    cdef Py_ssize_t front_size(self) noexcept
    cdef Py_ssize_t front_fds(self) noexcept
    cdef int64_t front_tally(self) noexcept
    cdef int64_t front_when(self) noexcept
    cdef void pop(self) noexcept

cdef struct MapSlot:
    uint64_t key
    void* value

cdef class Map64:
    cdef MapSlot* slots
    cdef Py_ssize_t mask
    cdef readonly Py_ssize_t used
    # Always None: it makes it one of those that the garbage collector asks.
    cdef object tracked
    cdef object get(self, uint64_t key)
    cdef int put(self, uint64_t key, object value) except -1
    cdef object pop(self, uint64_t key)
