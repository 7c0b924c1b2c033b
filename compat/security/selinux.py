"""SELinux on the bus: each message and each name is asked of the policy.

Invariant: the answers are libselinux's (avc_has_perm(3)) about class "dbus": `send_msg` from the
sender's context to the receiver's or the bus's, `acquire_svc` from the owner's to the one that
`<associate>` gives the name, or to the bus's. Replies are asked about like all else; messages of
the bus itself, eavesdropping and services to be started are not, as in dbus-daemon.

What is denied is recorded each time, unless the policy says "dontaudit"; in permissive mode, or
for a permissive domain, once, and then it passes until the policy is another.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jitney.broker.errors import ACCESS_DENIED, Mediated

from .audit import USER_AVC, USER_POLICY_LOAD, USER_STATUS, Audit
from .selinuxfs import SELinuxFS, Status
from .words import DRIVER, TYPES, name_of, pid_of, text

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

CLASS = "dbus"
SEND, ACQUIRE = "send_msg", "acquire_svc"

SEND_DENIED = "An SELinux policy prevents this sender from sending this message to this recipient"

KEPT = 16384
"""Pairs of contexts whose answer is kept."""


class Access:
    """The answer about two contexts: what is allowed, and what is to be recorded."""

    __slots__ = ("allowed", "audit_allow", "audit_deny", "permissive")

    def __init__(self, allowed: int, audit_allow: int, audit_deny: int, permissive: bool) -> None:
        self.allowed = allowed
        self.audit_allow = audit_allow
        self.audit_deny = audit_deny
        self.permissive = permissive


class SELinux:
    """`context`: the bus's own. `complaint(conn, proposed, msg, what, matched, requested)`: the
    sentence about a message; `warn(text)`: trouble; `reload()`: the policy is another, and with it
    perhaps the files that the configuration includes from it."""

    feature = "SELinux"

    def __init__(
        self,
        kernel: SELinuxFS,
        audit: Audit,
        complaint: Callable[..., str],
        warn: Callable[[str], None],
        reload: Callable[[], None],
    ) -> None:
        self.kernel = kernel
        self.audit = audit
        self.complaint = complaint
        self.warn = warn
        self.reload = reload
        self.context = kernel.context()
        self.names: dict[bytes, bytes] = {}
        self.kept: dict[tuple[bytes, bytes], Access] = {}
        self.keeps = False
        self.number = 0
        self.trouble: int | None = None
        self.permissions: dict[str, int] = {}
        self.status: Status = kernel.status()
        self._learn()

    def associate(self, contexts: Mapping[str, str]) -> None:
        """Takes over the configuration's `<associate>` elements."""
        self.names = {
            name.encode(): context.encode("utf-8", "surrogateescape")
            for name, context in contexts.items()
        }

    # What the guard asks

    def flushed(self) -> None:
        self.kept.clear()
        self.trouble = None
        before = self.status
        try:
            self.status = self.kernel.status()
        except OSError as error:
            self.warn(f"Failed to read the status of SELinux: {error.strerror}")
            return
        self._learn()
        if self.status.enforcing != before.enforcing:
            state = int(self.status.enforcing)
            self.audit.record(
                USER_STATUS, f"avc:  op=setenforce lsm=selinux enforcing={state} res=1"
            )
        if self.status.loads != before.loads:
            loads = self.status.loads
            self.audit.record(
                USER_POLICY_LOAD, f"avc:  op=load_policy lsm=selinux seqno={loads} res=1"
            )
            self.reload()

    def always(self, sender: Connection, receiver: Connection | None) -> bool:
        if self.kernel.mapped is None:
            return False  # nobody would tell us when it is over
        access = self._access(sender.subject, self._target(receiver))
        if access is None:
            return False
        bit = self.permissions.get(SEND, 0)
        return bool(bit & access.allowed) and not bit & access.audit_allow

    def send(
        self, sender: Connection, receiver: Connection | None, msg: Message, requested: bool
    ) -> Mediated | None:
        def about() -> str:
            return about_message(sender, receiver, msg)

        # Where it could be kept, all that is said between the two is.
        self.keeps = self.always(sender, receiver)
        if self._allows(sender.subject, self._target(receiver), SEND, about):
            return None
        told = self.complaint(sender, receiver, msg, SEND_DENIED, 0, False)
        return Mediated(ACCESS_DENIED, told)

    def own(self, conn: Connection, name: bytes) -> Mediated | None:
        target = self.names.get(name, self.context)
        if self._allows(conn.subject, target, ACQUIRE, lambda: about_name(conn, name)):
            return None
        return Mediated(
            ACCESS_DENIED,
            f'Connection "{name_of(conn)}" is not allowed to own the service "{text(name)}" due '
            "to SELinux policy",
        )

    def eavesdrop(self, conn: Connection) -> None:
        return None

    def activate(self, conn: Connection, msg: Message, label: str | None) -> None:
        # Asked when the service is there, with a context of its own.
        return None

    def context_of(self, conn: Connection | None) -> bytes | None:
        """The context of a connection, or of the bus (None)."""
        return self._target(conn)

    # What the policy says

    def _learn(self) -> None:
        """The policy's numbers, which another policy may have others for."""
        try:
            self.number, self.permissions = self.kernel.permissions(CLASS)
        except (OSError, ValueError):
            self.number, self.permissions = 0, {}
        if not self.number:
            self.warn(f"Unknown class {CLASS}")
            return
        for permission in (SEND, ACQUIRE):
            if permission not in self.permissions:
                self.warn(f"Unknown permission {permission} for class {CLASS}")

    def _target(self, receiver: Connection | None) -> bytes | None:
        return self.context if receiver is None else receiver.subject

    def _access(self, subject: bytes | None, target: bytes | None) -> Access | None:
        """None: the kernel has no answer, and `errno` says why, see `_allows()`."""
        if subject is None or target is None or not self.number:
            return None
        try:
            return self._ask(subject, target)
        except OSError:
            return None

    def _ask(self, subject: bytes, target: bytes) -> Access:
        key = (subject, target)
        access = self.kept.get(key)
        if access is None:
            wanted = self.permissions.get(SEND, 0) | self.permissions.get(ACQUIRE, 0)
            found = self.kernel.compute(subject, target, self.number, wanted)
            access = Access(found.allowed, found.audit_allow, found.audit_deny, found.permissive)
            if self.kernel.mapped is not None:
                if len(self.kept) >= KEPT:
                    self.kept.clear()
                self.kept[key] = access
        return access

    def _allows(
        self, subject: bytes | None, target: bytes | None, name: str, about: Callable[[], str]
    ) -> bool:
        """Whether the policy allows it; what is to be recorded is, with what `about` says."""
        if self.kernel.mapped is None:
            self._refresh()
        bit = self.permissions.get(name, 0)
        if not bit:
            return not self.status.deny_unknown
        if subject is None or target is None:
            # Nobody's message, which none of the policy's rules is about.
            return not self.status.enforcing
        try:
            access = self._ask(subject, target)
        except OSError as error:
            if error.errno == errno.EINVAL and not self.status.enforcing:
                return True  # the policy does not know one of the contexts any more
            if error.errno != self.trouble:
                # Once: whoever is denied may ask as often as he likes.
                self.trouble = error.errno
                self.warn(f"SELinux denying due to: {os.strerror(error.errno or errno.EIO)}")
            return False
        if bit & access.allowed:
            if bit & access.audit_allow:
                self._record("granted", name, about(), subject, target, "")
            return True
        permissive = not self.status.enforcing or access.permissive
        if bit & access.audit_deny:
            self._record("denied", name, about(), subject, target, f" permissive={int(permissive)}")
        if permissive:
            access.allowed |= bit
        return permissive

    def _refresh(self) -> None:
        """Where the kernel does not tell us of changes we look each time."""
        try:
            self.status = self.kernel.status()
        except OSError:
            pass  # then it is as it was

    def _record(
        self, verdict: str, name: str, about: str, subject: bytes, target: bytes, more: str
    ) -> None:
        self.audit.record(
            USER_AVC,
            f"avc:  {verdict}  {{ {name} }} for {about} scontext={text(subject)} "
            f"tcontext={text(target)} tclass={CLASS}{more}",
        )


def about_message(sender: Connection, receiver: Connection | None, msg: Message) -> str:
    """What a record says of a message, in dbus-daemon's order."""
    parts = [f"msgtype={TYPES.get(msg.type, 'invalid')}"]
    for key, value in (
        ("interface", msg.interface),
        ("member", msg.member),
        ("error_name", msg.error_name),
        ("dest", msg.destination if msg.destination is not None else DRIVER),
    ):
        if value is not None:
            parts.append(f"{key}={text(value)}")
    ends: tuple[tuple[str, Any], ...] = (("spid", sender), ("tpid", receiver))
    for key, conn in ends:
        pid = pid_of(conn)
        if pid:
            parts.append(f"{key}={pid}")
    return " ".join(parts)


def about_name(conn: Connection, name: bytes) -> str:
    pid = pid_of(conn)
    return f"service={text(name)}" + (f" spid={pid}" if pid else "")
