# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Load: what sends messages through a broker and looks at what comes out.

Invariant: nothing is counted that was not checked: a message's kind, its sender, its place in the
order (serial or reply serial), its body and its descriptors. One thread does both sides of all
connections, without Python in its loops, so that it costs less than the broker it measures: what
goes out is prepared once and only numbered, all that is due on a connection goes out in one
`send`. Whatever is not as it should be ends the measurement with LoadError.

Bodies up to 4 KiB are compared whole; of a larger one the ends and a word in each 4 KiB, and
every sixteenth whole, so that looking costs less than passing it on.
"""

import os
import socket
import struct

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close

from .wire import auth_lines, call, hello, parse_string_reply

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
    ssize_t c_recv "recv" (int fd, void* buf, size_t n, int flags) nogil
    ssize_t c_send "send" (int fd, const void* buf, size_t n, int flags) nogil
    ssize_t recvmsg(int fd, msghdr* msg, int flags) nogil
    ssize_t sendmsg(int fd, const msghdr* msg, int flags) nogil
    cmsghdr* CMSG_FIRSTHDR(msghdr* msg) nogil
    cmsghdr* CMSG_NXTHDR(msghdr* msg, cmsghdr* c) nogil
    unsigned char* CMSG_DATA(cmsghdr* c) nogil
    size_t CMSG_SPACE(size_t n) nogil
    size_t CMSG_LEN(size_t n) nogil
    int c_socket "socket" (int family, int kind, int protocol) nogil
    int c_connect "connect" (int fd, const void* addr, unsigned int n) nogil
    int SOL_SOCKET, SCM_RIGHTS, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_CMSG_CLOEXEC
    int AF_UNIX, SOCK_STREAM, SOCK_CLOEXEC

cdef extern from "sys/un.h":
    cdef struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]

cdef extern from "sys/epoll.h":
    cdef union epoll_data:
        int fd
    cdef struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_create1(int flags) nogil
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event) nogil
    int epoll_wait(int epfd, epoll_event* events, int n, int timeout) nogil
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT

cdef enum:
    SLOTS = 4096
    EVENTS = 512
    BATCH = 65536
    SMALL = 8192
    FIRST = 65536
    # A broker that says nothing for so long has lost something; milliseconds.
    PATIENCE = 20000
    # 2^31 rotations of a busy loop are no measure of time: ask the clock now and then.
    LOOK = 1 << 14

# What a step may come to; anything negative ends the measurement.
cdef enum:
    FINE = 0
    CLOSED = -1
    BAD_FRAME = -2
    BAD_KIND = -3
    BAD_ORDER = -4
    BAD_SENDER = -5
    BAD_BODY = -6
    UNWANTED = -7
    SILENCE = -8
    SYSTEM = -9
    NO_MEMORY = -10
    REFUSED = -11

_TEXTS = {
    CLOSED: "the broker closed a connection",
    BAD_FRAME: "not a message",
    BAD_KIND: "a message of another kind than was due",
    BAD_ORDER: "a message out of order",
    BAD_SENDER: "a message with the wrong sender",
    BAD_BODY: "a message with another body than was sent",
    UNWANTED: "a message for somebody who should not get it",
    SILENCE: "nothing came for a long time: a message is lost",
    SYSTEM: "a system call failed",
    NO_MEMORY: "out of memory",
    REFUSED: "an error reply",
}


class LoadError(Exception):
    """The broker did not do what it should: the measurement is void."""


cdef int fail(int code, Link link) except -1:
    text = _TEXTS.get(code, str(code))
    if code == REFUSED and link is not None:
        data = link.buf[link.head:link.end][:400]
        text = f"{text}: {data!r}"
    if code == SYSTEM:
        text = f"{text}: {os.strerror(errno)}"
    raise LoadError(f"{link.name.decode() if link is not None else ''}: {text}")


cdef inline uint64_t now() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000u + <uint64_t>t.tv_nsec


cdef inline uint32_t word(const uint8_t* p) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, p, 4)
    return value


cdef class Histogram:
    """Latencies: 64 slots to each power of two, so that any is known to 1.6 %."""

    def __cinit__(self):
        self.slots = <uint64_t*>calloc(SLOTS, sizeof(uint64_t))
        self.count = 0
        if self.slots is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.slots)

    cdef void add(self, uint64_t ns) noexcept nogil:
        cdef int high = 0
        cdef uint64_t rest = ns
        if ns >= 64:
            while rest >= 128:
                rest >>= 1
                high += 1
        cdef int at = high * 64 + <int>rest
        self.slots[at if at < SLOTS else SLOTS - 1] += 1
        self.count += 1

    def percentile(self, double share):
        """Microseconds that `share` (0 to 1) of the latencies do not exceed."""
        cdef uint64_t wanted = <uint64_t>(share * self.count)
        cdef uint64_t seen = 0
        cdef int i, high
        for i in range(SLOTS):
            seen += self.slots[i]
            if seen > wanted or seen == self.count:
                high = i // 64 - 1 if i >= 128 else 0
                return ((i - high * 64) << high) / 1000
        return 0.0

    def record(self, double microseconds):
        """add() for Python callers."""
        self.add(<uint64_t>(microseconds * 1000))


cdef class Link:
    """One connection of the load to the broker, past Hello.

    `prepare()` says what it will send, `expect()` what it must get."""

    def __init__(self, path, *, with_fds=False):
        self.sock = sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        self.fd = sock.fileno()
        self.with_fds = with_fds
        self.passed = -1
        self.cap = FIRST
        self.buf = <uint8_t*>malloc(self.cap)
        self.batch = <uint8_t*>malloc(BATCH)
        if self.buf is NULL or self.batch is NULL:
            raise MemoryError
        sock.settimeout(PATIENCE / 1000)
        sock.sendall(auth_lines(with_fds) + hello())
        data = b""
        lines = 2 if with_fds else 1
        name = None
        while name is None:
            got = sock.recv(65536)
            if not got:
                raise LoadError("the broker did not let us in")
            data += got
            while lines and b"\r\n" in data:
                line, _, data = data.partition(b"\r\n")
                lines -= 1
                if not line.startswith((b"OK ", b"AGREE_UNIX_FD")):
                    raise LoadError(f"the broker did not let us in: {line!r}")
            if not lines:
                name, data = parse_string_reply(data, 1)
        self.name = name
        # NameAcquired, or its first half, may be there already.
        memcpy(self.buf, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        self.end = PyBytes_GET_SIZE(data)
        self.serial = 2
        sock.setblocking(False)

    def __dealloc__(self):
        free(self.buf)
        free(self.batch)
        free(self.message)
        free(self.times)

    def close(self):
        self.sock.close()

    def ask(self, data, serial):
        """Sends a call to the driver and waits for its reply, which must not be an error."""
        cdef Py_ssize_t size
        cdef const uint8_t* p
        self.sock.setblocking(True)
        self.sock.sendall(data)
        self.sock.setblocking(False)
        deadline = now() + <uint64_t>PATIENCE * 1000000
        while True:
            size = self.next()
            if size > 0:
                p = self.buf + self.head
                self.head += size
                if p[1] == 3 and reply_serial(p) == serial:
                    raise LoadError(f"an error: {p[:size]!r}")
                if p[1] == 2 and reply_serial(p) == serial:
                    return
                continue
            if self.receive() == CLOSED or now() > deadline:
                raise LoadError(f"{self.name.decode()}: no reply from the driver")

    def prepare(self, bytes message, reply_at=-1, serial=10, reply_to=0, window=0):
        """What to send again and again; `reply_at` is where its reply serial stands, if it has one."""
        free(self.message)
        self.size = PyBytes_GET_SIZE(message)
        self.message = <uint8_t*>malloc(self.size)
        if self.message is NULL:
            raise MemoryError
        memcpy(self.message, PyBytes_AS_STRING(message), self.size)
        self.reply_at = reply_at
        self.serial = serial
        self.reply_to = reply_to
        self.pending = 0
        self.out = NULL
        self.out_off = self.out_len = 0
        self.waiting = False
        free(self.times)
        self.times = NULL
        self.window = window
        if window:
            self.times = <uint64_t*>calloc(window, sizeof(uint64_t))
            if self.times is NULL:
                raise MemoryError

    def expect(self, int kind, bytes sender, bytes body, first=10):
        """What comes in: messages of this kind from this sender, in order from serial `first`
        (replies: from reply serial `first`). The caller keeps both bytes alive."""
        self.kind = kind
        self.sender = <const uint8_t*>PyBytes_AS_STRING(sender)
        self.sender_len = PyBytes_GET_SIZE(sender)
        self.body = <const uint8_t*>PyBytes_AS_STRING(body)
        self.body_len = PyBytes_GET_SIZE(body)
        self.expected = first
        self.received = 0
        self.others = 0
        self.fds_seen = 0

    def pass_fd(self, fd):
        """Each message that goes out carries a duplicate of this descriptor."""
        self.passed = fd

    cdef int receive(self) noexcept nogil:
        """One read: 1 if something came, 0 if nothing is there, CLOSED."""
        cdef ssize_t got
        cdef uint8_t* grown
        cdef Py_ssize_t need
        cdef msghdr msg
        cdef iovec vec
        cdef char control[1040]
        cdef cmsghdr* c
        cdef size_t i
        cdef int fd
        if self.head == self.end:
            self.head = self.end = 0
        elif self.head and self.cap - self.end < 4096:
            memmove(self.buf, self.buf + self.head, self.end - self.head)
            self.end -= self.head
            self.head = 0
        need = 0
        if self.end - self.head >= 16:
            need = 16 + ((word(self.buf + self.head + 12) + 7) & ~7) + word(self.buf + self.head + 4)
        if need > self.cap - self.head:
            grown = <uint8_t*>realloc(self.buf, self.head + need + 65536)
            if grown is NULL:
                return NO_MEMORY
            self.buf = grown
            self.cap = self.head + need + 65536
        while True:
            if self.with_fds:
                memset(&msg, 0, sizeof(msg))
                vec.iov_base = self.buf + self.end
                vec.iov_len = self.cap - self.end
                msg.msg_iov = &vec
                msg.msg_iovlen = 1
                msg.msg_control = control
                msg.msg_controllen = sizeof(control)
                got = recvmsg(self.fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
            else:
                got = c_recv(self.fd, self.buf + self.end, self.cap - self.end, MSG_DONTWAIT)
            if got > 0:
                break
            if got == 0:
                return CLOSED
            if errno == EAGAIN:
                return 0
            if errno != EINTR:
                return CLOSED
        if self.with_fds:
            c = CMSG_FIRSTHDR(&msg)
            while c is not NULL:
                if c.cmsg_level == SOL_SOCKET and c.cmsg_type == SCM_RIGHTS:
                    for i in range((c.cmsg_len - CMSG_LEN(0)) // sizeof(int)):
                        memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int))
                        close(fd)
                        self.fds_seen += 1
                c = CMSG_NXTHDR(&msg, c)
        self.end += got
        return 1

    cdef Py_ssize_t next(self) noexcept nogil:
        """Size of the whole message at `head`; 0 if it is not all here."""
        cdef Py_ssize_t have = self.end - self.head
        cdef Py_ssize_t size
        cdef const uint8_t* p = self.buf + self.head
        if have < 16:
            return 0
        if p[0] != 108 or p[3] != 1:
            return BAD_FRAME
        size = 16 + ((word(p + 12) + 7) & ~7) + word(p + 4)
        return size if size <= have else 0

    cdef int check(self, const uint8_t* p, Py_ssize_t size) noexcept nogil:
        """1: what was due; 0: something of the driver's own (NameAcquired); or what is wrong."""
        cdef Py_ssize_t pos = 16
        cdef Py_ssize_t fields = 16 + word(p + 12)
        cdef Py_ssize_t n, i
        cdef uint32_t reply = 0
        cdef const uint8_t* sender = NULL
        cdef Py_ssize_t sender_len = 0
        cdef const uint8_t* body
        cdef uint8_t kind
        while pos < fields:
            pos = (pos + 7) & ~7
            kind = p[pos + 2]
            if kind == 117:
                if p[pos] == 5:
                    reply = word(p + pos + 4)
                pos += 8
            elif kind == 103:
                pos += 6 + p[pos + 4]
            else:
                n = word(p + pos + 4)
                if p[pos] == 7:
                    sender = p + pos + 8
                    sender_len = n
                pos += 9 + n
        if p[1] == 4 and sender_len == 20 and memcmp(sender, <const char*>b"org.freedesktop.DBus", 20) == 0:
            # NameAcquired.
            self.others += 1
            return 0
        if p[1] != self.kind:
            return REFUSED if p[1] == 3 else BAD_KIND
        if self.kind == 2:
            if reply != self.expected:
                return BAD_ORDER
        elif word(p + 8) != self.expected:
            return BAD_ORDER
        if sender_len != self.sender_len or memcmp(sender, self.sender, sender_len) != 0:
            return BAD_SENDER
        n = word(p + 4)
        if self.body_len >= 0:
            if n != self.body_len:
                return BAD_BODY
            body = p + size - n
            if n <= 4096 or (self.expected & 15) == 0:
                if memcmp(body, self.body, n) != 0:
                    return BAD_BODY
            else:
                if memcmp(body, self.body, 64) != 0 or memcmp(body + n - 64, self.body + n - 64, 64) != 0:
                    return BAD_BODY
                i = 4096
                while i < n - 8:
                    if word(body + i) != word(self.body + i):
                        return BAD_BODY
                    i += 4096
        self.expected += 1
        self.received += 1
        return 1

    cdef int flush(self) noexcept nogil:
        """Sends what is pending: 1 if all of it went, 0 if the socket is full, CLOSED."""
        cdef ssize_t sent
        cdef uint8_t* p
        cdef msghdr msg
        cdef iovec vec
        cdef char control[64]
        cdef cmsghdr* c
        while True:
            if self.out_off == self.out_len:
                if self.pending == 0:
                    return 1
                self.out_off = self.out_len = 0
                if self.size <= SMALL and self.passed < 0:
                    self.out = self.batch
                    while self.pending and self.out_len + self.size <= BATCH:
                        p = self.batch + self.out_len
                        memcpy(p, self.message, self.size)
                        memcpy(p + 8, &self.serial, 4)
                        if self.reply_at >= 0:
                            memcpy(p + self.reply_at, &self.reply_to, 4)
                        self.serial += 1
                        self.reply_to += 1
                        self.pending -= 1
                        self.out_len += self.size
                else:
                    memcpy(self.message + 8, &self.serial, 4)
                    if self.reply_at >= 0:
                        memcpy(self.message + self.reply_at, &self.reply_to, 4)
                    self.serial += 1
                    self.reply_to += 1
                    self.pending -= 1
                    self.out = self.message
                    self.out_len = self.size
            if self.passed >= 0 and self.out_off == 0:
                memset(&msg, 0, sizeof(msg))
                memset(control, 0, sizeof(control))
                vec.iov_base = <void*>self.out
                vec.iov_len = self.out_len
                msg.msg_iov = &vec
                msg.msg_iovlen = 1
                msg.msg_control = control
                msg.msg_controllen = CMSG_SPACE(sizeof(int))
                c = CMSG_FIRSTHDR(&msg)
                c.cmsg_level = SOL_SOCKET
                c.cmsg_type = SCM_RIGHTS
                c.cmsg_len = CMSG_LEN(sizeof(int))
                memcpy(CMSG_DATA(c), &self.passed, sizeof(int))
                sent = sendmsg(self.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL)
            else:
                sent = c_send(
                    self.fd, self.out + self.out_off, self.out_len - self.out_off,
                    MSG_DONTWAIT | MSG_NOSIGNAL,
                )
            if sent < 0:
                if errno == EAGAIN:
                    return 0
                if errno == EINTR:
                    continue
                return CLOSED
            self.out_off += sent


cdef uint32_t reply_serial(const uint8_t* p) noexcept nogil:
    cdef Py_ssize_t pos = 16
    cdef Py_ssize_t fields = 16 + word(p + 12)
    while pos < fields:
        pos = (pos + 7) & ~7
        if p[pos + 2] == 117:
            if p[pos] == 5:
                return word(p + pos + 4)
            pos += 8
        elif p[pos + 2] == 103:
            pos += 6 + p[pos + 4]
        else:
            pos += 9 + word(p + pos + 4)
    return 0


cdef class Poll:
    """An epoll set over the links, each known by its place in the list."""

    cdef int epfd
    cdef list links
    cdef epoll_event events[EVENTS]

    def __init__(self, links):
        cdef epoll_event ev
        self.epfd = epoll_create1(EPOLL_CLOEXEC)
        self.links = links
        for i, link in enumerate(links):
            ev.events = EPOLLIN
            ev.data.fd = i
            if epoll_ctl(self.epfd, EPOLL_CTL_ADD, link.fd, &ev) < 0:
                raise OSError(errno, "epoll_ctl")

    def __dealloc__(self):
        close(self.epfd)

    cdef int wait(self, bint busy) noexcept nogil:
        """How many are ready; SILENCE when nothing is for too long."""
        cdef int n
        cdef int rounds = 0
        cdef uint64_t until = 0
        while True:
            n = epoll_wait(self.epfd, self.events, EVENTS, 0 if busy else PATIENCE)
            if n > 0:
                return n
            if n < 0 and errno != EINTR:
                return SYSTEM
            if not busy:
                if n == 0:
                    return SILENCE
                continue
            rounds += 1
            if rounds == LOOK:
                rounds = 0
                if until == 0:
                    until = now() + <uint64_t>PATIENCE * 1000000u
                elif now() > until:
                    return SILENCE

    cdef int watch(self, Link link, int i, bint writable):
        cdef epoll_event ev
        if link.waiting == writable:
            return 0
        link.waiting = writable
        ev.events = (EPOLLIN | EPOLLOUT) if writable else EPOLLIN
        ev.data.fd = i
        return epoll_ctl(self.epfd, EPOLL_CTL_MOD, link.fd, &ev)


cdef int push(Poll poll, Link link, int i) except -1:
    cdef int done = link.flush()
    if done < 0:
        fail(done, link)
    if done == 0 or link.waiting:
        poll.watch(link, i, done == 0)
    return 0


def calls(list callers, list servers, int window, double seconds, Histogram histogram, busy=False):
    """Each caller keeps `window` calls to its server under way; (calls answered, seconds taken).

    Links are `prepare()`d and `expect()` what they should. `busy`: look again instead of sleeping."""
    cdef list links = callers + servers
    cdef Poll poll = Poll(links)
    cdef Link link, caller
    cdef int n, i, k, what, code
    cdef int n_callers = len(callers)
    cdef Py_ssize_t size
    cdef int64_t answered = 0
    cdef int64_t open_calls = 0
    cdef int64_t due
    cdef bint running = True
    cdef bint spin = busy and len(links) > 2
    cdef bint pair = busy and len(links) == 2
    cdef int turn = 0
    cdef int rounds = 0
    cdef uint64_t started = now()
    cdef uint64_t until = started + <uint64_t>(seconds * 1e9)
    cdef uint64_t t = started
    cdef uint64_t silent = 0
    for i in range(n_callers):
        link = links[i]
        for k in range(window):
            link.times[k] = t
        link.pending = window
        open_calls += window
        push(poll, link, i)
    while open_calls:
        if pair:
            n = 1
            turn = 1 - turn
        else:
            n = poll.wait(spin)
            if n < 0:
                fail(n, None)
        for k in range(n):
            if pair:
                i = turn
                link = links[i]
            else:
                i = poll.events[k].data.fd
                link = links[i]
                if poll.events[k].events & EPOLLOUT:
                    push(poll, link, i)
                    if not poll.events[k].events & EPOLLIN:
                        continue
            code = link.receive()
            if code == 0:
                if pair:
                    if link.out_off < link.out_len or link.pending:
                        push(poll, link, i)
                    rounds += 1
                    if rounds >= LOOK:
                        rounds = 0
                        if silent == 0:
                            silent = now() + <uint64_t>PATIENCE * 1000000u
                        elif now() > silent:
                            fail(SILENCE, link)
                continue
            if code < 0:
                fail(code, link)
            rounds = 0
            silent = 0
            due = 0
            if i < n_callers:
                t = now()
                if t >= until:
                    running = False
            while True:
                size = link.next()
                if size <= 0:
                    if size < 0:
                        fail(<int>size, link)
                    break
                what = link.check(link.buf + link.head, size)
                if what < 0:
                    fail(what, link)
                link.head += size
                due += what
                if what and i < n_callers:
                    # The reply's number, from 0, tells where its call's time was noted.
                    histogram.add(t - link.times[(link.received - 1) % window])
                    if running:
                        link.times[(link.received - 1) % window] = t
            if i < n_callers:
                answered += due
                if running:
                    link.pending += due
                else:
                    open_calls -= due
            else:
                link.pending += due
            if link.pending:
                push(poll, link, i)
    t = now()
    return answered, (t - started) / 1e9


def signals(Link sender, list receivers, list bystanders, int batch, int ahead, double seconds,
            Histogram histogram):
    """`sender` keeps up to `ahead` batches of signals under way, each to all receivers.

    (signals sent, seconds taken). Latency is that of a batch, until the last one has all of it.
    `bystanders` must not get any."""
    cdef list links = [sender] + receivers + bystanders
    cdef Poll poll = Poll(links)
    cdef Link link
    cdef int n, i, k, what, code
    cdef int n_receivers = len(receivers)
    cdef Py_ssize_t size
    cdef int64_t before, done, b
    cdef int64_t sent_batches = 0
    cdef int64_t done_batches = 0
    cdef uint64_t started = now()
    cdef uint64_t until = started + <uint64_t>(seconds * 1e9)
    cdef uint64_t t = started
    cdef bint running = True
    cdef int64_t[64] waiting_for
    cdef uint64_t[64] since
    if ahead > 63:
        raise ValueError("at most 63 batches ahead")
    while running or done_batches < sent_batches:
        while running and sent_batches - done_batches < ahead:
            t = now()
            if t >= until:
                running = False
                break
            since[sent_batches & 63] = t
            waiting_for[sent_batches & 63] = n_receivers
            sent_batches += 1
            sender.pending += batch
        if sender.pending:
            push(poll, sender, 0)
        if done_batches == sent_batches:
            continue
        n = poll.wait(False)
        if n < 0:
            fail(n, sender)
        for k in range(n):
            i = poll.events[k].data.fd
            link = links[i]
            if poll.events[k].events & EPOLLOUT:
                push(poll, link, i)
                if not poll.events[k].events & EPOLLIN:
                    continue
            code = link.receive()
            if code < 0:
                fail(code, link)
            before = link.received // batch
            while True:
                size = link.next()
                if size <= 0:
                    if size < 0:
                        fail(<int>size, link)
                    break
                what = link.check(link.buf + link.head, size)
                if what < 0:
                    fail(what, link)
                link.head += size
                if what and (i == 0 or i > n_receivers):
                    fail(UNWANTED, link)
            done = link.received // batch
            for b in range(before, done):
                waiting_for[b & 63] -= 1
                while done_batches < sent_batches and waiting_for[done_batches & 63] == 0:
                    histogram.add(now() - since[done_batches & 63])
                    done_batches += 1
    t = now()
    return sent_batches * batch, (t - started) / 1e9


def driver(Link link, list messages, int window, double seconds, Histogram histogram):
    """Calls to the bus itself, these in turn, `window` under way; (calls answered, seconds).

    Signals that they cause are read and dropped; an error reply is a LoadError."""
    cdef Poll poll = Poll([link])
    cdef int n_messages = len(messages)
    cdef list buffers = [bytearray(m) for m in messages]
    cdef uint8_t* starts[16]
    cdef Py_ssize_t sizes[16]
    cdef uint8_t[::1] view
    cdef int i, n, at = 0
    cdef uint64_t* times = <uint64_t*>calloc(window, sizeof(uint64_t))
    cdef uint32_t serial = link.serial
    cdef uint32_t expected = serial
    cdef int64_t answered = 0
    cdef int64_t flying = 0
    cdef int64_t due = window
    cdef Py_ssize_t size
    cdef const uint8_t* p
    cdef uint64_t started, until, t
    cdef bint running = True
    if n_messages > 16 or times is NULL:
        raise ValueError("too many messages")
    for i in range(n_messages):
        view = buffers[i]
        starts[i] = &view[0]
        sizes[i] = len(buffers[i])
    started = t = now()
    until = started + <uint64_t>(seconds * 1e9)
    link.out_off = link.out_len = 0
    link.pending = 0
    try:
        while True:
            if running and due:
                if link.out_off == link.out_len:
                    link.out = link.batch
                    link.out_off = link.out_len = 0
                    while due and link.out_len + sizes[at] <= BATCH:
                        memcpy(link.batch + link.out_len, starts[at], sizes[at])
                        memcpy(link.batch + link.out_len + 8, &serial, 4)
                        times[serial % window] = t
                        serial += 1
                        link.out_len += sizes[at]
                        at = (at + 1) % n_messages
                        due -= 1
                        flying += 1
            push(poll, link, 0)
            if not running and flying == 0 and at == 0:
                break
            if not running and flying == 0:
                # Leave nothing behind: finish the cycle.
                running = True
                due = n_messages - at
                until = 0
                continue
            n = poll.wait(False)
            if n < 0:
                fail(n, link)
            if link.receive() == CLOSED:
                fail(CLOSED, link)
            t = now()
            if t >= until and at == 0:
                running = False
            if t >= until and until:
                running = False
            while True:
                size = link.next()
                if size <= 0:
                    if size < 0:
                        fail(<int>size, link)
                    break
                p = link.buf + link.head
                if p[1] == 4:
                    link.others += 1
                elif p[1] != 2:
                    fail(REFUSED, link)
                else:
                    if reply_serial(p) != expected:
                        fail(BAD_ORDER, link)
                    histogram.add(t - times[expected % window])
                    expected += 1
                    answered += 1
                    flying -= 1
                    if until:
                        due += 1
                link.head += size
            if not running:
                due = 0
    finally:
        free(times)
        link.serial = serial
    t = now()
    return answered, (t - started) / 1e9


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
                size = 16 + ((word(buf + pos + 12) + 7) & ~7) + word(buf + pos + 4)
                if size > have[0] - pos:
                    break
                if buf[pos + 1] == 2:
                    return FINE
                if buf[pos + 1] == 3:
                    return REFUSED
                pos += size
        if have[0] == cap:
            return BAD_FRAME
        got = c_recv(fd, buf + have[0], cap - have[0], 0)
        if got <= 0:
            if got < 0 and errno == EINTR:
                continue
            return CLOSED
        have[0] += got


cdef int tell(int fd, bytes data) noexcept:
    cdef ssize_t n = PyBytes_GET_SIZE(data)
    return FINE if c_send(fd, PyBytes_AS_STRING(data), n, MSG_NOSIGNAL) == n else CLOSED


def connects(path, double seconds, bint pipelined, Histogram histogram, keep=0):
    """Connects, authenticates, says Hello and leaves, again and again; (how often, seconds).

    `pipelined`: all that the client has to say in one write, as sd-bus and GLib can; else step by
    step, as libdbus does. With `keep` that many are made and stay: (their descriptors, seconds)."""
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
    return (kept if wanted else made), (now() - started) / 1e9


def flood(Link sender, Link caller, Link server, int64_t messages, Histogram histogram):
    """`sender` sends `messages` as fast as the broker takes them to somebody who does not read,
    while `caller` calls `server`, one call after the other; (messages sent, calls, seconds)."""
    cdef list links = [caller, server, sender]
    cdef Poll poll = Poll(links)
    cdef Link link
    cdef int i, k, n, code, what
    cdef Py_ssize_t size
    cdef uint64_t started = now()
    cdef uint64_t t = started
    cdef int64_t count = 0
    sender.pending = messages
    caller.pending = 1
    push(poll, caller, 0)
    push(poll, sender, 2)
    while True:
        n = poll.wait(False)
        if n < 0:
            fail(n, caller)
        for k in range(n):
            i = poll.events[k].data.fd
            link = links[i]
            if poll.events[k].events & EPOLLOUT:
                push(poll, link, i)
                if not poll.events[k].events & EPOLLIN:
                    continue
            code = link.receive()
            if code < 0:
                fail(code, link)
            if i == 2:
                # Errors, if the broker tells that it refuses.
                while True:
                    size = link.next()
                    if size <= 0:
                        break
                    link.others += 1
                    link.head += size
                continue
            while True:
                size = link.next()
                if size <= 0:
                    if size < 0:
                        fail(<int>size, link)
                    break
                what = link.check(link.buf + link.head, size)
                if what < 0:
                    fail(what, link)
                link.head += size
                if not what:
                    continue
                link.pending += 1
                if i == 0:
                    histogram.add(now() - t)
                    count += 1
                    if sender.pending == 0 and sender.out_off == sender.out_len:
                        return messages, count, (now() - started) / 1e9
                    t = now()
            push(poll, link, i)


def drain(Link link, double quiet=0.3):
    """Reads and drops whatever comes, until nothing has for `quiet` seconds; the bytes read."""
    cdef int64_t total = 0
    cdef int code
    cdef uint64_t last = now()
    while now() - last < <uint64_t>(quiet * 1e9):
        link.head = link.end
        code = link.receive()
        if code < 0:
            fail(code, link)
        if code:
            total += link.end
            last = now()
    link.head = link.end
    return total
