# cython: language_level=3
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from .fds cimport FdSet
from .mem cimport all_zero, bools_ok, free_ints, int_array, load32, of_bytes, same
from .mem cimport take, utf8_ok
from .syntax cimport CHARS, bus_name_ok, interface_ok, member_ok, path_ok, signature_ok
from .syntax cimport single_type_ok, type_end

cdef const uint8_t* ALIGN
cdef const uint8_t* FIELD_TYPES

cdef int64_t frame_size(const uint8_t* p, Py_ssize_t off, Py_ssize_t have, int64_t limit) noexcept
cdef Py_ssize_t value_end(const uint8_t* p, bint big, const uint8_t* sig, Py_ssize_t spos, Py_ssize_t send,
                          Py_ssize_t pos, Py_ssize_t end, int depth) noexcept
cpdef bytes clean(Message msg)

cdef bytes LOCAL_PATH
cdef bytes LOCAL_INTERFACE

cdef class Message:
    cdef const uint8_t* p
    cdef readonly Py_ssize_t size
    cdef readonly uint8_t type
    cdef readonly uint8_t flags
    cdef bint big
    cdef readonly uint32_t serial
    cdef readonly uint32_t reply_serial
    cdef readonly uint32_t n_fds
    cdef Py_ssize_t body_off, fields_end
    cdef readonly Py_ssize_t body_len
    cdef Py_ssize_t path_off, iface_off, member_off, error_off, dest_off, sender_off, sig_off
    cdef Py_ssize_t path_len, iface_len, member_len, error_len, dest_len, sender_len, sig_len
    cdef bint unclean
    cdef readonly int n_args
    cdef int32_t* arg_kind
    cdef int32_t* arg_off
    cdef int32_t* arg_len
    cdef public FdSet fds
    cdef public object owner
    cdef object payload

    cdef bint parse(self, const uint8_t* p, Py_ssize_t size) noexcept
    cdef bint parse_fields(self, Py_ssize_t end) noexcept
    cdef bint parse_body(self) noexcept
    cpdef bint load(self, bytes data)
    cpdef Message copy(self)
