# cython: infer_types=True
"""Guard: what security modules (SELinux, AppArmor) say, and what is kept of it.

Invariant: without a guard nothing here is entered. With one, a message costs a comparison where
every message between two subjects passes: that is kept with the receiver for the sender's subject.
Elsewhere it costs a look at the messages that have passed. Both are void when `generation` is
another. That a message may not pass is never kept, nor that one may which somebody wants a record
of.

What a module is, the front knows (see `jitney.compat.security`); here it is asked:

`always(sender, receiver)`: whether every message passes, without a record, until `flush()`
`send(sender, receiver, msg, requested)`, `own(conn, name)`, `eavesdrop(conn)`: what is wrong with
it, as an exception that the front can make an error of, or None; after a `send()` `keeps` says
whether the same would pass again, without a record, until `flush()`: from this sender to any
receiver of the same subject, with the same type, destination, path, interface and member
`flushed()`: what it keeps itself is void, too

A receiver of None is the bus itself. A subject is what the kernel calls a peer's process (its
label); the core compares subjects and knows nothing else of them.
"""

from __future__ import annotations

from typing import Any

try:
    import cython
except ImportError:
    from ._cython import cython

from .connection import KEPT, Connection
from .mem import Map64
from .message import Message

if not cython.compiled:
    from .mem import hash64, mix, same

SUBJECTS = 65536
"""So many subjects have a number at once; then all get new ones."""


CASES = 4096
"""So many messages that have passed are remembered at once."""
LONGEST = 1024
"""Bytes of a path; a message with a longer one is asked about each time, for a path has no limit of
its own."""

_SHUT = 1 << 63


class Case:
    """A message that passed: `sender` by id, `target` by its subject's number (0: the bus). `next`
    is another one that fell to the same place."""

    def __init__(self, sender: Connection, target: int, msg: Message, requested: bool) -> None:
        self.sender = sender.id
        self.target = target
        self.type = msg.type
        self.requested = requested
        self.destination = msg.destination
        self.path = msg.path
        self.interface = msg.interface
        self.member = msg.member
        self.next: Case | None = None

    def fits(self, sender: Connection, target: int, msg: Message, requested: bool) -> bool:
        p = msg.p
        return (
            self.sender == sender.id
            and self.target == target
            and self.type == msg.type
            and self.requested == requested
            and is_field(p, msg.dest_off, msg.dest_len, self.destination)
            and is_field(p, msg.path_off, msg.path_len, self.path)
            and is_field(p, msg.iface_off, msg.iface_len, self.interface)
            and is_field(p, msg.member_off, msg.member_len, self.member)
        )


def is_field(p, off: int, n: int, text: bytes | None) -> bool:
    """Whether a header field says so; n < 0: there is none."""
    if n < 0 or text is None:
        return n < 0 and text is None
    return same(p, off, n, text)


class Guard:
    """The modules of a bus, asked in order; the first that objects decides."""

    def __init__(self, modules: list[Any]) -> None:
        self.modules = modules
        self.generation = 1
        self.watching = False
        self.seen = 0
        self.numbers: dict[bytes, int] = {}
        self.last_number = 0
        self.cases = Map64()
        self.n_cases = 0
        if not cython.compiled:
            self.keys = [0] * KEPT

    def watch(self, memory: Any) -> None:
        """Four bytes, mapped from the kernel, that change with the policy: looked at each time, so
        that what is kept is never older than the policy."""
        self.held = memory
        self.watching = True
        self.look()

    def unwatch(self) -> None:
        """Before the memory goes."""
        self.watching = False
        self.held = None

    def enter(self, conn: Connection, subject: bytes | None) -> None:
        """Says whose messages this connection's are; None: nobody knows."""
        conn.subject = subject
        if subject is None:
            conn.subject_number = 0
            return
        number = self.numbers.get(subject, 0)
        if number == 0:
            if len(self.numbers) >= SUBJECTS:
                self.numbers.clear()
            self.last_number += 1
            number = self.last_number
            self.numbers[subject] = number
        conn.subject_number = number

    def look(self) -> None:
        held = self.held
        now = held[0] | held[1] << 8 | held[2] << 16 | held[3] << 24
        if now != self.seen:
            self.seen = now
            self.flush()

    def flush(self) -> None:
        """Forgets all that was kept: the policy is another."""
        # With what is shut in the highest bit of a key.
        self.generation = self.generation + 1 & 0x7FFFFFFF or 1
        self.cases = Map64()
        self.n_cases = 0
        for module in self.modules:
            module.flushed()

    def open_to(self, sender: Connection, receiver: Connection | None) -> bool:
        """Whether every message from one to the other passes; if not, `send()` knows of each."""
        if self.watching:
            self.look()
        number = sender.subject_number
        if number == 0:
            return False
        high = self.generation
        key = high << 32 | number
        slot = number & 3
        have = self.keys[slot] if receiver is None else receiver.subject_keys[slot]
        if have == key:
            return True
        if have == key | _SHUT:
            return False
        for module in self.modules:
            if not module.always(sender, receiver):
                key |= _SHUT
                break
        if receiver is None:
            self.keys[slot] = key
        else:
            receiver.subject_keys[slot] = key
        return not key & _SHUT

    def place(self, sender: Connection, target: int, msg: Message) -> int:
        """Where cases like this one are."""
        p = msg.p
        key = mix(sender.id, target)
        if msg.dest_len > 0:
            key = mix(key, hash64(p, msg.dest_off, msg.dest_len))
        if msg.path_len > 0:
            key = mix(key, hash64(p, msg.path_off, msg.path_len))
        if msg.iface_len > 0:
            key = mix(key, hash64(p, msg.iface_off, msg.iface_len))
        if msg.member_len > 0:
            key = mix(key, hash64(p, msg.member_off, msg.member_len))
        return key

    def known(
        self, sender: Connection, receiver: Connection | None, msg: Message, requested: bool
    ) -> bool:
        """Whether a message like this one has passed."""
        target = receiver.subject_number if receiver is not None else 0
        case = self.cases.get(self.place(sender, target, msg))
        while case is not None:
            if case.fits(sender, target, msg, requested):
                return True
            case = case.next
        return False

    def keep(
        self, sender: Connection, receiver: Connection | None, msg: Message, requested: bool
    ) -> None:
        if sender.id == 0 or sender.subject_number == 0 or msg.error_len >= 0:
            return
        if msg.path_len > LONGEST:
            return
        target = 0
        if receiver is not None:
            target = receiver.subject_number
            if target == 0:
                return
        if self.n_cases >= CASES:
            self.cases = Map64()
            self.n_cases = 0
        key = self.place(sender, target, msg)
        case = Case(sender, target, msg, requested)
        case.next = self.cases.get(key)
        self.cases.put(key, case)
        self.n_cases += 1

    def send(
        self, sender: Connection, receiver: Connection | None, msg: Message, requested: bool
    ) -> Any:
        """What is wrong with this message to `receiver`, who awaits it as a reply (`requested`), or
        None."""
        if self.watching:
            self.look()
        if self.n_cases and self.known(sender, receiver, msg, requested):
            return None
        keeps = True
        for module in self.modules:
            problem = module.send(sender, receiver, msg, requested)
            if problem is not None:
                return problem
            keeps = keeps and module.keeps
        if keeps:
            self.keep(sender, receiver, msg, requested)
        return None

    def passes(
        self, bus: Any, sender: Connection, receiver: Connection | None, msg: Message, asked: bool
    ) -> bool:
        """Whether the message passes; else its sender is told. `asked`: it is an awaited reply."""
        if self.open_to(sender, receiver):
            return True
        problem = self.send(sender, receiver, msg, asked)
        if problem is None:
            return True
        bus.n_denied += 1
        bus.front.withheld(sender, receiver, msg, problem)
        return False

    def hears(
        self, bus: Any, receiver: Connection, msg: Message, sender: Connection | None
    ) -> bool:
        """Whether the receiver may have this message, which is not addressed to it. What the bus
        itself says is for all."""
        if sender is None or self.open_to(sender, receiver):
            return True
        problem = self.send(sender, receiver, msg, False)
        if problem is None:
            return True
        bus.front.capture_withheld(sender, receiver, msg, problem)
        return False

    def check_own(self, conn: Connection, name: bytes) -> None:
        """Raises what is wrong with the connection's owning this name."""
        if self.watching:
            self.look()
        for module in self.modules:
            problem = module.own(conn, name)
            if problem is not None:
                raise problem

    def check_eavesdrop(self, conn: Connection) -> None:
        """Raises what is wrong with the connection's hearing what is others'."""
        if self.watching:
            self.look()
        for module in self.modules:
            problem = module.eavesdrop(conn)
            if problem is not None:
                raise problem
