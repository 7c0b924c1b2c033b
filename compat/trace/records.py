"""Records: what the bus tells a tracer of one message, read from the wire.

Invariant: one record of the bus is one `Record`, in the order in which the messages passed; a batch
that is not what `jitney.broker.trace` writes raises ValueError.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import NamedTuple

PASSED, JUDGED = 1, 2
NO_UID = 0xFFFFFFFF
DRIVER = "org.freedesktop.DBus"
TYPES = {1: "method_call", 2: "method_return", 3: "error", 4: "signal"}
NO_REPLY = 1

_FIXED = Struct("<QBBBBIIIIII")
_LENGTH = Struct("<I")
_TEXTS = 9


class Record(NamedTuple):
    """One message, or (kind JUDGED) that one was kept from `receiver` by `verdict`, and `why`.

    `time`: nanoseconds since 1970; what a message does not have is "" or 0. `payload`: the message
    as its sender wrote it, as much of it as was asked for; `cut`: 1 if the path is longer, 2 if the
    message is. `sender` is the true one; `receiver` is the owner of `destination`, "" for nobody
    and for the bus. `uid`s are None where there is no user."""

    time: int
    kind: int
    type: int
    flags: int
    cut: int
    serial: int
    reply_serial: int
    size: int
    fds: int
    sender_uid: int | None
    receiver_uid: int | None
    sender: str
    receiver: str
    destination: str
    path: str
    interface: str
    member: str
    error: str
    verdict: str
    why: str
    payload: bytes

    @property
    def what(self) -> str:
        """Interface and member, as people write them."""
        return ".".join(part for part in (self.interface, self.member) if part)


def read(body: bytes, offset: int) -> tuple[int, list[Record]]:
    """The body of a `Records` signal: how many were lost before, and the records. `offset` (ns) is
    what makes the time of day of the bus's clock."""
    if len(body) < 8:
        raise ValueError("a batch of records ends early")
    lost, length = _LENGTH.unpack_from(body)[0], _LENGTH.unpack_from(body, 4)[0]
    end = 8 + length
    if end != len(body):
        raise ValueError("a batch of records is not as long as it says")
    records = []
    pos = 8
    try:
        while pos < end:
            pos += -pos & 7
            record, pos = _one(body, pos, offset)
            records.append(record)
    except (struct_error, UnicodeDecodeError) as error:
        raise ValueError(f"a record cannot be read: {error}") from error
    return lost, records


def _one(body: bytes, pos: int, offset: int) -> tuple[Record, int]:
    time, kind, type, flags, cut, *numbers = _FIXED.unpack_from(body, pos)
    serial, reply_serial, size, fds, sender_uid, receiver_uid = numbers
    pos += _FIXED.size
    texts = []
    for _ in range(_TEXTS):
        pos += -pos & 3
        n = _LENGTH.unpack_from(body, pos)[0]
        texts.append(body[pos + 4 : pos + 4 + n].decode())
        pos += n + 5
    sender, receiver, destination, path, interface, member, error, verdict, why = texts
    pos += -pos & 3
    n = _LENGTH.unpack_from(body, pos)[0]
    pos += 4
    record = Record(
        time + offset, kind, type, flags, cut, serial, reply_serial, size, fds,
        None if sender_uid == NO_UID else sender_uid,
        None if receiver_uid == NO_UID else receiver_uid,
        sender, receiver, destination, path, interface, member, error, verdict, why,
        body[pos : pos + n],
    )  # fmt: skip
    return record, pos + n
