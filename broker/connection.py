# cython: infer_types=True
"""Connection: one participant of the bus, as the core sees it.

Invariant: `id` is given once, counts up and is never used again; 0 means "not yet said
Hello" (kdbus: HELLO gives the id, and the unique name is derived from it). A connection is
in exactly one state; only ACTIVE ones send, receive broadcasts and own names.
"""

from __future__ import annotations

from typing import Any

from .accounting import Accounts, User
from .mem import Map64
from .queue import Queue

NEW, ACTIVE, MONITOR, CLOSED = 0, 1, 2, 3


class Connection:
    """`transport` and `creds` belong to the front and mean nothing to the core.

    `names`: every name it owns or is queued for, oldest first; `owned`: those it is primary
    owner of; `rules`: its match rules, oldest first, kept in `rule_table` by what they say;
    `calls`: replies it waits for; `owes`: replies it is to give; `referers`: rules of others that
    name it; `send_open` and the like: see `policy.ClientPolicy`."""

    def __init__(self, accounts: Accounts, user: User) -> None:
        self.id = 0
        self.state = NEW
        self.unique_name = b""
        self.field_le = b""
        self.field_be = b""
        self.user = user
        self.queue = Queue(accounts)
        self.policy: Any = None
        self.accepts_fds = False
        self.send_open = False
        self.receive_open = False
        self.send_types = 0
        self.receive_types = 0
        self.names: dict[bytes, Any] = {}
        self.owned: dict[bytes, Any] = {}
        self.rule_table: Map64 | None = None
        self.n_rules = 0
        self.referers: set[Any] | None = None
        self.calls: Map64 | None = None
        self.n_calls = 0
        self.owes: Any | None = None
        self.stamp = 0
        self.dropped = 0
        self.peak_size = 0
        self.peak_fds = 0
        self.peak_rules = 0
        self.peak_names = 0
        self.transport: Any = None
        self.creds: Any = None

    @property
    def registered(self) -> bool:
        return self.id != 0

    @property
    def monitor(self) -> bool:
        return self.state == MONITOR

    @property
    def queued(self) -> dict[bytes, Any]:
        """Names it waits for."""
        return {text: name for text, name in self.names.items() if text not in self.owned}

    @property
    def rules(self) -> list[Any]:
        found = []
        if self.rule_table is not None:
            for latest in self.rule_table.values():
                rule = latest
                while rule is not None:
                    found.append(rule)
                    rule = rule.earlier
        found.sort(key=lambda rule: rule.number)
        return found

    @property
    def label(self) -> str:
        """How logs call it."""
        return self.unique_name.decode() or "(inactive)"

    def __repr__(self) -> str:
        return f"<Connection {self.label} state={self.state} uid={self.user.uid}>"
