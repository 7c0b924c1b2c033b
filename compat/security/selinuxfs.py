"""SELinux's policy, as the kernel answers for it: its files, by which libselinux asks as well.

Invariant: each call asks the kernel anew; nothing is kept here but where its files are. What cannot
be had is an OSError.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

PLACES = ("/sys/fs/selinux", "/selinux")
CONFIG = "/etc/selinux/config"

_ATTRIBUTES = ("/proc/thread-self/attr/current", "/proc/self/attr/current")

# struct selinux_kernel_status: version, sequence, enforcing, policyload, deny_unknown.
_STATUS = struct.Struct("=5I")
_SEQUENCE = 4
_PAGE = 4096
_PROT_READ, _MAP_SHARED = 1, 1

_PERMISSIVE = 1


@dataclass(frozen=True, slots=True)
class Vector:
    """What one context may do to another, as bits of one class's permissions."""

    allowed: int
    audit_allow: int
    audit_deny: int
    permissive: bool
    """What is denied is to be allowed all the same: the subject's domain is permissive."""


@dataclass(frozen=True, slots=True)
class Status:
    """Which policy is in force, and how. `loads` counts up with each policy."""

    enforcing: bool
    deny_unknown: bool
    loads: int


class SELinuxFS:
    """`mapped`: the four bytes that change with the policy and with enforcing; None if the kernel
    does not let us look."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.mapped: Any = None
        self._page: Any = None

    def map(self) -> None:
        """Has the kernel share its status with us."""
        try:
            fd = os.open(f"{self.place}/status", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            self._page = _mapped(fd)
        finally:
            os.close(fd)
        if self._page is not None:
            self.mapped = memoryview(self._page).cast("B")[_SEQUENCE : _SEQUENCE + 4]

    def status(self) -> Status:
        if self._page is not None:
            _, _, enforcing, loads, deny_unknown = _STATUS.unpack_from(self._page)
            return Status(bool(enforcing), bool(deny_unknown), loads)
        return Status(self._number("enforce") != 0, self._number("deny_unknown") != 0, 0)

    def context(self) -> bytes:
        """Our own context."""
        return own_attribute(_ATTRIBUTES)

    def permissions(self, name: str) -> tuple[int, dict[str, int]]:
        """A class's number in the policy, and its permissions' bits."""
        folder = f"{self.place}/class/{name}"
        found = {}
        for permission in os.listdir(f"{folder}/perms"):
            found[permission] = 1 << (self._number(f"class/{name}/perms/{permission}") - 1)
        return self._number(f"class/{name}/index"), found

    def compute(self, subject: bytes, target: bytes, number: int, requested: int) -> Vector:
        """What `subject` may do to `target`, in the class of this number."""
        question = b"%s %s %d %x" % (subject, target, number, requested)
        return parse_vector(self.transact("access", question))

    def transact(self, name: str, question: bytes) -> bytes:
        """Writes to a file whose answer is then read from it."""
        return transact(f"{self.place}/{name}", question)

    def _number(self, name: str) -> int:
        with open(f"{self.place}/{name}", "rb", buffering=0) as file:
            return int(file.read(32).strip(b"\0\n ") or b"0")


def find() -> SELinuxFS | None:
    """The interface of a kernel with a policy; None if SELinux is off, as is_selinux_enabled(3)
    sees it."""
    if not os.path.exists(CONFIG):
        return None
    for place in PLACES:
        try:
            # What a container may only read is its host's policy, and is not about us.
            if os.path.exists(f"{place}/access") and not os.statvfs(place).f_flag & os.ST_RDONLY:
                return SELinuxFS(place)
        except OSError:
            continue
    return None


def parse_vector(answer: bytes) -> Vector:
    """What the kernel says: allowed, decided, auditallow, auditdeny, seqno and, since 2.6.30,
    flags; all but seqno are hexadecimal."""
    words = answer.strip(b"\0\n ").split()
    try:
        allowed, _decided, audit_allow, audit_deny = (int(word, 16) for word in words[:4])
        flags = int(words[5], 16) if len(words) > 5 else 0
    except ValueError:
        raise OSError(71, os.strerror(71)) from None  # EPROTO
    return Vector(allowed, audit_allow, audit_deny, bool(flags & _PERMISSIVE))


def transact(path: str, question: bytes, size: int = 4096) -> bytes:
    """Asks a file of the kernel's that answers what was written to it. OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.write(fd, question) != len(question):
            raise OSError(71, os.strerror(71))
        return os.read(fd, size)
    finally:
        os.close(fd)


def own_attribute(files: tuple[str, ...]) -> bytes:
    """What the first of these files that is there says of us, without the NUL or newline that ends
    it. OSError."""
    problem: OSError | None = None
    for name in files:
        try:
            with open(name, "rb", buffering=0) as file:
                return file.read(4096).rstrip(b"\0\n")
        except FileNotFoundError as error:
            problem = error
    raise problem if problem is not None else FileNotFoundError(files)


def _mapped(fd: int) -> Any:
    """The page behind a descriptor; mmap.mmap() takes no file whose size is said to be 0."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    where = libc.mmap(None, _PAGE, _PROT_READ, _MAP_SHARED, fd, 0)
    if where in (None, ctypes.c_void_p(-1).value):
        return None
    # Never unmapped: one page, until the bus ends.
    return (ctypes.c_ubyte * _STATUS.size).from_address(where)
