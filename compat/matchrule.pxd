# cython: language_level=3
cimport cython
from libc.stdint cimport uint8_t

from jitney.broker.match cimport Arg, Rule
from jitney.broker.mem cimport of_bytes, same, take
from jitney.broker.syntax cimport bus_name_ok, interface_ok, member_ok, namespace_ok, path_ok

cdef dict TYPES

@cython.locals(rule=Rule)
cpdef Rule parse(bytes text)
@cython.locals(
    rule=Rule, arg=Arg, args=list, pos=Py_ssize_t, end=Py_ssize_t,
    key=Py_ssize_t, n_key=Py_ssize_t, start=Py_ssize_t, n=Py_ssize_t, at=Py_ssize_t, keys=int, c=int,
)
cpdef Rule plain(bytes text)
@cython.locals(arg=Arg, pos=Py_ssize_t, stop=Py_ssize_t, index=int, kind=int)
cdef Arg plain_arg(const uint8_t* p, Py_ssize_t key, Py_ssize_t n_key, Py_ssize_t start, Py_ssize_t n)
cpdef Rule thorough(bytes text)
