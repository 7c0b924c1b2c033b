# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Memory: the few places where the core touches raw bytes.

Invariant: nothing here knows D-Bus. Loads, stores and copies are bounds-checked by the
caller; the containers (Buffer, Ring, Map64) own their memory and never hand out a pointer
that outlives the next growing call. Blocks of 64 KiB and more come from the system one by one
and go back to it when `trim()` finds them unused, so that no burst leaves memory behind. `mem.py` is
the same module in plain Python: it is what runs where no compiler was at hand, and what these
functions are tested against.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject, PyTypeObject, traverseproc, visitproc
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

COMPILED = True

cdef uint64_t SEED = int.from_bytes(os.urandom(8), "little")
cdef uint64_t K1 = 0x9E3779B97F4A7C15u
cdef uint64_t K2 = 0xD6E8FEB86659FD93u


cdef uint32_t load32(const uint8_t* p, Py_ssize_t off, bint big) noexcept nogil:
    cdef const uint8_t* q = p + off
    if big:
        return (<uint32_t>q[0] << 24) | (<uint32_t>q[1] << 16) | (<uint32_t>q[2] << 8) | q[3]
    return (<uint32_t>q[3] << 24) | (<uint32_t>q[2] << 16) | (<uint32_t>q[1] << 8) | q[0]


cdef void store32(uint8_t* p, Py_ssize_t off, uint32_t value, bint big) noexcept nogil:
    cdef uint8_t* q = p + off
    if big:
        q[0] = value >> 24
        q[1] = (value >> 16) & 0xFF
        q[2] = (value >> 8) & 0xFF
        q[3] = value & 0xFF
    else:
        q[3] = value >> 24
        q[2] = (value >> 16) & 0xFF
        q[1] = (value >> 8) & 0xFF
        q[0] = value & 0xFF


cdef void copy(uint8_t* dst, Py_ssize_t doff, const uint8_t* src, Py_ssize_t soff, Py_ssize_t n) noexcept nogil:
    memcpy(dst + doff, src + soff, n)


cdef void zero(uint8_t* dst, Py_ssize_t off, Py_ssize_t n) noexcept nogil:
    memset(dst + off, 0, n)


cdef bint all_zero(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(off, off + n):
        if p[i]:
            return False
    return True


cdef bint utf8_ok(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept nogil:
    """True for UTF-8 as the specification wants it: no NUL, no surrogate, shortest form."""
    cdef const uint8_t* q = p + off
    cdef const uint8_t* end = q + n
    cdef uint64_t word
    cdef uint8_t c, d
    while q < end:
        # Eight ASCII bytes at once: none has its high bit set, none is zero.
        while end - q >= 8:
            memcpy(&word, q, 8)
            if word & 0x8080808080808080u:
                break
            if (word - 0x0101010101010101u) & 0x8080808080808080u:
                return False
            q += 8
        if q >= end:
            break
        c = q[0]
        if c < 0x80:
            if c == 0:
                return False
            q += 1
        elif c < 0xC2:
            return False
        elif c < 0xE0:
            if end - q < 2 or (q[1] & 0xC0) != 0x80:
                return False
            q += 2
        elif c < 0xF0:
            if end - q < 3:
                return False
            d = q[1]
            if (d & 0xC0) != 0x80 or (q[2] & 0xC0) != 0x80:
                return False
            if (c == 0xE0 and d < 0xA0) or (c == 0xED and d > 0x9F):
                return False
            q += 3
        elif c < 0xF5:
            if end - q < 4:
                return False
            d = q[1]
            if (d & 0xC0) != 0x80 or (q[2] & 0xC0) != 0x80 or (q[3] & 0xC0) != 0x80:
                return False
            if (c == 0xF0 and d < 0x90) or (c == 0xF4 and d > 0x8F):
                return False
            q += 4
        else:
            return False
    return True


cdef bint bools_ok(const uint8_t* p, Py_ssize_t off, Py_ssize_t n, bint big) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(off, off + n, 4):
        if load32(p, i, big) > 1:
            return False
    return True


cdef bytes take(const uint8_t* p, Py_ssize_t off, Py_ssize_t n):
    return PyBytes_FromStringAndSize(<const char*>(p + off), n)


cdef bint same(const uint8_t* p, Py_ssize_t off, Py_ssize_t n, bytes text):
    return n == PyBytes_GET_SIZE(text) and memcmp(p + off, PyBytes_AS_STRING(text), n) == 0


cdef uint64_t mix(uint64_t a, uint64_t b) noexcept nogil:
    cdef uint64_t h = (a ^ b ^ SEED) * K1
    h ^= (h >> 29) ^ b
    h *= K2
    return h ^ (h >> 32)


cdef uint64_t hash64(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept nogil:
    # Seeded at start, so that no peer can choose strings that fall into one slot.
    cdef const uint8_t* q = p + off
    cdef uint64_t h = SEED ^ (<uint64_t>n * K1)
    cdef uint64_t word
    while n >= 8:
        memcpy(&word, q, 8)
        h = (h ^ word) * K2
        h ^= h >> 31
        q += 8
        n -= 8
    if n:
        word = 0
        memcpy(&word, q, n)
        h = (h ^ word) * K2
        h ^= h >> 31
    h *= K1
    return h ^ (h >> 32)


cdef const uint8_t* view(const uint8_t* p, Py_ssize_t off, Py_ssize_t n) noexcept nogil:
    return p + off


cdef const uint8_t* of_bytes(bytes data):
    # The caller keeps `data` alive for as long as it uses the pointer.
    return <const uint8_t*>PyBytes_AS_STRING(data)


cdef int32_t* int_array(Py_ssize_t n) except NULL:
    cdef int32_t* p = <int32_t*>calloc(n, sizeof(int32_t))
    if p is NULL:
        raise MemoryError
    return p


cdef void free_ints(int32_t* p) noexcept nogil:
    free(p)


cdef extern from "sys/mman.h":
    void* mmap(void* at, size_t n, int prot, int flags, int fd, long off) nogil
    int munmap(void* p, size_t n) nogil
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void* MAP_FAILED

cdef extern from *:
    """
    #ifndef MAP_POPULATE
    #define MAP_POPULATE 0
    #endif
    #if defined(__has_feature)
    #if __has_feature(address_sanitizer)
    #define __SANITIZE_ADDRESS__
    #endif
    #endif
    #ifdef __SANITIZE_ADDRESS__
    #define LARGE 0x40000000 /* It watches what is allocated, not what is mapped. */
    #else
    #define LARGE 65536
    #endif
    """
    int MAP_POPULATE
    # From this size on a block is mapped, in multiples of PAGE.
    enum: LARGE

cdef enum:
    PAGE = 4096
    # Blocks that wait to be used again: a fresh one costs a page fault for every 4 KiB.
    MAX_BLOCKS = 32
    MAX_POOL = 33554432
    # Buffers that wait to be borrowed, and how large they may be.
    MAX_SPARES = 128
    SPARE = 32768

cdef struct Block:
    void* p
    size_t cap

cdef Block[MAX_BLOCKS] blocks
cdef int n_blocks = 0
cdef size_t pool_bytes = 0
# How often anything of these was used; `trim()` looks whether that has changed.
cdef uint64_t uses = 0
cdef uint64_t trimmed = 0
cdef list spares = []
cdef Py_ssize_t spare_bytes = 0


cdef uint8_t* new_block(Py_ssize_t* cap, bint now) noexcept:
    """A block of at least `cap` bytes, which is set to what it has; NULL without memory.
    `now`: it will be filled at once, so that its pages may come all at once as well."""
    global n_blocks, pool_bytes, uses
    cdef size_t need = <size_t>cap[0]
    cdef int i
    cdef int best = -1
    cdef void* p
    if need < LARGE:
        return <uint8_t*>malloc(need)
    need = (need + (PAGE - 1)) & ~(<size_t>PAGE - 1)
    uses += 1
    for i in range(n_blocks):
        if need <= blocks[i].cap <= need * 4 and (best < 0 or blocks[i].cap < blocks[best].cap):
            best = i
    if best >= 0:
        p = blocks[best].p
        cap[0] = <Py_ssize_t>blocks[best].cap
        pool_bytes -= blocks[best].cap
        n_blocks -= 1
        blocks[best] = blocks[n_blocks]
        return <uint8_t*>p
    p = mmap(NULL, need, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | (MAP_POPULATE if now else 0), -1, 0)
    if p == MAP_FAILED:
        return NULL
    cap[0] = <Py_ssize_t>need
    return <uint8_t*>p


cdef void free_block(uint8_t* p, Py_ssize_t cap) noexcept:
    global n_blocks, pool_bytes
    if cap < LARGE:
        free(p)
    elif n_blocks == MAX_BLOCKS or pool_bytes + <size_t>cap > MAX_POOL:
        munmap(p, cap)
    else:
        blocks[n_blocks].p = p
        blocks[n_blocks].cap = cap
        n_blocks += 1
        pool_bytes += cap


cdef Buffer borrow():
    """An empty buffer, which may have room already; give it back with `give()`."""
    global spare_bytes, uses
    cdef Buffer buffer
    uses += 1
    if not spares:
        return Buffer()
    buffer = spares.pop()
    spare_bytes -= buffer.cap
    return buffer


cdef void give(Buffer buffer):
    """Takes a borrowed buffer back, with nothing in it that anybody needs."""
    global spare_bytes
    if buffer.cap <= SPARE and len(spares) < MAX_SPARES:
        buffer.head = buffer.end = 0
        spares.append(buffer)
        spare_bytes += buffer.cap


cpdef Py_ssize_t pooled():
    """Bytes that wait to be used again."""
    return <Py_ssize_t>pool_bytes + spare_bytes


cpdef bint trim():
    """Gives back what was not used since the last call; True if some is left to look at again."""
    global n_blocks, pool_bytes, spare_bytes, trimmed
    if uses != trimmed:
        trimmed = uses
        return n_blocks > 0 or len(spares) > 0
    while n_blocks:
        n_blocks -= 1
        munmap(blocks[n_blocks].p, blocks[n_blocks].cap)
    pool_bytes = 0
    spares.clear()
    spare_bytes = 0
    return False


cdef class Buffer:
    """Bytes between `head` and `end` of a block that grows and is given back when empty."""

    def __cinit__(self):
        self.p = NULL
        self.head = self.end = self.cap = 0

    def __dealloc__(self):
        free_block(self.p, self.cap)

    def __len__(self):
        return self.end - self.head

    def __bytes__(self):
        return PyBytes_FromStringAndSize(<const char*>(self.p + self.head), self.end - self.head)

    cdef int reserve(self, Py_ssize_t n) except -1:
        """Makes room for `n` bytes behind `end`; may move the bytes to the block's start."""
        cdef uint8_t* grown
        cdef Py_ssize_t cap
        if self.cap - self.end >= n:
            return 0
        if self.head:
            memmove(self.p, self.p + self.head, self.end - self.head)
            self.end -= self.head
            self.head = 0
            if self.cap - self.end >= n:
                return 0
        cap = self.cap * 2 if self.cap else 512
        if cap < self.end + n:
            cap = self.end + n
        if cap < LARGE:
            grown = <uint8_t*>realloc(self.p, cap)
            if grown is NULL:
                raise MemoryError
        else:
            # A block that grows is in use; one that begins may be for a size that was only announced.
            grown = new_block(&cap, self.end > 0)
            if grown is NULL:
                raise MemoryError
            memcpy(grown, self.p, self.end)
            free_block(self.p, self.cap)
        self.p = grown
        self.cap = cap
        return 0

    cdef int append(self, const uint8_t* src, Py_ssize_t off, Py_ssize_t n) except -1:
        cdef uint8_t* block
        if self.p is NULL and n >= LARGE:
            self.cap = n
            block = new_block(&self.cap, True)
            if block is NULL:
                self.cap = 0
                raise MemoryError
            self.p = block
        self.reserve(n)
        memcpy(self.p + self.end, src + off, n)
        self.end += n
        return 0

    cdef void drop(self) noexcept:
        """Gives the block back."""
        free_block(self.p, self.cap)
        self.p = NULL
        self.head = self.end = self.cap = 0

    def add(self, bytes data):
        """append() for Python callers."""
        self.append(<const uint8_t*>PyBytes_AS_STRING(data), 0, PyBytes_GET_SIZE(data))


cdef class Ring:
    """First in, first out: what each queued message is charged to, and since when it waits."""

    def __cinit__(self):
        self.slots = NULL
        self.cap = self.first = self.count = 0

    def __dealloc__(self):
        free(self.slots)

    def __len__(self):
        return self.count

    cdef int push(self, Py_ssize_t size, Py_ssize_t fds, int64_t tally, int64_t when) except -1:
        cdef Charge* grown
        cdef Charge* slot
        cdef Py_ssize_t i, cap
        if self.count == self.cap:
            cap = self.cap * 2 if self.cap else 4
            grown = <Charge*>malloc(cap * sizeof(Charge))
            if grown is NULL:
                raise MemoryError
            for i in range(self.count):
                grown[i] = self.slots[(self.first + i) & (self.cap - 1)]
            free(self.slots)
            self.slots = grown
            self.cap = cap
            self.first = 0
        slot = &self.slots[(self.first + self.count) & (self.cap - 1)]
        slot.left = size
        slot.size = size
        slot.fds = fds
        slot.tally = tally
        slot.when = when
        self.count += 1
        return 0

    cdef Py_ssize_t take_left(self, Py_ssize_t n) noexcept:
        """Takes up to n bytes off the first message; what is left of n, -1 if it is not done."""
        cdef Charge* slot = &self.slots[self.first]
        if <uint64_t>n < slot.left:
            slot.left -= n
            return -1
        return n - <Py_ssize_t>slot.left

    cdef Py_ssize_t front_size(self) noexcept:
        return self.slots[self.first].size

    cdef Py_ssize_t front_fds(self) noexcept:
        return self.slots[self.first].fds

    cdef int64_t front_tally(self) noexcept:
        return self.slots[self.first].tally

    cdef int64_t front_when(self) noexcept:
        return self.slots[self.first].when

    cdef void pop(self) noexcept:
        self.first = (self.first + 1) & (self.cap - 1)
        self.count -= 1
        if self.count == 0 and self.cap > 64:
            free(self.slots)
            self.slots = NULL
            self.cap = self.first = 0

    def items(self):
        """(size, fds, tally) of each message, oldest first."""
        return [entry[1:4] for entry in self.entries()]

    def entries(self):
        """(bytes left, size, fds, tally, when) of each message, oldest first."""
        cdef Py_ssize_t i
        cdef Charge slot
        out = []
        for i in range(self.count):
            slot = self.slots[(self.first + i) & (self.cap - 1)]
            out.append((slot.left, slot.size, slot.fds, slot.tally, slot.when))
        return out


cdef class Map64:
    """64-bit key to object, by open addressing. A key's low bits must be well mixed by the caller."""

    def __cinit__(self):
        self.slots = NULL
        self.mask = -1
        self.used = 0

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.mask + 1):
            if self.slots[i].value is not NULL:
                Py_DECREF(<object>self.slots[i].value)
        free(self.slots)

    def __len__(self):
        return self.used

    cdef object get(self, uint64_t key):
        cdef Py_ssize_t i
        if self.used == 0:
            return None
        i = <Py_ssize_t>(key & <uint64_t>self.mask)
        while self.slots[i].value is not NULL:
            if self.slots[i].key == key:
                return <object>self.slots[i].value
            i = (i + 1) & self.mask
        return None

    cdef int put(self, uint64_t key, object value) except -1:
        cdef MapSlot* old = self.slots
        cdef MapSlot* grown
        cdef Py_ssize_t i, j, size
        cdef void* before
        if (self.used + 1) * 3 > (self.mask + 1) * 2:
            size = (self.mask + 1) * 2 if self.mask > 0 else 4
            grown = <MapSlot*>calloc(size, sizeof(MapSlot))
            if grown is NULL:
                raise MemoryError
            for i in range(self.mask + 1):
                if old[i].value is not NULL:
                    j = <Py_ssize_t>(old[i].key & <uint64_t>(size - 1))
                    while grown[j].value is not NULL:
                        j = (j + 1) & (size - 1)
                    grown[j] = old[i]
            free(old)
            self.slots = grown
            self.mask = size - 1
        i = <Py_ssize_t>(key & <uint64_t>self.mask)
        Py_INCREF(value)
        while self.slots[i].value is not NULL:
            if self.slots[i].key == key:
                before = self.slots[i].value
                self.slots[i].value = <void*>value
                Py_DECREF(<object>before)
                return 0
            i = (i + 1) & self.mask
        self.slots[i].key = key
        self.slots[i].value = <void*>value
        self.used += 1
        return 0

    cdef object pop(self, uint64_t key):
        cdef Py_ssize_t i, j, home
        cdef object value
        if self.used == 0:
            return None
        i = <Py_ssize_t>(key & <uint64_t>self.mask)
        while True:
            if self.slots[i].value is NULL:
                return None
            if self.slots[i].key == key:
                break
            i = (i + 1) & self.mask
        value = <object>self.slots[i].value
        Py_DECREF(value)
        self.used -= 1
        # Close the gap, so that no probe for a later key ends here.
        j = i
        while True:
            j = (j + 1) & self.mask
            if self.slots[j].value is NULL:
                break
            home = <Py_ssize_t>(self.slots[j].key & <uint64_t>self.mask)
            if ((j - home) & self.mask) >= ((j - i) & self.mask):
                self.slots[i] = self.slots[j]
                i = j
        self.slots[i].value = NULL
        return value

    def values(self):
        cdef Py_ssize_t i
        out = []
        for i in range(self.mask + 1):
            if self.slots[i].value is not NULL:
                out.append(<object>self.slots[i].value)
        return out

    def keys(self):
        cdef Py_ssize_t i
        slots = self.slots
        return [slots[i].key for i in range(self.mask + 1) if slots[i].value is not NULL]


# Cython knows of no references but those in fields that are objects: without this one, who is in a
# Map64 and leads back to it would never be freed. All such ways lead through other objects, which
# the collector clears.
cdef traverseproc traverse_fields = (<PyTypeObject*>Map64).tp_traverse


cdef int traverse(PyObject* self, visitproc visit, void* arg) except -1:
    """Shows the garbage collector what is held."""
    cdef MapSlot* slots = (<Map64>self).slots
    cdef Py_ssize_t i
    cdef int what
    for i in range((<Map64>self).mask + 1):
        if slots[i].value is not NULL:
            what = visit(<PyObject*>slots[i].value, arg)
            if what:
                return what
    return traverse_fields(self, visit, arg)


(<PyTypeObject*>Map64).tp_traverse = traverse
