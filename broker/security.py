# cython: infer_types=True
"""Guard: what security modules (SELinux, AppArmor) say, and what is kept of it.

Invariant: without a guard nothing here is entered. With one, a message costs a comparison where
every message between two subjects passes: such a yes is kept with the receiver for the sender's
subject, and is void when `generation` is another. A no is never kept, nor is a yes that somebody
wants a record of.

What a module is, the front knows (see `jitney.compat.security`); here it is asked:

`always(sender, receiver)`: whether every message passes, without a record, until `flush()`
`send(sender, receiver, msg, requested)`, `own(conn, name)`, `eavesdrop(conn)`: what is wrong with
it, as an exception that the front can make an error of, or None
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
from .message import Message

SUBJECTS = 65536
"""So many subjects have a number at once; then all get new ones."""


class Guard:
    """The modules of a bus, asked in order; the first that objects decides."""

    def __init__(self, modules: list[Any]) -> None:
        self.modules = modules
        self.generation = 1
        self.watching = False
        self.seen = 0
        self.numbers: dict[bytes, int] = {}
        self.last_number = 0
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
        self.generation = self.generation + 1 & 0xFFFFFFFF or 1
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
        if receiver is None:
            if self.keys[slot] == key:
                return True
        elif receiver.subject_keys[slot] == key:
            return True
        for module in self.modules:
            if not module.always(sender, receiver):
                return False
        if receiver is None:
            self.keys[slot] = key
        else:
            receiver.subject_keys[slot] = key
        return True

    def send(
        self, sender: Connection, receiver: Connection | None, msg: Message, requested: bool
    ) -> Any:
        """What is wrong with this message to `receiver`, who awaits it as a reply (`requested`), or
        None."""
        if self.watching:
            self.look()
        for module in self.modules:
            problem = module.send(sender, receiver, msg, requested)
            if problem is not None:
                return problem
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
