"""The FUSE protocol as far as kdbusfs speaks it: layouts and numbers of /dev/fuse.

Invariant: these are facts of the kernel's interface (fuse(4)), in the machine's byte order.
"""

from __future__ import annotations

import struct

MAJOR, MINOR = 7, 38

IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
INIT_IN = struct.Struct("=IIII")
INIT_OUT = struct.Struct("=IIIIHHIIHHII6I")
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
ENTRY = struct.Struct("=QQQQII")
ATTR_HEAD = struct.Struct("=QII")
OPEN_OUT = struct.Struct("=QIi")
READ_IN = struct.Struct("=QQII")
IOCTL_IN = struct.Struct("=QIIQII")
IOCTL_OUT = struct.Struct("=iIII")
POLL_IN = struct.Struct("=QQII")
POLL_OUT = struct.Struct("=II")
FORGET_ONE = struct.Struct("=QQ")
STORE_OUT = struct.Struct("=QQII")
DIRENT = struct.Struct("=QQII")
STATFS_OUT = struct.Struct("=QQQQQIIII6I")
U64 = struct.Struct("=Q")

LOOKUP, FORGET, GETATTR, SETATTR = 1, 2, 3, 4
OPEN, READ, WRITE, STATFS, RELEASE = 14, 15, 16, 17, 18
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 25, 26, 27, 28, 29
ACCESS, INTERRUPT, DESTROY, IOCTL, POLL = 34, 36, 38, 39, 40
BATCH_FORGET = 42

NOTIFY_POLL, NOTIFY_STORE = 1, 4

# Flags of INIT; what is beyond 32 bits is in a second word.
ASYNC_READ = 1 << 0
MAX_PAGES = 1 << 22
INIT_EXT = 1 << 30
PASSTHROUGH2 = 1 << 5

OPEN_KEEP_CACHE, OPEN_NOFLUSH, OPEN_PASSTHROUGH = 1 << 1, 1 << 5, 1 << 7
IOCTL_DIR = 1 << 4
POLL_SCHEDULE_NOTIFY = 1

BACKING_OPEN = 1 << 30 | 16 << 16 | 229 << 8 | 1
BACKING_CLOSE = 1 << 30 | 4 << 16 | 229 << 8 | 2

ROOT = 1
BUFFER = 64 * 1024
STORE_MAX = 128 * 1024
