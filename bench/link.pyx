# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Links: connections of the load to a broker, their messages and what is expected of them.

Invariant: nothing is counted that was not checked: a message's kind, its sender, its place in the
order (serial or reply serial), its body. What goes out is prepared once and only numbered; all
that is due goes out in one `send`. What is not as it should be is a negative number, which `fail()`
turns into a LoadError.

Bodies up to 4 KiB are compared whole; of a larger one the ends and a word in each 4 KiB, and
every sixteenth whole, so that looking costs less than passing it on.
"""

import os
import socket

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove
from posix.unistd cimport close

from jitney.broker.ticks cimport now_ns as now
from jitney.compat.csocket cimport (
    CMSG_FIRSTHDR, CMSG_NXTHDR, CONTROL, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN,
    EPOLLOUT, MSG_CMSG_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, cmsghdr, count_fds, epoll_create1,
    epoll_ctl, epoll_event, epoll_wait, get_fd, iovec, msghdr, of_one, put_fd, recv_bytes,
    recv_message, send_bytes, send_message, with_fds,
)

from .words cimport get32 as word, put32, whole
from .wire import auth_lines, hello, parse_string_reply

cdef enum:
    SLOTS = 4096
    BATCH = 65536
    SMALL = 8192
    FIRST = 65536

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

    def __init__(self, path, *, with_fds=False, patient=False):
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
        said = auth_lines(with_fds) + hello()
        waits = b""
        if patient:
            # An old proxy in between would not know otherwise where the answer ends.
            said, begin, waits = said.partition(b"BEGIN\r\n")
            waits = begin + waits
        sock.sendall(said)
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
                    sock.sendall(waits)
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

    def tell_all(self, messages):
        """Sends calls to the driver and waits for all replies, none of which may be an error."""
        cdef Py_ssize_t size
        cdef int64_t waiting
        for start in range(0, len(messages), 100):
            some = messages[start:start + 100]
            self.sock.setblocking(True)
            self.sock.sendall(b"".join(some))
            self.sock.setblocking(False)
            waiting = len(some)
            deadline = now() + <uint64_t>PATIENCE * 1000000
            while waiting:
                size = self.next()
                if size > 0:
                    if self.buf[self.head + 1] == 3:
                        fail(REFUSED, self)
                    if self.buf[self.head + 1] == 2:
                        waiting -= 1
                    self.head += size
                elif size < 0:
                    fail(<int>size, self)
                elif self.receive() == CLOSED:
                    fail(CLOSED, self)
                elif now() > deadline:
                    fail(SILENCE, self)

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
        cdef char control[CONTROL]
        cdef cmsghdr* c
        cdef size_t i
        if self.head == self.end:
            self.head = self.end = 0
        elif self.head and self.cap - self.end < 4096:
            memmove(self.buf, self.buf + self.head, self.end - self.head)
            self.end -= self.head
            self.head = 0
        need = 0
        if self.end - self.head >= 16:
            need = whole(self.buf + self.head)
        if need > self.cap - self.head:
            grown = <uint8_t*>realloc(self.buf, self.head + need + 65536)
            if grown is NULL:
                return NO_MEMORY
            self.buf = grown
            self.cap = self.head + need + 65536
        if self.with_fds:
            of_one(&msg, &vec, self.buf + self.end, self.cap - self.end)
            msg.msg_control = control
            msg.msg_controllen = sizeof(control)
            got = recv_message(self.fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
        else:
            got = recv_bytes(self.fd, self.buf + self.end, self.cap - self.end, MSG_DONTWAIT)
        if got == 0:
            return CLOSED
        if got < 0:
            return 0 if errno == EAGAIN else CLOSED
        if self.with_fds:
            c = CMSG_FIRSTHDR(&msg)
            while c is not NULL:
                for i in range(count_fds(c)):
                    close(get_fd(c, i))
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
        size = whole(p)
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
                        put32(p + 8, self.serial)
                        if self.reply_at >= 0:
                            put32(p + self.reply_at, self.reply_to)
                        self.serial += 1
                        self.reply_to += 1
                        self.pending -= 1
                        self.out_len += self.size
                else:
                    put32(self.message + 8, self.serial)
                    if self.reply_at >= 0:
                        put32(self.message + self.reply_at, self.reply_to)
                    self.serial += 1
                    self.reply_to += 1
                    self.pending -= 1
                    self.out = self.message
                    self.out_len = self.size
            if self.passed >= 0 and self.out_off == 0:
                of_one(&msg, &vec, self.out, self.out_len)
                put_fd(with_fds(&msg, control, 1), 0, self.passed)
                sent = send_message(self.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL)
            else:
                sent = send_bytes(
                    self.fd, self.out + self.out_off, self.out_len - self.out_off,
                    MSG_DONTWAIT | MSG_NOSIGNAL,
                )
            if sent < 0:
                return 0 if errno == EAGAIN else CLOSED
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
