# cython: language_level=3
"""Sysio: reading and writing frames and waiting for them, without an object for each.

Invariant: every descriptor that came is in `fds` after `receive()`, whatever else is wrong with the
frame. `sysio.py` is the same in plain Python.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memset
from posix.time cimport CLOCK_MONOTONIC, timespec

from jitney.broker.ticks cimport now_ns
from jitney.compat.csocket cimport (
    CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, CMSG_SPACE, EPOLL_CTL_ADD, EPOLLIN, MAX_FDS,
    MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC, SOL_SOCKET, cmsghdr,
    count_fds, epoll_ctl, epoll_event, epoll_wait, get_fd, iovec, msghdr, of_one, recv_message,
    send_bytes,
)

cdef extern from "sys/timerfd.h":
    cdef struct itimerspec:
        timespec it_value
    int timerfd_create(int clock, int flags) nogil
    int timerfd_settime(int fd, int flags, const itimerspec* new, itimerspec* old) nogil
    int TFD_NONBLOCK, TFD_CLOEXEC

cdef extern from "unistd.h":
    int c_close "close" (int fd) nogil
    ssize_t c_read "read" (int fd, void* to, size_t n) nogil

cdef extern from *:
    """
    #ifdef SCM_CREDENTIALS
    #define JITNEY_CREDENTIALS SCM_CREDENTIALS
    #else
    #define JITNEY_CREDENTIALS -1
    #endif
    """
    int JITNEY_CREDENTIALS

cdef int LONG = 100
cdef size_t ROOM = CMSG_SPACE(4 * MAX_FDS) + CMSG_SPACE(12)


cdef class Reader:
    """`buffer` has the frame after `receive()`, `fds` and `said` what came with it. `cut`: it is
    longer than the buffer; `lost`: there were more descriptors."""

    def __cinit__(self, bytearray buffer):
        self.buffer = buffer
        self.fds = ()
        self.said = None
        self.control = <uint8_t*>malloc(ROOM)
        if self.control is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.control)

    cpdef Py_ssize_t receive(self, object sock, int fd) except -9:
        """Its size, 0 at the end; -1: nothing is there; -2: the socket is of no use."""
        cdef msghdr msg
        cdef iovec vec
        cdef cmsghdr* c
        cdef ssize_t got
        cdef size_t i, n
        of_one(&msg, &vec, PyByteArray_AS_STRING(self.buffer), PyByteArray_GET_SIZE(self.buffer))
        msg.msg_control = self.control
        msg.msg_controllen = ROOM
        got = recv_message(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
        if got < 0:
            return -1 if errno == EAGAIN else -2
        self.fds = ()
        self.cut = (msg.msg_flags & MSG_TRUNC) != 0
        self.lost = (msg.msg_flags & MSG_CTRUNC) != 0
        said = None
        c = CMSG_FIRSTHDR(&msg)
        while c is not NULL:
            if c.cmsg_level == SOL_SOCKET and c.cmsg_type == JITNEY_CREDENTIALS:
                n = c.cmsg_len - CMSG_LEN(0)
                said = self.said
                if (
                    said is None or PyBytes_GET_SIZE(said) != <Py_ssize_t>n
                    or memcmp(PyBytes_AS_STRING(said), CMSG_DATA(c), n)
                ):
                    said = (<char*>CMSG_DATA(c))[:n]
            elif count_fds(c):
                fds = list(self.fds)
                for i in range(count_fds(c)):
                    fds.append(get_fd(c, i))
                self.fds = fds
            c = CMSG_NXTHDR(&msg, c)
        self.said = said
        return got


cdef class Poll:
    """What is ready of an epoll set, from `wait()` to the next.

    Long waits end by a timer of their own in the set, and may end early: those that are over sooner
    need not set one up and take it down again."""

    def __cinit__(self, epoll):
        self.timer = -1
        self.due = 0
        self.epoll = epoll
        self.fd = epoll.fileno()
        self.room = 0
        self.events = NULL

    def __dealloc__(self):
        self.close()
        free(self.events)

    cpdef void close(self) noexcept:
        """The set is over; its number may soon be another's."""
        self.fd = -1
        if self.timer >= 0:
            c_close(self.timer)
        self.timer = -2

    cdef int wait(self, int milliseconds, Py_ssize_t most) except -9:
        """How many, at most `most`; -1 if a signal came first."""
        cdef int n
        cdef epoll_event* events
        if most > self.room:
            free(self.events)
            self.room = 0
            self.events = malloc(most * sizeof(epoll_event))
            if self.events is NULL:
                raise MemoryError
            self.room = most
        events = <epoll_event*>self.events
        if milliseconds == 0:
            n = epoll_wait(self.fd, events, most, 0)
        else:
            if milliseconds >= LONG and self.arm(milliseconds):
                milliseconds = -1
            with nogil:
                n = epoll_wait(self.fd, events, most, milliseconds)
        if n < 0 and errno != EINTR:
            raise OSError(errno, "epoll_wait")
        if self.timer >= 0 and n > 0:
            n = self.without_timer(n)
        return n

    cdef bint arm(self, int milliseconds):
        """Whether there is a timer that ends a wait of so long."""
        cdef epoll_event event
        cdef itimerspec when
        cdef uint64_t now = milliseconds_now()
        if now < self.due <= now + <uint64_t>milliseconds:
            return True
        if self.timer == -1:
            self.timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
            event.events = EPOLLIN
            event.data.fd = self.timer
            if self.timer >= 0 and epoll_ctl(self.fd, EPOLL_CTL_ADD, self.timer, &event) < 0:
                c_close(self.timer)
                self.timer = -1
            if self.timer < 0:
                self.timer = -2
        if self.timer < 0:
            return False
        memset(&when, 0, sizeof(when))
        when.it_value.tv_sec = milliseconds // 1000
        when.it_value.tv_nsec = milliseconds % 1000 * 1000000
        if timerfd_settime(self.timer, 0, &when, NULL) < 0:
            return False
        self.due = now + <uint64_t>milliseconds
        return True

    cdef int without_timer(self, int n):
        cdef epoll_event* events = <epoll_event*>self.events
        cdef uint64_t times
        cdef int i
        for i in range(n):
            if events[i].data.fd == self.timer:
                c_read(self.timer, &times, sizeof(times))
                self.due = 0
                events[i] = events[n - 1]
                return n - 1
        return n

    cdef int fd_at(self, int i):
        return (<epoll_event*>self.events)[i].data.fd

    cdef int events_at(self, int i):
        return <int>(<epoll_event*>self.events)[i].events


cdef Py_ssize_t send(object sock, int fd, bytearray data, Py_ssize_t size) except -9:
    """How much of the first `size` bytes the socket took; -1: nothing now, -2: it is of no use."""
    cdef ssize_t sent = send_bytes(fd, PyByteArray_AS_STRING(data), size, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent >= 0:
        return sent
    return -1 if errno == EAGAIN else -2


cdef uint64_t milliseconds_now() noexcept:
    return now_ns() // 1000000
