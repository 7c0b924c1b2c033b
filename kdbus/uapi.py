"""The form of kdbus's commands and items: sizes, numbers, what may be in them.

Invariant: all of it is facts of the interface, as tables; nothing here knows what a command does.
All numbers are 64 bits wide and little-endian unless a layout says otherwise.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.errors import KdbusError
from jitney.broker.kdbus.validity import is_sysname

MAGIC = 0x95
WRITE, READ = 1, 2  # as the ioctl number has it: the client writes, the client reads

U64 = struct.Struct("<Q")
VEC = struct.Struct("<2Q")
MEMFD = struct.Struct("<2QiI")
MESSAGE = struct.Struct("<QQqQQQQQ")

ITEM_HEAD = 16
# Where a command's fields are.
SIZE, FLAGS, RETURN_FLAGS = 0, 8, 16

Arguments = dict[int, bool]
"""Item types that a command takes, and whether more than one."""


class Form:
    """A command's form: number, size without items, flags and items it takes."""

    def __init__(
        self,
        name: str,
        number: int,
        direction: int,
        size: int,
        flags: int,
        items: Arguments,
        needs: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.size = size
        self.flags = flags | c.NEGOTIATE
        self.items = {c.ITEM_NEGOTIATE: False, **items}
        self.needs = needs
        self.ioctl = direction << 30 | size << 16 | MAGIC << 8 | number


ONE, MANY = False, True

FORMS = [
    Form(
        "BUS_MAKE", 0x00, WRITE, 24, c.ACCESS_GROUP | c.ACCESS_WORLD,
        {c.ITEM_MAKE_NAME: ONE, c.ITEM_BLOOM_PARAMETER: ONE, c.ITEM_ATTACH_FLAGS_SEND: ONE},
        (c.ITEM_MAKE_NAME, c.ITEM_BLOOM_PARAMETER),
    ),
    Form(
        "ENDPOINT_MAKE", 0x10, WRITE, 24, c.ACCESS_GROUP | c.ACCESS_WORLD,
        {c.ITEM_MAKE_NAME: ONE}, (c.ITEM_MAKE_NAME,),
    ),
    Form(
        "ENDPOINT_UPDATE", 0x11, WRITE, 24, 0,
        {c.ITEM_NAME: MANY, c.ITEM_POLICY_ACCESS: MANY},
    ),
    Form(
        "HELLO", 0x80, WRITE | READ, 96, c.HELLO_FLAGS,
        {
            c.ITEM_NAME: ONE, c.ITEM_CREDS: ONE, c.ITEM_PIDS: ONE, c.ITEM_SECLABEL: ONE,
            c.ITEM_DESCRIPTION: ONE, c.ITEM_POLICY_ACCESS: MANY,
        },
    ),
    Form(
        "UPDATE", 0x81, WRITE, 24, 0,
        {
            c.ITEM_ATTACH_FLAGS_SEND: ONE, c.ITEM_ATTACH_FLAGS_RECV: ONE, c.ITEM_NAME: MANY,
            c.ITEM_POLICY_ACCESS: MANY,
        },
    ),
    Form("BYEBYE", 0x82, WRITE, 24, 0, {}),
    Form("FREE", 0x83, WRITE, 32, 0, {}),
    Form("CONN_INFO", 0x84, READ, 56, 0, {c.ITEM_NAME: ONE}),
    Form("BUS_CREATOR_INFO", 0x85, READ, 56, 0, {}),
    Form(
        "LIST", 0x86, READ, 40,
        c.LIST_UNIQUE | c.LIST_NAMES | c.LIST_ACTIVATORS | c.LIST_QUEUED, {},
    ),
    Form("SEND", 0x90, WRITE, 56, c.SEND_SYNC_REPLY, {c.ITEM_CANCEL_FD: ONE}),
    Form("RECV", 0x91, READ, 64, c.RECV_PEEK | c.RECV_DROP | c.RECV_USE_PRIORITY, {}),
    # kdbus's last selftests give back what they were answered (PRIMARY, ACQUIRED) as if asked for;
    # its last kernel module would not have taken that. The programs win: these are ignored.
    Form(
        "NAME_ACQUIRE", 0xA0, WRITE, 24, c.NAME_ASKED | c.NAME_PRIMARY | c.NAME_ACQUIRED,
        {c.ITEM_NAME: ONE}, (c.ITEM_NAME,),
    ),
    Form("NAME_RELEASE", 0xA1, WRITE, 24, 0, {c.ITEM_NAME: ONE}, (c.ITEM_NAME,)),
    Form(
        "MATCH_ADD", 0xB0, WRITE, 32, c.MATCH_REPLACE,
        {
            c.ITEM_BLOOM_MASK: MANY, c.ITEM_NAME: MANY, c.ITEM_ID: MANY, c.ITEM_DST_ID: MANY,
            c.ITEM_NAME_ADD: MANY, c.ITEM_NAME_REMOVE: MANY, c.ITEM_NAME_CHANGE: MANY,
            c.ITEM_ID_ADD: MANY, c.ITEM_ID_REMOVE: MANY,
        },
    ),
    Form("MATCH_REMOVE", 0xB1, WRITE, 32, 0, {}),
]  # fmt: skip

BY_IOCTL = {form.ioctl: form for form in FORMS}
BY_NAME = {form.name: form for form in FORMS}

MESSAGE_FORM = Form(
    "message", 0, 0, MESSAGE.size, c.EXPECT_REPLY | c.NO_AUTO_START | c.SIGNAL,
    {
        c.ITEM_PAYLOAD_VEC: MANY, c.ITEM_PAYLOAD_MEMFD: MANY, c.ITEM_FDS: ONE,
        c.ITEM_BLOOM_FILTER: ONE, c.ITEM_DST_NAME: ONE,
    },
)  # fmt: skip

EXACT = {
    c.ITEM_PAYLOAD_VEC: 16, c.ITEM_PAYLOAD_OFF: 16, c.ITEM_PAYLOAD_MEMFD: 24, c.ITEM_CANCEL_FD: 4,
    c.ITEM_BLOOM_PARAMETER: 16, c.ITEM_ATTACH_FLAGS_SEND: 8, c.ITEM_ATTACH_FLAGS_RECV: 8,
    c.ITEM_ID: 8, c.ITEM_DST_ID: 8, c.ITEM_TIMESTAMP: 24, c.ITEM_CREDS: 64, c.ITEM_AUDIT: 8,
    c.ITEM_POLICY_ACCESS: 24, c.ITEM_ID_ADD: 16, c.ITEM_ID_REMOVE: 16, c.ITEM_REPLY_TIMEOUT: 0,
    c.ITEM_REPLY_DEAD: 0, c.ITEM_PIDS: 24,
}  # fmt: skip
"""Items whose payload has one size."""

MULTIPLE = {c.ITEM_NEGOTIATE: 8, c.ITEM_FDS: 4, c.ITEM_AUXGROUPS: 4}
"""Items whose payload is a list of numbers of this size."""

STRINGS = frozenset(
    (c.ITEM_NAME, c.ITEM_DST_NAME, c.ITEM_PID_COMM, c.ITEM_TID_COMM, c.ITEM_EXE, c.ITEM_CMDLINE,
     c.ITEM_CGROUP, c.ITEM_SECLABEL)
)  # fmt: skip
"""Items whose payload is a text that ends in its only zero byte."""

SYSNAMES = frozenset((c.ITEM_MAKE_NAME, c.ITEM_DESCRIPTION))
NAME_CHANGES = frozenset((c.ITEM_NAME_ADD, c.ITEM_NAME_REMOVE, c.ITEM_NAME_CHANGE))


def _is_text(data: bytes) -> bool:
    return data[-1:] == b"\0" and data.find(b"\0") == len(data) - 1


def check_item(kind: int, data: bytes) -> None:
    """Whether the payload can be one of this type; or EINVAL, EBADF, ENAMETOOLONG."""
    size = len(data)
    exact = EXACT.get(kind)
    bad = False
    if exact is not None:
        bad = size != exact
        if not bad and kind in (c.ITEM_PAYLOAD_VEC, c.ITEM_PAYLOAD_OFF):
            bad = U64.unpack_from(data)[0] == 0
        elif not bad and kind == c.ITEM_PAYLOAD_MEMFD:
            _, length, fd, _ = MEMFD.unpack(data)
            bad = length == 0
            if fd < 0 and not bad:
                raise KdbusError(errno.EBADF)
    elif kind in MULTIPLE:
        bad = size % MULTIPLE[kind] != 0
    elif kind in STRINGS:
        bad = not _is_text(data)
    elif kind in SYSNAMES:
        if size > c.SYSNAME_MAX + 1:
            raise KdbusError(errno.ENAMETOOLONG)
        bad = not _is_text(data) or not is_sysname(data[:-1])
    elif kind == c.ITEM_BLOOM_FILTER:
        bad = size < 8
    elif kind in NAME_CHANGES:
        bad = size < 32 or (size > 32 and not _is_text(data[32:]))
    if bad:
        raise KdbusError(errno.EINVAL)


def walk(data: bytes | bytearray, start: int) -> Iterator[tuple[int, int, int]]:
    """(type, where the payload begins, its size) of each item from `start` on; or EINVAL."""
    end = len(data)
    at = start
    while at < end:
        if end - at < ITEM_HEAD:
            raise KdbusError(errno.EINVAL)
        size, kind = VEC.unpack_from(data, at)
        if size < ITEM_HEAD or size > end - at:
            raise KdbusError(errno.EINVAL)
        yield kind, at + ITEM_HEAD, size - ITEM_HEAD
        at += c.align8(size)
    if at != start + c.align8(end - start):
        raise KdbusError(errno.EINVAL)
