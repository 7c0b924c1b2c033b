# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Connects: clients that come, authenticate, say Hello and go.

Invariant: a connection counts when the reply to its Hello is there, complete; the line that lets
it in and the answer about descriptors came before.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memmove, memset
from posix.unistd cimport close

from jitney.broker.ticks cimport now_ns as now
from jitney.compat.csocket cimport MSG_NOSIGNAL, recv_bytes, send_bytes

from .link cimport BAD_FRAME, CLOSED, FINE, REFUSED, SYSTEM, Histogram, fail
from .words cimport whole

from .wire import hello

cdef extern from "sys/socket.h":
    int c_socket "socket" (int family, int kind, int protocol) nogil
    int c_connect "connect" (int fd, const void* addr, unsigned int n) nogil
    int AF_UNIX, SOCK_STREAM, SOCK_CLOEXEC

cdef extern from "sys/un.h":
    cdef struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]


cdef int hear(int fd, uint8_t* buf, Py_ssize_t cap, Py_ssize_t* have, bint lines, int wanted) noexcept nogil:
    """Reads until `wanted` lines (or, without `lines`, one method return) are there; 0 or a code."""
    cdef ssize_t got
    cdef Py_ssize_t i, size, pos
    cdef int seen
    while True:
        if lines:
            seen = 0
            for i in range(have[0]):
                if buf[i] == 10:
                    seen += 1
                    if seen == wanted:
                        memmove(buf, buf + i + 1, have[0] - i - 1)
                        have[0] -= i + 1
                        return FINE
        else:
            pos = 0
            while have[0] - pos >= 16:
                size = whole(buf + pos)
                if size > have[0] - pos:
                    break
                if buf[pos + 1] == 2:
                    return FINE
                if buf[pos + 1] == 3:
                    return REFUSED
                pos += size
        if have[0] == cap:
            return BAD_FRAME
        got = recv_bytes(fd, buf + have[0], cap - have[0], 0)
        if got <= 0:
            return CLOSED
        have[0] += got


cdef int tell(int fd, bytes data) noexcept:
    cdef ssize_t n = PyBytes_GET_SIZE(data)
    return FINE if send_bytes(fd, PyBytes_AS_STRING(data), n, MSG_NOSIGNAL) == n else CLOSED


def connects(path, double seconds, bint pipelined, Histogram histogram):
    """Connects, authenticates, says Hello and leaves, again and again; (how often, seconds).

    `pipelined`: all that the client has to say in one write, as sd-bus and GLib can; else step by
    step, as libdbus does."""
    cdef uint64_t started = now()
    made = run(path, seconds, pipelined, histogram, 0)
    return made, (now() - started) / 1e9


def stay(path, int count):
    """Connections that have said Hello, and say no more; their descriptors, to be closed."""
    return run(path, 0.0, True, Histogram(), count)


cdef object run(path, double seconds, bint pipelined, Histogram histogram, int keep):
    cdef sockaddr_un addr
    cdef uint8_t buf[4096]
    cdef Py_ssize_t have
    cdef int fd, code
    cdef bytes encoded = os.fsencode(path)
    cdef bytes uid = str(os.getuid()).encode().hex().encode()
    cdef bytes first = b"\0AUTH EXTERNAL " + uid + b"\r\n"
    cdef bytes second = b"NEGOTIATE_UNIX_FD\r\n"
    cdef bytes third = b"BEGIN\r\n"
    cdef bytes greeting = hello()
    cdef bytes whole = first + second + third + greeting
    cdef uint64_t started = now()
    cdef uint64_t until = started + <uint64_t>(seconds * 1e9)
    cdef uint64_t t
    cdef int64_t made = 0
    cdef int64_t wanted = keep
    if len(encoded) > 107:
        raise ValueError("that path is too long for a socket")
    memset(&addr, 0, sizeof(addr))
    addr.sun_family = AF_UNIX
    memcpy(addr.sun_path, PyBytes_AS_STRING(encoded), len(encoded))
    kept = []
    while True:
        t = now()
        if (wanted and made >= wanted) or (not wanted and t >= until):
            break
        fd = c_socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
        if fd < 0 or c_connect(fd, &addr, sizeof(addr)) < 0:
            fail(SYSTEM, None)
        have = 0
        if pipelined:
            code = tell(fd, whole)
            if code == FINE:
                code = hear(fd, buf, sizeof(buf), &have, True, 2)
        else:
            code = tell(fd, first)
            if code == FINE:
                code = hear(fd, buf, sizeof(buf), &have, True, 1)
            if code == FINE:
                code = tell(fd, second)
            if code == FINE:
                code = hear(fd, buf, sizeof(buf), &have, True, 1)
            if code == FINE:
                code = tell(fd, third)
            if code == FINE:
                code = tell(fd, greeting)
        if code == FINE:
            code = hear(fd, buf, sizeof(buf), &have, False, 1)
        if code != FINE:
            close(fd)
            fail(code, None)
        if wanted:
            kept.append(fd)
        else:
            close(fd)
        histogram.add(now() - t)
        made += 1
    return kept if wanted else made
