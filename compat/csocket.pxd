# cython: language_level=3, cdivision=True
# CSocket: what C says of sockets and of waiting for them, and how messages with descriptors are laid
# out; for whoever calls the kernel without an object for it.
#
# Invariant: nothing here is a module. What is cimported is put in place by the compiler, and nothing
# is imported when it runs.
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

cdef extern from "sys/uio.h":
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "sys/socket.h":
    cdef struct msghdr:
        void* msg_name
        unsigned int msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    cdef struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    ctypedef unsigned int socklen_t
    ssize_t c_recv "recv" (int fd, void* buf, size_t n, int flags) nogil
    ssize_t c_send "send" (int fd, const void* buf, size_t n, int flags) nogil
    ssize_t c_recvmsg "recvmsg" (int fd, msghdr* msg, int flags) nogil
    ssize_t c_sendmsg "sendmsg" (int fd, const msghdr* msg, int flags) nogil
    cmsghdr* CMSG_FIRSTHDR(msghdr* msg) nogil
    cmsghdr* CMSG_NXTHDR(msghdr* msg, cmsghdr* c) nogil
    unsigned char* CMSG_DATA(cmsghdr* c) nogil
    size_t CMSG_SPACE(size_t n) nogil
    size_t CMSG_LEN(size_t n) nogil
    int SOL_SOCKET, SCM_RIGHTS
    int MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_TRUNC

cdef extern from "sys/epoll.h":
    cdef union epoll_data:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_create1(int flags) nogil
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event) nogil
    int epoll_wait(int epfd, epoll_event* events, int n, int timeout) nogil
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    int EPOLLIN, EPOLLOUT, EPOLLHUP, EPOLLERR

cdef enum:
    # SCM_MAX_FD: the kernel passes no more in one message.
    MAX_FDS = 253
    # Room for the header of so many.
    CONTROL = 1040


cdef inline void gathered(msghdr* msg, iovec* parts, size_t n) noexcept nogil:
    """A message of these parts, and nothing else about it."""
    memset(msg, 0, sizeof(msghdr))
    msg.msg_iov = parts
    msg.msg_iovlen = n


cdef inline void of_one(msghdr* msg, iovec* part, const void* data, size_t size) noexcept nogil:
    """A message of one part."""
    part.iov_base = <void*>data
    part.iov_len = size
    gathered(msg, part, 1)


cdef inline cmsghdr* with_fds(msghdr* msg, char* control, size_t n) noexcept nogil:
    """The header of `n` descriptors, each of which is to be `put_fd()`; `control` has room for it."""
    cdef size_t size = CMSG_SPACE(n * sizeof(int))
    cdef cmsghdr* c
    memset(control, 0, size)
    msg.msg_control = control
    msg.msg_controllen = size
    c = CMSG_FIRSTHDR(msg)
    c.cmsg_level = SOL_SOCKET
    c.cmsg_type = SCM_RIGHTS
    c.cmsg_len = CMSG_LEN(n * sizeof(int))
    return c


cdef inline void put_fd(cmsghdr* c, size_t i, int fd) noexcept nogil:
    memcpy(CMSG_DATA(c) + i * sizeof(int), &fd, sizeof(int))


cdef inline size_t count_fds(cmsghdr* c) noexcept nogil:
    """How many descriptors came with this header."""
    cdef size_t n
    if c.cmsg_level != SOL_SOCKET or c.cmsg_type != SCM_RIGHTS:
        return 0
    # A truncated header may claim more than there is.
    n = (c.cmsg_len - CMSG_LEN(0)) // sizeof(int)
    return n if n < MAX_FDS else MAX_FDS


cdef inline int get_fd(cmsghdr* c, size_t i) noexcept nogil:
    cdef int fd
    memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int))
    return fd


# The calls, of which an interruption is no result.


cdef inline ssize_t recv_bytes(int fd, void* p, size_t n, int flags) noexcept nogil:
    cdef ssize_t got
    while True:
        got = c_recv(fd, p, n, flags)
        if got >= 0 or errno != EINTR:
            return got


cdef inline ssize_t send_bytes(int fd, const void* p, size_t n, int flags) noexcept nogil:
    cdef ssize_t sent
    while True:
        sent = c_send(fd, p, n, flags)
        if sent >= 0 or errno != EINTR:
            return sent


cdef inline ssize_t recv_message(int fd, msghdr* msg, int flags) noexcept nogil:
    cdef ssize_t got
    while True:
        got = c_recvmsg(fd, msg, flags)
        if got >= 0 or errno != EINTR:
            return got


cdef inline ssize_t send_message(int fd, const msghdr* msg, int flags) noexcept nogil:
    cdef ssize_t sent
    while True:
        sent = c_sendmsg(fd, msg, flags)
        if sent >= 0 or errno != EINTR:
            return sent
