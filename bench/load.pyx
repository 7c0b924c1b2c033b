# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Load: patterns of traffic through a broker.

Invariant: one thread does both sides of all connections, without Python in its loops, so that it
costs less than the broker it measures. What is counted was checked (see `link`); a broker that
loses, repeats, reorders or changes a message ends the measurement with LoadError.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from jitney.broker.ticks cimport now_ns as now
from jitney.compat.csocket cimport EPOLLIN, EPOLLOUT

from .link import LoadError

from .link cimport (
    BAD_ORDER, CLOSED, LOOK, PATIENCE, REFUSED, SILENCE, UNWANTED,
    Histogram, Link, Poll, fail, push, reply_serial,
)

cdef enum:
    BATCH = 65536
    HELD = 500000000
    BESIDE = 5000000


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
    for link in links:
        link.received = 0
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


def flood(Link sender, Link caller, Link server, int64_t messages, Histogram histogram):
    """`sender` sends `messages` as fast as the broker takes them to somebody who does not read,
    while `caller` calls `server`, one call after the other; (messages sent, calls, seconds).

    A broker may make the sender wait for the reader: it is over when nothing went out for
    HELD nanoseconds, which do not count, nor do calls that began BESIDE later than that."""
    cdef list links = [caller, server, sender]
    cdef Poll poll = Poll(links)
    cdef Link link
    cdef int i, k, n, code, what
    cdef Py_ssize_t size
    cdef uint64_t started = now()
    cdef uint64_t t = started
    cdef uint64_t sent = started
    cdef int64_t count = 0
    cdef int64_t left = messages
    caller.pending = 1
    push(poll, caller, 0)
    poll.watch(sender, 2, True)
    while True:
        n = poll.wait(False)
        if n < 0:
            fail(n, caller)
        for k in range(n):
            i = poll.events[k].data.fd
            link = links[i]
            if poll.events[k].events & EPOLLOUT:
                if i == 2:
                    # One at a time, or the calls would wait for us and not for the broker.
                    if link.out_off == link.out_len and left:
                        link.pending = 1
                        left -= 1
                    code = link.flush()
                    if code < 0:
                        fail(code, link)
                    if code and not left:
                        poll.watch(link, i, False)
                    sent = now()
                else:
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
                    if t - sent < BESIDE or t < sent:
                        histogram.add(now() - t)
                        count += 1
                    t = now()
                    if t - sent > HELD or (not left and sender.out_off == sender.out_len):
                        return messages - left, count, (sent - started) / 1e9
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
