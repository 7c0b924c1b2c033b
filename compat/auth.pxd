# cython: language_level=3
cimport cython

cdef int _NUL, _WAIT_AUTH, _WAIT_DATA, _WAIT_BEGIN, _DONE, _FAILED
cdef int _START, _RESPONSE, _REJECT, _AGREE, _FINISH, _DROP
cdef int _E_UNKNOWN, _E_IDLE, _E_EARLY, _E_BUSY, _E_AUTH_LATE, _E_DATA_LATE
cdef int _E_ASCII, _E_HEX, _E_NO_FDS, _ERRORS
cdef tuple _ERROR_REPLIES
cdef dict _TABLE

cdef class Offer:
    cdef readonly frozenset mechanisms
    cdef readonly bytes ok
    cdef readonly bytes rejected
    cdef readonly bint allow_anonymous
    cdef readonly object keyring
    cdef readonly dict usual

cdef class Auth:
    cdef readonly bint done
    cdef readonly bint failed
    cdef readonly str reason
    cdef readonly object identity
    cdef readonly str mechanism
    cdef readonly bint unix_fds
    cdef readonly bytes leftover
    cdef Offer _offer
    cdef object _uid
    cdef bint _fds_possible
    cdef int _state
    cdef bytes _buffer
    cdef bytes _out
    cdef int _rejections
    cdef bytes _mechanism
    cdef bytes _claimed
    cdef bint _prompted
    cdef object _keyring
    cdef int _key
    cdef bytes _challenge
    cpdef bytes feed(self, bytes data)
    @cython.locals(end=Py_ssize_t, known=tuple, answer=bytes, usual=dict)
    cdef bytes _feed_first(self, bytes data)
    @cython.locals(buffer=bytes, line=bytes, start=Py_ssize_t, end=Py_ssize_t)
    cdef bytes _feed(self, bytes data)
    @cython.locals(act=cython.int, word=bytes, rest=bytes, blank=Py_ssize_t, row=tuple)
    cdef _command(self, bytes line)
    @cython.locals(name=bytes, response=bytes, blank=Py_ssize_t)
    cdef _start(self, bytes rest)
    @cython.locals(data=bytes)
    cdef _response(self, bytes text)
    cdef _external(self, bytes data)
    cdef _anonymous(self, bytes data)
    cdef _cookie_challenge(self, bytes user)
    @cython.locals(blank=Py_ssize_t, theirs=bytes, proof=bytes)
    cdef _cookie_answer(self, bytes data)
    cdef _accept(self)
    cdef _reject(self)
    cdef _finish(self)
    cdef _fail(self, str reason)

@cython.locals(i=Py_ssize_t, c=cython.uchar)
cdef Py_ssize_t _find_blank(bytes text)
@cython.locals(i=Py_ssize_t)
cdef Py_ssize_t _find_line(bytes text, Py_ssize_t start)
@cython.locals(end=Py_ssize_t)
cdef Py_ssize_t _find_begin(bytes text)
@cython.locals(i=Py_ssize_t, c=cython.uchar)
cdef bint _clean(bytes text)
