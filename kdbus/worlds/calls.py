"""Calls across: one awaited reply in two tables, and what failures are called on either side.

Invariant: a call that crossed has a `Reply` of kdbus and a slot of the core, under one serial. When
one of them ends the other does: the core's by the classic peer's answer, end or timeout, kdbus's by
its peer's answer, end, RECV_DROP or deadline.

Serials have 32 bits and cookies 64, so a call from kdbus whose cookie does not fit, or is awaited
already, crosses under another serial, and its answer comes back under the cookie.
"""

from __future__ import annotations

import errno
from typing import Any

from jitney.broker import errors as neutral
from jitney.broker.errors import Refused
from jitney.compat.errors import NAMES

TIMED_OUT = "Message did not receive a reply (timeout by message bus)"
DEAD = "Message recipient disconnected from message bus without replying"

SERIAL_MAX = 0xFFFF_FFFF

_FULL = (neutral.LIMITS, "The receiver has no room for the message")
_GONE = (neutral.NO_REPLY, DEAD)
_REASONS = {
    errno.ESRCH: (neutral.UNKNOWN_SERVICE, "The name is not owned by anybody who takes messages"),
    errno.ENXIO: (neutral.UNKNOWN_SERVICE, "The name is not owned by anybody who takes messages"),
    errno.EPERM: (neutral.ACCESS_DENIED, "The policy of the kdbus bus does not allow the message"),
    errno.ENOBUFS: _FULL,
    errno.EXFULL: _FULL,
    errno.EMFILE: _FULL,
    errno.EMLINK: _FULL,
    errno.E2BIG: (
        neutral.LIMITS,
        "The message has too many values to be translated for a client of kdbus",
    ),
    errno.EMSGSIZE: (neutral.LIMITS, "The message is too long for a client of kdbus"),
    errno.ECOMM: (
        neutral.NOT_SUPPORTED,
        # The missing space is dbus-daemon's.
        "Tried to send message with Unix file descriptorsto a client that doesn't support that.",
    ),
    errno.ECONNRESET: _GONE,
    errno.EPIPE: _GONE,
    errno.ETIMEDOUT: (neutral.NO_REPLY, TIMED_OUT),
}
_ERRNOS = {
    NAMES[neutral.NO_OWNER]: errno.ESRCH,
    NAMES[neutral.UNKNOWN_SERVICE]: errno.ESRCH,
    NAMES[neutral.ACCESS_DENIED]: errno.EPERM,
    NAMES[neutral.LIMITS]: errno.ENOBUFS,
    NAMES[neutral.NOT_SUPPORTED]: errno.ECOMM,
    NAMES[neutral.NO_REPLY]: errno.EPIPE,
    "org.freedesktop.DBus.Error.Timeout": errno.ETIMEDOUT,
    "org.freedesktop.DBus.Error.TimedOut": errno.ETIMEDOUT,
}


def refusal(number: int) -> Refused:
    """What a classic sender is told where kdbus's would get this errno."""
    code, text = _REASONS.get(number, (neutral.FAILED, errno.errorcode.get(number, str(number))))
    return Refused(code, text)


def errno_of(name: str, text: str) -> int:
    """The errno for an error that the bus itself answers with."""
    if text == TIMED_OUT:
        return errno.ETIMEDOUT
    return _ERRNOS.get(name, errno.EPIPE)


class Crossed:
    """The core's side of a `Reply`: `caller` waits for `callee` under `serial`.

    `callee` None: a service that is still to be started, for `name`; `kept`: the core knows."""

    def __init__(
        self, calls: Calls, reply: Any, caller: Any, callee: Any, serial: int, name: bytes | None
    ) -> None:
        self.calls = calls
        self.reply = reply
        self.caller = caller
        self.callee = callee
        self.serial = serial
        self.name = name
        self.kept = False
        reply.crossed = self

    def over(self) -> None:
        """Nobody waits any more; called when kdbus's entry ends."""
        self.calls.drop(self)
        if self.callee is not None:
            self.calls.core.replies.give_up(self.caller, self.callee, self.serial)

    def detach(self) -> None:
        """The call has left this crossing, and its reply goes on without."""
        self.reply.crossed = None
        self.over()

    def is_from(self, sender: Any) -> bool:
        return self.callee is sender

    def follow(self) -> None:
        """kdbus's entry went to another callee, as a name did: the core's goes after it."""
        now = self.reply.callee.core
        if now is not self.callee:
            replies = self.calls.core.replies
            replies.give_up(self.caller, self.callee, self.serial)
            replies.expect(self.caller, now, self.serial, 0.0, self.calls.core.accounts.moment)
            self.callee = now


class Calls:
    """Calls from kdbus, by caller and serial; those from the classic side are in their guest's
    `awaited`, where the cookie is the serial."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.of: dict[int, dict[int, Crossed]] = {}
        self.last = SERIAL_MAX

    def serial_for(self, caller: Any, cookie: int) -> int:
        """A serial that this caller does not wait for under."""
        used = self.of.get(caller.id, {})
        if 0 < cookie <= SERIAL_MAX and cookie not in used:
            return cookie
        while self.last in used or not self.last:
            self.last = (self.last - 1) & SERIAL_MAX
        found = self.last
        self.last = (self.last - 1) & SERIAL_MAX
        return found

    def add(self, crossed: Crossed) -> None:
        self.of.setdefault(crossed.caller.id, {})[crossed.serial] = crossed

    def drop(self, crossed: Crossed) -> None:
        used = self.of.get(crossed.caller.id)
        if used is not None and used.get(crossed.serial) is crossed:
            del used[crossed.serial]
            if not used:
                del self.of[crossed.caller.id]

    def find(self, caller: Any, serial: int) -> Crossed | None:
        return self.of.get(caller.id, {}).get(serial)

    def waiting_for(self, name: bytes) -> list[Crossed]:
        """Calls that wait for a service of this name to be started."""
        return [
            crossed
            for used in self.of.values()
            for crossed in used.values()
            if crossed.callee is None and crossed.kept and crossed.name == name
        ]
