"""AppArmor on the bus: each message, each name and each eavesdropper is asked of the profiles.

Invariant: the questions and what follows from the answers are dbus-daemon's. A message asks the
sender's profile whether it may send it and the receiver's whether it may receive it; replies that
were asked for ask nobody. Who is unconfined, or in complain mode, is kept from nothing.

The label is that of connect(2): what a process becomes later does not count, as in dbus-daemon.
What passed is kept (`keeps`) for as long as the kernel tells us of new profiles; where it does not,
each message of a confined client is asked about.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jitney.broker.errors import ACCESS_DENIED, Mediated
from jitney.broker.routing import NOT_ACTIVE

from ..errors import DBusError
from ..process import from_errno
from .apparmorfs import (
    BIND,
    EAVESDROP,
    RECEIVE,
    SEND,
    Answer,
    AppArmorFS,
    Confinement,
    eavesdrop_query,
    message_query,
    own_query,
    parse_confinement,
)
from .audit import USER_AVC, Audit
from .words import DRIVER, TYPES, name_of, pid_of, text

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

Problem = Mediated | DBusError

SEND_DENIED = "An AppArmor policy prevents this sender from sending this message to this recipient"
MASKS = {BIND: "bind", EAVESDROP: "eavesdrop"}

_SILENT = Answer(True, False)


class AppArmor:
    """`type`: the bus's; `own_confinement`: its own label. `complaint`: see `selinux.SELinux`."""

    feature = "AppArmor"

    def __init__(
        self,
        kernel: AppArmorFS,
        audit: Audit,
        complaint: Callable[..., str],
        type: str | None,
    ) -> None:
        self.kernel = kernel
        self.audit = audit
        self.complaint = complaint
        self.type = type
        self.bus = type.encode() if type is not None else b""
        self.own_confinement = kernel.confinement()
        self.keeps = False

    def flushed(self) -> None:
        # Nothing is kept here.
        return None

    # What the guard asks

    def always(self, sender: Connection, receiver: Connection | None) -> bool:
        one, other = self._of(sender), self._of(receiver)
        return one is not None and one.unconfined and other is not None and other.unconfined

    def send(
        self, sender: Connection, receiver: Connection | None, msg: Message, requested: bool
    ) -> Problem | None:
        self.keeps = requested
        if requested:
            return None
        return self._send(sender, receiver, msg, self._of(receiver), False)

    def activate(self, conn: Connection, msg: Message, label: str | None) -> Problem | None:
        """Before a service is started: whether the sender may send this to one with the label that
        the service file assumes. What the service may receive is asked when it is there."""
        assumed = Confinement(label.encode("utf-8", "surrogateescape"), None) if label else None
        return self._send(conn, None, msg, assumed, True)

    def own(self, conn: Connection, name: bytes) -> Problem | None:
        who = self._of(conn)
        if who is not None and who.unconfined:
            return None
        about = f" bus={_quoted(self.type or 'unknown')} name={_quoted(name)}"
        question = own_query(who.label, self.bus, name) if who is not None else None
        return self._decide(
            conn,
            who,
            BIND,
            question,
            about,
            f'Connection "{name_of(conn)}" is not allowed to own the service "{text(name)}" due '
            "to AppArmor policy",
        )

    def eavesdrop(self, conn: Connection) -> Problem | None:
        who = self._of(conn)
        if who is not None and who.unconfined:
            return None
        question = eavesdrop_query(who.label, self.bus) if who is not None else None
        return self._decide(
            conn,
            who,
            EAVESDROP,
            question,
            f" bus={_quoted(self.type or 'unknown')}",
            f'Connection "{name_of(conn)}" is not allowed to eavesdrop due to AppArmor policy',
        )

    def context_of(self, conn: Connection | None) -> None:
        # There is no method of the driver's that tells a profile alone.
        return None

    # How it is decided

    def _of(self, conn: Connection | None) -> Confinement | None:
        """Who somebody is; None if that is not known, who then may nothing."""
        if conn is None:
            return self.own_confinement
        return parse_confinement(conn.subject) if conn.subject is not None else None

    def _query(self, mask: int, question: bytes | None) -> Answer:
        if question is None:
            raise OSError(22, os.strerror(22))
        return self.kernel.query(mask, question)

    def _decide(
        self,
        conn: Connection,
        who: Confinement | None,
        mask: int,
        question: bytes | None,
        about: str,
        denied: str,
    ) -> Problem | None:
        info = ""
        problem: Problem | None = None
        try:
            answer = self._query(mask, question)
            allowed = answer.allowed or (who is not None and who.complains)
            audited = answer.audited
            if not allowed:
                problem = Mediated(ACCESS_DENIED, denied)
        except OSError as error:
            allowed, audited = False, True
            problem = _failed(error)
            info = f" info={_quoted(error.strerror or '')}"
        if audited:
            self._record(
                allowed,
                MASKS[mask],
                f"{about}{info} mask={_quoted(MASKS[mask])}" + _who(conn, who),
            )
        return problem

    def _send(
        self,
        sender: Connection,
        receiver: Connection | None,
        msg: Message,
        whom: Confinement | None,
        activation: bool,
    ) -> Problem | None:
        who = self._of(sender)
        destination = msg.destination if msg.destination is not None else DRIVER
        source = sender.unique_name or NOT_ACTIVE
        sends = receives = _SILENT
        trouble: OSError | None = None
        info = peer_info = ""
        label = whom.label if whom is not None else None
        path, interface, member = msg.path, msg.interface, msg.member
        try:
            if who is None or not who.unconfined:
                question = None
                if who is not None:
                    question = message_query(
                        who.label, self.bus, destination, label, path, interface, member
                    )
                sends = self._query(SEND, question)
        except OSError as error:
            trouble, info = error, f" info={_quoted(error.strerror or '')}"
        if trouble is None and not activation and (whom is None or not whom.unconfined):
            try:
                question = None
                if whom is not None and who is not None:
                    question = message_query(
                        whom.label, self.bus, source, who.label, path, interface, member
                    )
                receives = self._query(RECEIVE, question)
            except OSError as error:
                trouble, peer_info = error, f" peer_info={_quoted(error.strerror or '')}"
        if trouble is not None:
            # Both halves are recorded then; only a half that was answered had a chance to pass.
            sends = Answer(bool(peer_info) and sends.allowed, sends.audited or bool(info))
            receives = Answer(False, True)
        may_send, may_receive = sends.allowed, receives.allowed
        if trouble is None:
            may_send = may_send or (who is not None and who.complains)
            may_receive = may_receive or (whom is not None and whom.complains)
        if (sends.audited or receives.audited) and (trouble is not None or msg.type in (1, 4)):
            about = f" bus={_quoted(self.type or 'unknown')}" + _about(msg)
            operation = TYPES.get(msg.type, "invalid")
            mine, its = (
                _end(sender, who, receiver, label),
                _end(receiver, whom, sender, _label(who)),
            )
            if sends.audited:
                self._record(
                    may_send,
                    operation,
                    f'{about} mask="send" name={_quoted(destination)}{mine}{info}{peer_info}',
                )
            if receives.audited:
                swapped = _swapped(info, peer_info)
                self._record(
                    may_receive,
                    operation,
                    f'{about} name={_quoted(source)} mask="receive"{its}{swapped}',
                )
        if may_send and may_receive:
            silent = not sends.audited and not receives.audited
            self.keeps = silent and self.kernel.revision is not None and not activation
            return None
        if trouble is not None:
            return _failed(trouble)
        told = self.complaint(sender, receiver, msg, SEND_DENIED, 0, False)
        # dbus-daemon counts no rules here.
        return Mediated(ACCESS_DENIED, SEND_DENIED + "; " + told.partition("; ")[2])

    def _record(self, allowed: bool, operation: str, about: str) -> None:
        verdict = "ALLOWED" if allowed else "DENIED"
        self.audit.record(USER_AVC, f'apparmor="{verdict}" operation="dbus_{operation}" {about}')


def _failed(error: OSError) -> DBusError:
    return from_errno(error, "Failed to query AppArmor policy")


def _swapped(info: str, peer_info: str) -> str:
    """The same two words from the other side."""
    mine = peer_info.replace(" peer_info=", " info=", 1)
    return mine + info.replace(" info=", " peer_info=", 1)


def _quoted(value: bytes | str) -> str:
    return f'"{value}"' if isinstance(value, str) else f'"{text(value)}"'


def _label(who: Confinement | None) -> bytes | None:
    return who.label if who is not None else None


def _about(msg: Message) -> str:
    found = ""
    for key, value in (
        ("path", msg.path),
        ("interface", msg.interface),
        ("member", msg.member),
        ("error_name", msg.error_name),
    ):
        if value is not None:
            found += f" {key}={_quoted(value)}"
    return found


def _who(conn: Any, who: Confinement | None) -> str:
    """pid and label of one side."""
    pid = pid_of(conn)
    found = f" pid={pid}" if pid is not None else ""
    return found + (f" label={_quoted(who.label)}" if who is not None else "")


def _end(conn: Any, who: Confinement | None, peer: Any, label: bytes | None) -> str:
    """Those of one side, and then of the other."""
    pid = pid_of(peer)
    found = _who(conn, who) + (f" peer_pid={pid}" if pid is not None else "")
    return found + (f" peer_label={_quoted(label)}" if label is not None else "")
