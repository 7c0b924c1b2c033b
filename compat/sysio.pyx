# cython: language_level=3, boundscheck=False, wraparound=False
"""System calls of the transport: receive, send, poll.

Invariant: nothing here raises for what the kernel says; results are counts, failures are
negative errno values, and the caller decides. Descriptors that arrive are close-on-exec and
end up in `Intake.fds` or are closed. `sysio.py` is the same module in plain Python.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from posix.unistd cimport close as c_close

from jitney.broker.ticks cimport now_ns

from .csocket cimport (
    CMSG_FIRSTHDR, CMSG_NXTHDR, CONTROL, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD,
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, MAX_FDS, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_DONTWAIT,
    MSG_NOSIGNAL, SOL_SOCKET, cmsghdr, count_fds, epoll_create1, epoll_ctl, epoll_event, epoll_wait,
    gathered, get_fd, iovec, msghdr, put_fd, recv_bytes, recv_message, send_bytes, send_message,
    socklen_t, with_fds,
)

COMPILED = True

cdef extern from "sys/socket.h":
    int accept4(int fd, void* address, socklen_t* n, int flags) nogil
    int getsockopt(int fd, int level, int option, void* value, socklen_t* n) nogil
    int setsockopt(int fd, int level, int option, const void* value, socklen_t n) nogil
    int SO_SNDBUF
    int SOCK_CLOEXEC, SOCK_NONBLOCK

cdef enum:
    MAX_VECTORS = 64
    WIDE = 1 << 20

cdef int64_t now() noexcept:
    """Microseconds on a clock that only goes forward."""
    return <int64_t>(now_ns() // 1000)


READABLE = EPOLLIN
WRITABLE = EPOLLOUT
HUNG_UP = EPOLLHUP | EPOLLERR


def attach(sock):
    """Takes over a socket object; its descriptor."""
    return sock.detach()


cpdef int accept_one(int fd) except -200:
    """A connection to the listening socket, non-blocking and close-on-exec; or -errno."""
    cdef int got = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)
    return got if got >= 0 else -errno


cpdef void close_socket(int fd) noexcept:
    """Closes a socket that came from `accept_one()` or `attach()`."""
    c_close(fd)


cpdef void widen(int fd) noexcept:
    """Asks for as large a send buffer as the system gives anybody."""
    cdef int size = WIDE
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size))


cpdef object option(int fd, int number, Py_ssize_t size):
    """Up to `size` bytes of a socket option of level SOL_SOCKET, or the errno as an int."""
    cdef bytes value = PyBytes_FromStringAndSize(NULL, size)
    cdef socklen_t n = <socklen_t>size
    if getsockopt(fd, SOL_SOCKET, number, PyBytes_AS_STRING(value), &n) < 0:
        return errno
    return value if n == size else value[:n]


cdef class Intake:
    """What a receive brought besides bytes."""

    def __cinit__(self):
        self.fds = []
        self.truncated = False

    cdef Py_ssize_t recv(self, int fd, uint8_t* p, Py_ssize_t off, Py_ssize_t n, bint with_fds,
                         uint8_t* p2, Py_ssize_t n2):
        """Receives up to n bytes at p+off and, behind them, n2 at p2. Bytes, 0 at the end, or -errno."""
        cdef msghdr msg
        cdef iovec vec[2]
        cdef char control[CONTROL]
        cdef cmsghdr* c
        cdef ssize_t got
        cdef size_t i
        if not with_fds and n2 == 0:
            got = recv_bytes(fd, p + off, n, MSG_DONTWAIT)
            return got if got >= 0 else -errno
        vec[0].iov_base = p + off
        vec[0].iov_len = n
        vec[1].iov_base = p2
        vec[1].iov_len = n2
        gathered(&msg, vec, 2 if n2 else 1)
        if with_fds:
            msg.msg_control = control
            msg.msg_controllen = sizeof(control)
        # Without room for them the kernel closes descriptors that nobody may send here.
        got = recv_message(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
        if got < 0:
            return -errno
        self.truncated = with_fds and (msg.msg_flags & MSG_CTRUNC) != 0
        c = CMSG_FIRSTHDR(&msg) if with_fds else NULL
        while c is not NULL:
            for i in range(count_fds(c)):
                self.fds.append(get_fd(c, i))
            c = CMSG_NXTHDR(&msg, c)
        return got


cdef class Outlet:
    """A gathered send: `start()`, any number of `add()`, `send()`."""

    def __cinit__(self):
        self.vectors = malloc(MAX_VECTORS * sizeof(iovec))
        if self.vectors is NULL:
            raise MemoryError
        self.count = 0
        self.size = 0
        self.fds = None

    def __dealloc__(self):
        free(self.vectors)

    cdef void start(self, object fds):
        self.count = 0
        self.size = 0
        self.fds = fds

    cdef bint add(self, const uint8_t* p, Py_ssize_t off, Py_ssize_t n):
        """False when no more fits."""
        cdef iovec* vec = <iovec*>self.vectors
        if self.count == MAX_VECTORS:
            return False
        vec[self.count].iov_base = <void*>(p + off)
        vec[self.count].iov_len = n
        self.count += 1
        self.size += n
        return True

    cdef Py_ssize_t send(self, int fd):
        """Bytes sent, or -errno."""
        cdef msghdr msg
        cdef char control[CONTROL]
        cdef cmsghdr* c
        cdef ssize_t sent
        cdef size_t count
        cdef size_t i = 0
        gathered(&msg, <iovec*>self.vectors, self.count)
        if self.fds is not None:
            count = len(self.fds)
            if count > MAX_FDS:
                count = MAX_FDS
            c = with_fds(&msg, control, count)
            for number in self.fds:
                if i == count:
                    break
                put_fd(c, i, number)
                i += 1
        self.fds = None
        sent = send_message(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL)
        return sent if sent >= 0 else -errno


cdef Py_ssize_t send_one(int fd, const uint8_t* p, Py_ssize_t off, Py_ssize_t n):
    """One run of bytes without descriptors. Bytes sent, or -errno."""
    cdef ssize_t sent = send_bytes(fd, p + off, n, MSG_DONTWAIT | MSG_NOSIGNAL)
    return sent if sent >= 0 else -errno


cdef class Poller:
    """A level-triggered epoll set: a private one, itself watched by the event loop, or, with
    `shared` its descriptor, the event loop's own. `lock`: let go of while we sleep, see
    `jitney.kdbus.worlds.lock`; None where there are no other threads."""

    def __cinit__(self, int shared=-1):
        self.capacity = 256
        self.shared = shared >= 0
        self.events = malloc(self.capacity * sizeof(epoll_event))
        if self.events is NULL:
            raise MemoryError
        self.epfd = shared if self.shared else epoll_create1(EPOLL_CLOEXEC)
        if self.epfd < 0:
            raise OSError(errno, "epoll_create1")

    def __dealloc__(self):
        self.close()
        free(self.events)

    cpdef void close(self) noexcept:
        if self.epfd >= 0 and not self.shared:
            c_close(self.epfd)
        self.epfd = -1

    def watch(self, loop, ready):
        """The loop calls `ready()` when something in our own set is."""
        loop.add_reader(self.epfd, ready)

    def unwatch(self, loop):
        loop.remove_reader(self.epfd)

    cdef int add(self, int fd) except -2:
        """0, or -1 if the kernel has no room for it (ENOMEM, ENOSPC)."""
        cdef epoll_event ev
        ev.events = EPOLLIN
        ev.data.fd = fd
        return epoll_ctl(self.epfd, EPOLL_CTL_ADD, fd, &ev)

    cdef int modify(self, int fd, bint readable, bint writable) except -2:
        cdef epoll_event ev
        ev.events = (EPOLLIN if readable else 0) | (EPOLLOUT if writable else 0)
        ev.data.fd = fd
        return epoll_ctl(self.epfd, EPOLL_CTL_MOD, fd, &ev)

    cdef int remove(self, int fd) except -2:
        cdef epoll_event ev
        return epoll_ctl(self.epfd, EPOLL_CTL_DEL, fd, &ev)

    cdef void shut(self, int fd) noexcept:
        """Closes a socket that is in the set. To close it alone would leave it there while a child
        of ours has it as well."""
        self.remove(fd)
        close_socket(fd)

    cdef int wait(self, int timeout) except -2:
        """How many descriptors are ready within `timeout` milliseconds (-1: however long it takes);
        -1 if a signal came first."""
        cdef int n
        if self.lock is not None:
            return self.wait_without(timeout)
        if timeout == 0:
            n = epoll_wait(self.epfd, <epoll_event*>self.events, self.capacity, 0)
        else:
            with nogil:
                n = epoll_wait(self.epfd, <epoll_event*>self.events, self.capacity, timeout)
        return n if n >= 0 else -1

    cdef int wait_without(self, int timeout) except -2:
        cdef int n
        self.lock.release()
        try:
            with nogil:
                n = epoll_wait(self.epfd, <epoll_event*>self.events, self.capacity, timeout)
        finally:
            self.lock.retake()
        return n if n >= 0 else -1

    cdef int spin(self, int microseconds) except -2:
        """wait() without going to sleep, for so long; not at all where others want the lock."""
        cdef int n = 0
        if self.lock is not None:
            return self.wait_without(0)
        cdef int64_t until = 0
        cdef int64_t t
        while n <= 0:
            n = epoll_wait(self.epfd, <epoll_event*>self.events, self.capacity, 0)
            t = now()
            if until == 0:
                until = t + microseconds
            elif t >= until:
                break
        return n if n >= 0 else -1

    cdef int fd_at(self, int i):
        return (<epoll_event*>self.events)[i].data.fd

    cdef int events_at(self, int i):
        return <int>(<epoll_event*>self.events)[i].events
