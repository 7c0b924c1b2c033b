"""Journal: what was sent on a test's bus, in order, and assertions about it.

Invariant: an entry is a message as it was sent, written down before anything became of it; entries
do not change, and what a helper says it found is in the journal. The bus's own messages are there
as well, from org.freedesktop.DBus.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jitney.broker.message import Message
from jitney.compat import wire

from .faults import Side

TYPES = {1: "method_call", 2: "method_return", 3: "error", 4: "signal"}
SHOWN = 30
"""Lines of the journal that a failed assertion shows."""
_PAUSE = 0.005


@dataclass(frozen=True)
class Entry:
    """One message. Absent fields are "", absent numbers 0.

    `sender` is its unique name, `sender_names` those that it owned; `destination` is what the
    message said, `receiver` the unique name of who had that name then. `verdict` is "passed" if no
    fault was about it, else the fault's name; what the policy refuses has passed here, and the
    bus's error follows."""

    number: int
    time: float
    type: str
    sender: str
    sender_names: tuple[str, ...]
    destination: str
    receiver: str
    path: str
    interface: str
    member: str
    error_name: str
    serial: int
    reply_serial: int
    signature: str
    no_reply: bool
    verdict: str
    wire: bytes

    @property
    def args(self) -> list[Any]:
        """The values of the body; a variant is a pair of its signature and its value."""
        msg = Message()
        msg.load(self.wire)
        return wire.unmarshal(msg.signature, msg.body(), msg.big_endian)

    def __str__(self) -> str:
        what = ".".join(part for part in (self.interface, self.member) if part)
        if self.reply_serial:
            what = f"{self.error_name or 'reply'} to {self.reply_serial}"
        to = self.destination or "everybody"
        if self.receiver not in ("", self.destination):
            to += f" ({self.receiver})"
        verdict = "" if self.verdict == "passed" else f"  [{self.verdict}]"
        path = f"{self.path} " if self.path else ""
        return f"{self.sender or '?'} -> {to}  {self.type} {self.serial}  {path}{what}{verdict}"


class Journal:
    """The journal of one bus. Conditions are fields of `Entry` and their values; `sender` and
    `destination` may be a unique name or any that its owner had, `args` the whole body, and
    `where` is asked about entries that fit the rest."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.kept: list[Entry] = []
        self.seen = 0

    @property
    def entries(self) -> list[Entry]:
        """All there is by now."""
        for line in self.side.ask("lines", self.seen):
            self.kept.append(_entry(*line))
            self.seen = line[0]
        return self.kept

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self.entries))

    def __len__(self) -> int:
        return len(self.entries)

    def clear(self) -> None:
        """Forgets what was sent so far."""
        _ = self.entries
        self.kept.clear()

    def text(self, last: int | None = None) -> str:
        """As lines to read; `last`: so many at most."""
        entries = self.entries
        shown = entries if last is None else entries[-last:]
        return "\n".join(str(entry) for entry in shown)

    # Looking

    def find(self, where: Callable[[Entry], bool] | None = None, **fields: Any) -> list[Entry]:
        """The messages that these conditions hold for."""
        return [entry for entry in self.entries if _holds(entry, fields, where)]

    def calls(self, **fields: Any) -> list[Entry]:
        return self.find(type="method_call", **fields)

    def signals(self, **fields: Any) -> list[Entry]:
        return self.find(type="signal", **fields)

    def reply_to(self, call: Entry) -> Entry | None:
        """The reply or error that a call got, or None so far."""
        for entry in self.entries:
            if (
                entry.reply_serial == call.serial
                and entry.number > call.number
                and entry.destination == call.sender
                and entry.type != "signal"
            ):
                return entry
        return None

    # Asserting

    def assert_sent(self, count: int | None = None, **conditions: Any) -> Entry:
        """Fails unless such a message was sent, or `count` of them; the first one."""
        found = self.find(**conditions)
        if count is None:
            assert found, self._story(f"no message was sent with {_words(conditions)}")
        else:
            assert len(found) == count, self._story(
                f"{len(found)} messages, not {count}, were sent with {_words(conditions)}"
            )
        return found[0] if found else _NOTHING

    def assert_not_sent(self, **conditions: Any) -> None:
        """Fails if such a message was sent."""
        found = self.find(**conditions)
        assert not found, self._story(f"a message was sent with {_words(conditions)}: {found[0]}")

    def assert_order(self, *conditions: dict[str, Any]) -> list[Entry]:
        """Fails unless such messages were sent, in this order, whatever was sent in between."""
        found: list[Entry] = []
        rest = iter(self.entries)
        for wanted in conditions:
            given = dict(wanted)
            where = given.pop("where", None)
            entry = next((entry for entry in rest if _holds(entry, given, where)), None)
            assert entry is not None, self._story(
                f"no message with {_words(wanted)} after {found[-1] if found else 'the start'}"
            )
            found.append(entry)
        return found

    # Waiting

    def wait_for(self, timeout: float = 5.0, **conditions: Any) -> Entry:
        """Waits, blocking, until such a message has been sent; the first one."""
        from .host import Host

        if isinstance(self.side, Host):
            raise RuntimeError("the bus runs on this very loop: await arrival() instead")
        deadline = time.monotonic() + timeout
        while not (found := self.find(**conditions)):
            self._still_time(deadline, conditions)
            time.sleep(_PAUSE)
        return found[0]

    async def arrival(self, timeout: float = 5.0, **conditions: Any) -> Entry:
        """Waits until such a message has been sent; the first one."""
        deadline = time.monotonic() + timeout
        while not (found := self.find(**conditions)):
            self._still_time(deadline, conditions)
            await asyncio.sleep(_PAUSE)
        return found[0]

    def _still_time(self, deadline: float, conditions: dict[str, Any]) -> None:
        if time.monotonic() > deadline:
            raise AssertionError(self._story(f"no message came with {_words(conditions)}"))

    def _story(self, what: str) -> str:
        if not self.entries:
            return f"{what}; the journal is empty"
        return f"{what}; the journal ends with\n{self.text(SHOWN)}"


def _entry(
    number: int,
    when: float,
    sender: str,
    names: tuple[str, ...],
    receiver: str,
    verdict: str,
    data: bytes,
) -> Entry:
    msg = Message()
    msg.load(data)
    return Entry(
        number,
        when,
        TYPES.get(msg.type, str(msg.type)),
        sender,
        names,
        _text(msg.destination),
        receiver,
        _text(msg.path),
        _text(msg.interface),
        _text(msg.member),
        _text(msg.error_name),
        msg.serial,
        msg.reply_serial,
        msg.signature.decode(),
        bool(msg.flags & wire.NO_REPLY),
        verdict,
        data,
    )


def _text(value: bytes | None) -> str:
    return value.decode() if value is not None else ""


_NOTHING = Entry(0, 0.0, "", "", (), "", "", "", "", "", "", 0, 0, "", False, "", b"")


def _holds(entry: Entry, fields: dict[str, Any], where: Callable[[Entry], bool] | None) -> bool:
    for key, wanted in fields.items():
        if key == "sender":
            if wanted != entry.sender and wanted not in entry.sender_names:
                return False
        elif key == "destination":
            if wanted not in (entry.destination, entry.receiver):
                return False
        elif key == "args":
            if list(wanted) != entry.args:
                return False
        elif getattr(entry, key) != wanted:
            return False
    return where is None or where(entry)


def _words(conditions: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in conditions.items()) or "anything in it"
