# cython: language_level=3
from libc.stdint cimport uint8_t

from .mem cimport of_bytes

cdef const uint8_t* CHARS

cdef bint path_ok(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept
cdef bint member_ok(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept
cdef bint interface_ok(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept
cdef bint bus_name_ok(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept
cdef bint namespace_ok(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept
cdef bint _elements_ok(const uint8_t* p, Py_ssize_t off, Py_ssize_t n, int first, int least) noexcept
cdef bint signature_ok(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept
cdef bint single_type_ok(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept
cdef Py_ssize_t type_end(const uint8_t* p, Py_ssize_t pos, Py_ssize_t end, int arrays, int structs) noexcept

cpdef bint is_path(bytes text)
cpdef bint is_member(bytes text)
cpdef bint is_interface(bytes text)
cpdef bint is_bus_name(bytes text)
cpdef bint is_namespace(bytes text)
cpdef bint is_signature(bytes text)
