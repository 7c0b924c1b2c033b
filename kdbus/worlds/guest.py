"""What one world knows of the other's connections.

Invariant: what is told about a classic connection is what its socket said when it connected; about
one of kdbus, what was known at HELLO, and for a custom endpoint or one that speaks for another, of
whom it speaks for. What is not known is not told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jitney.broker.kdbus import constants as c
from jitney.broker.kdbus.metadata import KEEP, Caller, Creds, Facts


class GuestCreds(Creds):
    """A classic connection's; its groups are looked up when a policy asks for them."""

    def __init__(self, known: Any, uid: int, gid: int) -> None:
        super().__init__(uid, uid, gid, (), uid == 0)
        self.known = known

    def in_group(self, gid: int) -> bool:
        return self.known is not None and gid in (self.known.groups() or ())


class GuestCaller(Caller):
    """Who gives a guest's commands: always the one that connected."""

    def __init__(self, known: Any, creds: Creds, place: Callable[[Facts], None]) -> None:
        super().__init__(creds)
        self.known = known
        self.place = place

    def facts(self) -> Facts:
        if self._facts is None:
            facts = self._facts = Facts()
            known = self.known
            # As with bus-proxyd: a socket's ids are the effective ones, and all that is known.
            if self.creds.uid < KEEP:
                facts.uids = (KEEP, self.creds.uid, KEEP, KEEP)
                facts.gids = (KEEP, self.creds.egid, KEEP, KEEP)
            if known is not None:
                if known.pid is not None:
                    facts.pids = (known.pid, 0, 0)
                    self.place(facts)
                facts.groups = known.kernel_groups()
                facts.seclabel = known.label()
        return self._facts


class Guest:
    """A classic connection as the sender or receiver of kdbus's messages. `core` None: whoever
    will be started for a name."""

    fake = None
    description = None
    active = True
    ordinary = True
    flags = 0
    send_flags = c.ATTACH_ALL
    # The core limits how many replies a classic connection may wait for.
    requests = property(lambda self: 0, lambda self, value: None)

    def __init__(self, bus: Any, core: Any, place: Callable[[Facts], None]) -> None:
        self.bus = bus
        self.core = core
        self.id = core.id if core is not None else 0
        self.awaited: dict[int, list[Any]] = {}
        self.owed: dict[Any, None] = {}
        known = core.creds if core is not None else None
        uid = core.user.uid if core is not None else None
        gid = known.gid if known is not None and known.gid is not None else KEEP
        self.creds = GuestCreds(known, uid if uid is not None else KEEP, gid)
        self.caller = GuestCaller(known, self.creds, place)

    @property
    def user(self) -> Any:
        return self.core.user

    @property
    def facts(self) -> Facts:
        return self.caller.facts()

    @property
    def owned(self) -> dict[bytes, Any]:
        owned: dict[bytes, Any] = self.core.owned if self.core is not None else {}
        return owned

    def owned_flags(self) -> list[tuple[bytes, int]]:
        held = self.bus.names.held(self.core)
        return [(name, flags) for name, flags in held if not flags & c.NAME_IN_QUEUE]

    def may_talk(self, whom: Any) -> bool:
        """kdbus's policy, as for a connection of the default endpoint."""
        creds = self.creds
        if self.bus.is_owner(creds) or creds.euid == whom.creds.uid:
            return True
        return any(self.bus.policy.query(creds, name) >= c.TALK for name in whom.owned)


class Known:
    """What the classic front asks about a connection: see `compat.creds.Credentials`."""

    def __init__(self, conn: Any) -> None:
        facts: Facts = conn.facts
        fake = conn.fake is not None
        creds: Creds = conn.creds
        self.uid: int | None = None if fake else creds.euid
        self.gid: int | None = None if fake else creds.egid
        if fake and facts.uids is not None and facts.gids is not None:
            self.uid = _known(facts.uids[1], facts.uids[0])
            self.gid = _known(facts.gids[1], facts.gids[0])
        self.pid = facts.pids[0] if facts.pids is not None and facts.pids[0] else None
        self.described: str | None = None
        self._groups: Sequence[int] | None = facts.groups
        self._label = facts.seclabel

    def groups(self) -> list[int] | None:
        if self._groups is None or self.gid is None:
            return None
        return sorted({*self._groups, self.gid})

    kernel_groups = groups

    def label(self) -> bytes | None:
        return self._label or None

    def pidfd(self) -> int | None:
        # A number from HELLO, which may be another process's by now.
        return None

    def close(self) -> None:
        """There is no socket to close."""


def _known(*ids: int) -> int | None:
    return next((number for number in ids if number < KEEP), None)
