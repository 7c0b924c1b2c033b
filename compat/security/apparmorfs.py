"""AppArmor's policy, as the kernel answers for it: its files, by which libapparmor asks as well.

Invariant: each call asks the kernel anew. What cannot be had is an OSError; that there is no
mediation of D-Bus is None.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from dataclasses import dataclass

from .selinuxfs import own_attribute, transact

PLACE = "/sys/kernel/security/apparmor"
ENABLED = "/sys/module/apparmor/parameters/enabled"

SEND, RECEIVE, EAVESDROP, BIND = 1 << 1, 1 << 2, 1 << 5, 1 << 6

_CLASS_DBUS = b"\x20"
_LABEL = b"label\0"
_ATTRIBUTES = (
    "/proc/thread-self/attr/apparmor/current",
    "/proc/self/attr/apparmor/current",
    "/proc/self/attr/current",
)
_ANSWER = re.compile(
    rb"allow 0x([0-9a-f]{1,8})\ndeny 0x([0-9a-f]{1,8})\naudit 0x([0-9a-f]{1,8})\n"
    rb"quiet 0x([0-9a-f]{1,8})\n"
)
_SO_PEERSEC = 31


@dataclass(frozen=True, slots=True)
class Confinement:
    """Under which profile somebody runs, and in which mode: "enforce", "complain", ..., or None
    where there is none to speak of."""

    label: bytes
    mode: bytes | None

    @property
    def unconfined(self) -> bool:
        return self.mode == b"unconfined" or (self.mode is None and self.label == b"unconfined")

    @property
    def complains(self) -> bool:
        return self.mode == b"complain"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a profile says to something, and whether it is to be recorded."""

    allowed: bool
    audited: bool


class AppArmorFS:
    """`revision`: a descriptor that is readable when a profile has been loaded or removed since it
    was read last; None if the kernel does not tell us."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.revision: int | None = None

    def watch(self) -> None:
        try:
            self.revision = os.open(
                f"{self.place}/revision", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            )
        except OSError:
            return
        if not self.settle():
            self.close()

    def settle(self) -> bool:
        """Takes note of the profiles as they are now; False if that cannot be done."""
        if self.revision is None:
            return False
        try:
            os.read(self.revision, 64)
        except BlockingIOError:
            pass  # nothing new
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self.revision is not None:
            os.close(self.revision)
            self.revision = None

    def confinement(self) -> Confinement:
        """Our own."""
        found = parse_confinement(own_attribute(_ATTRIBUTES))
        if found is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return found

    def may_be_asked(self) -> bool:
        """Whether `query` can come to an answer; a sandbox may have made it read-only."""
        return os.access(f"{self.place}/.access", os.R_OK | os.W_OK)

    def query(self, mask: int, question: bytes) -> Answer:
        """aa_query_label(2): what the profile in the question says to the access in `mask`."""
        return parse_answer(mask, transact(f"{self.place}/.access", question))


def find() -> AppArmorFS | None:
    """The interface of a kernel that mediates D-Bus; None if it does not."""
    try:
        with open(ENABLED, "rb") as file:
            if file.read(1) != b"Y":
                return None
        # AppArmor does not mediate stat(): a confined bus learns by opening it whether it may ask.
        with open(f"{PLACE}/features/dbus/mask", "rb"):
            pass
    except OSError:
        return None
    return AppArmorFS(PLACE)


def labels_peers() -> bool:
    """Whether the kernel knows who connected to a Unix socket. Kernels without Ubuntu's patches
    have the interface for D-Bus and do not: to ask there would be to let nobody in."""
    try:
        with (
            socket.socket(socket.AF_UNIX) as server,
            socket.socket(socket.AF_UNIX) as client,
        ):
            server.bind("")
            server.listen(1)
            client.connect(server.getsockname())
            with server.accept()[0] as accepted:
                accepted.getsockopt(socket.SOL_SOCKET, _SO_PEERSEC, 4096)
    except OSError as error:
        return error.errno != errno.ENOPROTOOPT
    return True


def parse_confinement(text: bytes) -> Confinement | None:
    """What a label says as the kernel writes it: `profile (mode)`, or `unconfined`."""
    if text == b"unconfined":
        return Confinement(text, None)
    if text.endswith(b")"):
        label, found, mode = text[:-1].rpartition(b" (")
        if found and label:
            return Confinement(label, mode)
    return None


def parse_answer(mask: int, answer: bytes) -> Answer:
    found = _ANSWER.match(answer)
    if found is None:
        raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
    allow, deny, audit, quiet = (int(word, 16) for word in found.groups())
    allowed = not mask & ~(allow & ~deny)
    if not allowed:
        audit = 0xFFFFFFFF
    return Answer(allowed, not mask & ~(audit & ~quiet))


# Questions: the command, the label that is asked about, the class, and what it is about.


def eavesdrop_query(label: bytes, bus: bytes) -> bytes:
    return _LABEL + label + b"\0" + _CLASS_DBUS + bus


def own_query(label: bytes, bus: bytes, name: bytes) -> bytes:
    return eavesdrop_query(label, bus) + b"\0" + name


def message_query(
    label: bytes,
    bus: bytes,
    name: bytes,
    peer: bytes | None,
    path: bytes | None,
    interface: bytes | None,
    member: bytes | None,
) -> bytes:
    """`name`, `peer`: the other side's name and label."""
    return b"\0".join(
        (
            eavesdrop_query(label, bus),
            name,
            peer or b"",
            path or b"",
            interface or b"",
            member or b"",
        )
    )
