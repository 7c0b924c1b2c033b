# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""RPC: one call after the other, over a classic socket, kdbus's socket format and kdbus's ioctls.

Invariant: the loops are alike: a caller sends, waits in a system call for the answer and notes the
time; a service waits, looks at the body and answers. Nothing of Python is in them. What came is
checked (number, size, ends and a word in each 4 KiB); a difference ends the measurement with
RpcError. Bodies that may be changed begin with the call's number.

Layouts are those of the D-Bus specification, of docs/native.md and of kdbus's manual pages.
"""

from libc.errno cimport EAGAIN, EBUSY, ECONNRESET, EINTR, EPIPE, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport close

from jitney.broker.ticks cimport now_ns as now
from jitney.compat.csocket cimport (
    CMSG_FIRSTHDR, MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, cmsghdr, count_fds, get_fd, iovec, msghdr, of_one,
    put_fd, recv_bytes, recv_message, send_bytes, send_message, with_fds,
)

from .words cimport get32, get64, put32, put64, whole

cdef extern from "sched.h":
    int sched_yield() nogil

cdef extern from "sys/ioctl.h":
    int c_ioctl "ioctl" (int fd, unsigned long request, void* argument) nogil

cdef extern from "sys/mman.h":
    void* c_mmap "mmap" (void* at, size_t size, int prot, int flags, int fd, int64_t offset) nogil
    int c_munmap "munmap" (void* at, size_t size) nogil
    int PROT_READ, MAP_SHARED
    void* MAP_FAILED

cdef extern from "poll.h":
    cdef struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll" (pollfd* fds, unsigned long n, int timeout) nogil
    short POLLIN

cdef enum:
    FRAME = 65536
    FINE = 0
    OVER = 1
    WRONG = -1
    SYSTEM = -2
    REFUSED = -3
    # Which of docs/native.md's and of kdbus's numbers are used here.
    OP_SEND = 0x90
    OP_MESSAGE = 0x8201
    ITEM_OFF = 3
    ITEM_MEMFD = 4
    PATIENCE = 30

cdef unsigned long IOCTL_SEND = 0x40389590
cdef unsigned long IOCTL_RECV = 0x80409591
cdef unsigned long IOCTL_FREE = 0x40209583


class RpcError(Exception):
    """A broker that did not do what it should: the measurement is void."""


cdef int same(const uint8_t* got, const uint8_t* want, Py_ssize_t size, Py_ssize_t skip) noexcept nogil:
    """Whether these are the bytes that were sent, but for the first `skip`."""
    cdef Py_ssize_t i = 4096
    cdef Py_ssize_t ends = 64 if size > 128 else 0
    if not ends:
        return memcmp(got + skip, want + skip, size - skip) == 0
    if memcmp(got + skip, want + skip, ends - skip) or memcmp(got + size - ends, want + size - ends, ends):
        return 0
    while i < size - 8:
        if get32(got + i) != get32(want + i):
            return 0
        i += 4096
    return 1


cdef int failed(int what, text) except -1:
    if what == SYSTEM:
        raise OSError(errno, text)
    if what == REFUSED:
        raise RpcError(f"{text}: refused")
    raise RpcError(f"{text}: something else came than was sent")


cdef class Buffer:
    """Memory of ours; `at` is its address for whoever needs it as a number."""

    cdef uint8_t* p
    cdef readonly Py_ssize_t size

    def __cinit__(self, bytes data, Py_ssize_t size=0):
        self.size = max(len(data), size)
        self.p = <uint8_t*>malloc(self.size)
        if self.p is NULL:
            raise MemoryError
        memcpy(self.p, <const uint8_t*>data, len(data))

    def __dealloc__(self):
        free(self.p)

    @property
    def at(self):
        return <uintptr_t>self.p


def command(int fd, unsigned long number, bytes data):
    """An ioctl; the command as it is afterwards. It has to begin at a multiple of 8."""
    cdef Buffer room = Buffer(data)
    if c_ioctl(fd, number, room.p) < 0:
        raise OSError(errno, "ioctl")
    return room.p[:len(data)]


# A classic D-Bus socket


cdef int send_all(int fd, const uint8_t* p, Py_ssize_t size) noexcept nogil:
    cdef ssize_t sent
    while size:
        sent = send_bytes(fd, p, size, MSG_NOSIGNAL)
        if sent < 0:
            return OVER if errno in (EPIPE, ECONNRESET) else SYSTEM
        p += sent
        size -= sent
    return FINE


cdef Py_ssize_t receive(int fd, uint8_t* p, Py_ssize_t room) noexcept nogil:
    """One whole message; its size, or minus one at the end."""
    cdef Py_ssize_t have = 0
    cdef Py_ssize_t need = 16
    cdef ssize_t got
    while have < need:
        # All there is: no more than one message is ever under way.
        got = recv_bytes(fd, p + have, room - have, 0)
        if got <= 0:
            return -1
        have += got
        if have >= 16:
            need = whole(p)
            if need > room:
                return -1
    return have


def classic_calls(int fd, Buffer call, Py_ssize_t body, Py_ssize_t reply_at, int first, list times, int count):
    """`count` calls; `body`: how many bytes at the end of the message are its body, of which the
    first four say how many follow; `reply_at`: where in an answer its reply serial stands."""
    cdef Buffer answer = Buffer(b"", 4096)
    cdef uint64_t t
    cdef int i, what
    cdef uint32_t serial = first
    cdef Py_ssize_t got
    for i in range(count):
        with nogil:
            t = now()
            put32(call.p + 8, serial)
            put32(call.p + call.size - body + 4, serial)
            what = send_all(fd, call.p, call.size)
            got = receive(fd, answer.p, answer.size) if what == FINE else -1
            t = now() - t
        if got < 0:
            failed(SYSTEM, "classic")
        if answer.p[1] != 2:
            failed(REFUSED, "classic")
        if get32(answer.p + reply_at) != serial:
            failed(WRONG, "classic")
        times.append(t)
        serial += 1
    return serial


def classic_serve(int fd, Buffer reply, Py_ssize_t reply_at, Buffer want):
    """Answers until the socket is over. `want`: bodies, any size of which may come."""
    cdef Buffer call = Buffer(b"", want.size + 65536)
    cdef Py_ssize_t got, body
    cdef uint32_t serial = 1000
    cdef int what = FINE
    with nogil:
        while what == FINE:
            got = receive(fd, call.p, call.size)
            if got < 0:
                what = OVER
                break
            if call.p[1] != 1:
                continue
            body = get32(call.p + 4) - 4
            if get32(call.p + got - body) != get32(call.p + 8) or not same(
                call.p + got - body, want.p, body, 4
            ):
                what = WRONG
                break
            put32(reply.p + 8, serial)
            put32(reply.p + reply_at, get32(call.p + 8))
            serial += 1
            what = send_all(fd, reply.p, reply.size)
    if what != OVER:
        failed(what, "classic")


# Messages in a pool


cdef int look(const uint8_t* message, const uint8_t* want, int memfd) noexcept nogil:
    """Whether the message's payload is what was sent."""
    cdef Py_ssize_t size = get64(message)
    cdef Py_ssize_t at = 64
    cdef uint64_t length, where
    cdef const uint8_t* data
    cdef int right
    while at < size:
        if get64(message + at + 8) == ITEM_OFF:
            length = get64(message + at + 16)
            data = message + get64(message + at + 24)
            # Of a copied memfd there is no number in it.
            return same(data, want, length, 8) and (
                get64(data) == get64(message + 48) or get64(data) == get64(want)
            )
        if get64(message + at + 8) == ITEM_MEMFD:
            where = get64(message + at + 16)
            length = get64(message + at + 24)
            data = <const uint8_t*>c_mmap(NULL, length, PROT_READ, MAP_SHARED, memfd, where)
            if <void*>data == MAP_FAILED:
                return 0
            right = same(data, want, length, 8)
            c_munmap(<void*>data, length)
            return right
        at += (get64(message + at) + 7) & ~7
    return 0


# kdbus's format over a socket


cdef class Native:
    """A connected handle. `frame`: a request that begins with one offset to free, then SEND's
    command, the message, and what belongs to them; `message_at` is where in it the message is.
    `accepts`: descriptors may come, as HELLO has said; who takes none needs no room for them."""

    cdef int fd
    cdef const uint8_t[::1] view
    cdef const uint8_t* pool
    cdef Buffer frame
    cdef Py_ssize_t message_at
    cdef uint8_t[FRAME] came
    cdef public uint64_t freed
    cdef uint32_t serial
    cdef int got_fd
    cdef bint accepts

    def __init__(self, int fd, pool, Buffer frame, Py_ssize_t message_at, freed, serial, accepts):
        self.fd = fd
        self.view = pool
        self.pool = &self.view[0]
        self.frame = frame
        self.message_at = message_at
        self.freed = freed
        self.serial = serial
        self.got_fd = -1
        self.accepts = accepts

    @property
    def last_serial(self):
        return self.serial

    cdef int receive(self) noexcept nogil:
        cdef msghdr msg
        cdef iovec vec
        cdef char control[256]
        cdef cmsghdr* c
        cdef ssize_t got
        of_one(&msg, &vec, self.came, FRAME)
        if self.accepts:
            msg.msg_control = control
            msg.msg_controllen = sizeof(control)
            got = recv_message(self.fd, &msg, MSG_CMSG_CLOEXEC)
        else:
            got = recv_bytes(self.fd, self.came, FRAME, 0)
        if got <= 0:
            return OVER if got == 0 or errno == ECONNRESET else SYSTEM
        if not self.accepts:
            return FINE
        if self.got_fd >= 0:
            close(self.got_fd)
            self.got_fd = -1
        c = CMSG_FIRSTHDR(&msg)
        if c is not NULL and count_fds(c):
            self.got_fd = get_fd(c, 0)
        return FINE

    cdef int send(self, int fd) noexcept nogil:
        cdef msghdr msg
        cdef iovec vec
        cdef char control[64]
        if fd < 0:
            return send_all(self.fd, self.frame.p, self.frame.size)
        of_one(&msg, &vec, self.frame.p, self.frame.size)
        put_fd(with_fds(&msg, control, 1), 0, fd)
        if send_message(self.fd, &msg, MSG_NOSIGNAL) < 0:
            return OVER if errno in (EPIPE, ECONNRESET) else SYSTEM
        return FINE

    def calls(self, Buffer body, uintptr_t place, Py_ssize_t size, int memfd, list times, int count):
        """`count` calls. `place`: where `size` bytes of the body are written to for each call (in
        the frame if 0, or the outbox); with a memfd nothing is."""
        cdef uint8_t* p = self.frame.p
        cdef uint8_t* to = <uint8_t*>place
        cdef uint64_t t, offset
        cdef int i, what
        if not place:
            to = p + self.frame.size - size
        for i in range(count):
            with nogil:
                t = now()
                self.serial += 1
                put32(p + 8, self.serial)
                put64(p + 24, self.freed)
                put64(p + self.message_at + 48, self.serial)
                put64(p + self.message_at + 56, t + <uint64_t>PATIENCE * 1000000000u)
                if memfd < 0:
                    put64(body.p, self.serial)
                    memcpy(to, body.p, size)
                what = self.send(memfd)
                if what == FINE:
                    what = self.receive()
                t = now() - t
            if what != FINE:
                failed(SYSTEM, "native")
            if get32(self.came + 12):
                raise OSError(<int>get32(self.came + 12), "native: SEND")
            offset = get64(self.came + 24 + 32)
            if get32(self.came + 8) != self.serial or get64(self.pool + offset + 56) != self.serial:
                failed(WRONG, "native")
            self.freed = offset
            times.append(t)

    def serve(self, Buffer want):
        """Answers until the socket is over; `frame` is the answer, with one credit in it."""
        cdef uint8_t* p = self.frame.p
        cdef const uint8_t* message
        cdef int what = FINE
        cdef uint64_t offset
        with nogil:
            while True:
                what = self.receive()
                if what != FINE:
                    break
                if (get32(self.came + 4) & 0xFFFF) != OP_MESSAGE:
                    # Only what is refused is answered: it is QUIET.
                    if get32(self.came + 12):
                        what = REFUSED
                        break
                    continue
                offset = get64(self.came + 24)
                message = self.pool + offset
                if not look(message, want.p, self.got_fd):
                    what = WRONG
                    break
                self.serial += 1
                put32(p + 8, self.serial)
                put64(p + 24, offset)
                put64(p + self.message_at + 24, get64(message + 32))
                put64(p + self.message_at + 48, self.serial)
                put64(p + self.message_at + 56, get64(message + 48))
                what = self.send(-1)
                if what != FINE:
                    break
        if what != OVER:
            failed(what, "native")


# kdbus's ioctls


cdef int give(int fd, unsigned long number, void* command) noexcept nogil:
    """An ioctl, again for as long as the bus is busy with others (which counts as its time)."""
    cdef int what
    while True:
        what = c_ioctl(fd, number, command)
        if what == 0 or errno != EBUSY:
            return what
        sched_yield()


cdef class Ioctls:
    """An opened node with its pool. `message`: what is sent, with its items."""

    cdef int fd
    cdef const uint8_t[::1] view
    cdef const uint8_t* pool
    cdef Buffer message

    def __init__(self, int fd, pool, Buffer message):
        self.fd = fd
        self.view = pool
        self.pool = &self.view[0]
        self.message = message

    cdef int do_free(self, uint64_t offset) noexcept nogil:
        cdef uint64_t[4] command
        command[0] = 32
        command[1] = command[2] = 0
        command[3] = offset
        return give(self.fd, IOCTL_FREE, command)

    def calls(self, Buffer body, bint stamped, list times, int count, uint64_t first):
        cdef uint64_t[7] command
        cdef uint8_t* p = self.message.p
        cdef uint64_t t
        cdef uint64_t answers = 0
        cdef uint64_t cookie = first
        cdef int i, what
        for i in range(count):
            with nogil:
                t = now()
                cookie += 1
                put64(p + 48, cookie)
                put64(p + 56, t + <uint64_t>PATIENCE * 1000000000u)
                if stamped:
                    put64(body.p, cookie)
                memset(command, 0, sizeof(command))
                command[0] = 56
                command[1] = 1
                command[3] = <uint64_t><uintptr_t>p
                what = give(self.fd, IOCTL_SEND, command)
                if what == 0:
                    answers = get64(self.pool + command[4] + 56)
                    # A call of its own, so it belongs to what a call costs.
                    what = self.do_free(command[4])
                t = now() - t
            if what < 0:
                failed(SYSTEM, "ioctl")
            if answers != cookie:
                failed(WRONG, "ioctl")
            times.append(t)
        return cookie

    def serve(self, Buffer want):
        """Answers until it is killed."""
        cdef uint64_t[8] command
        cdef uint8_t* p = self.message.p
        cdef const uint8_t* message
        cdef uint64_t cookie = 0
        cdef pollfd waits
        cdef int what = FINE
        waits.fd = self.fd
        waits.events = POLLIN
        with nogil:
            while True:
                if c_poll(&waits, 1, -1) < 0:
                    if errno == EINTR:
                        continue
                    what = SYSTEM
                    break
                memset(command, 0, sizeof(command))
                command[0] = 64
                if give(self.fd, IOCTL_RECV, command) < 0:
                    if errno == EAGAIN:
                        continue
                    what = SYSTEM
                    break
                message = self.pool + command[5]
                if not look(message, want.p, -1):
                    what = WRONG
                    break
                cookie += 1
                put64(p + 24, get64(message + 32))
                put64(p + 48, cookie)
                put64(p + 56, get64(message + 48))
                if self.do_free(command[5]) < 0:
                    what = SYSTEM
                    break
                memset(command, 0, sizeof(command))
                command[0] = 56
                command[3] = <uint64_t><uintptr_t>p
                if give(self.fd, IOCTL_SEND, command) < 0:
                    what = SYSTEM
                    break
        failed(what, "ioctl")
