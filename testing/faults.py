"""Faults: what a test says is to go wrong.

Invariant: a fault does nothing until a message comes that its rule is about; it is in force until
it is removed, its block ends, it has happened `times` times, or the bus is gone. Of several that
fit, the one that was given first acts, and it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

Match = str | Mapping[str, str]
"""Which messages: a match rule, or its keys and values. No key at all means every message."""


class Side(Protocol):
    """How the bus is asked for something; see `host.Host.ask`."""

    def ask(self, verb: str, *given: Any) -> Any: ...


class Fault:
    """One fault in force; as a context manager it is removed at the end."""

    def __init__(self, side: Side, number: int, about: str) -> None:
        self.side = side
        self.number = number
        self.about = about

    @property
    def hits(self) -> int:
        """How often it happened."""
        number: int = self.side.ask("hits", self.number)
        return number

    def remove(self) -> None:
        """Ends it. What was delayed comes nevertheless."""
        self.side.ask("lift", self.number)

    def __enter__(self) -> Fault:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Fault {self.about}>"


class Faults:
    """What can go wrong on one bus. `times`: after so many messages it is over."""

    def __init__(self, side: Side) -> None:
        self.side = side

    def delay(self, match: Match, seconds: float, *, times: int | None = None) -> Fault:
        """Such messages come so much later; others of the same sender overtake them."""
        return self._inject("delay", match, times, seconds=float(seconds))

    def drop(self, match: Match, *, times: int | None = None) -> Fault:
        """Such messages get lost, and nobody is told."""
        return self._inject("drop", match, times)

    def deny(self, match: Match, *, times: int | None = None) -> Fault:
        """Such messages are refused as a policy refuses them: AccessDenied for their sender."""
        return self._inject("deny", match, times)

    def disconnect(self, match: Match, *, whom: str = "receiver", times: int | None = 1) -> Fault:
        """Such a message costs its receiver the connection, as if it had crashed over it, or its
        `sender`, before it passes."""
        if whom not in ("receiver", "sender"):
            raise ValueError(f"whom must be receiver or sender, not {whom!r}")
        return self._inject("disconnect", match, times, whom=whom)

    def reply_with_error(
        self,
        match: Match,
        error: str = "org.freedesktop.DBus.Error.Failed",
        text: str = "injected by the test",
        *,
        times: int | None = None,
    ) -> Fault:
        """Such calls do not arrive; their callers get this error, as if from whom they called."""
        return self._inject("reply_with_error", match, times, error=error, text=text)

    def fill_queue(self, peer: str) -> Fault:
        """The peer (a name) counts as one that does not read, whose queue is full: what is sent to
        it is refused with LimitsExceeded, signals and answers of the bus pass it by."""
        number = self.side.ask("inject", {"kind": "fill_queue", "peer": peer})
        return Fault(self.side, number, f"fill_queue {peer}")

    def _inject(self, kind: str, match: Match, times: int | None, **more: Any) -> Fault:
        if times is not None and times < 1:
            raise ValueError("times must be 1 or more")
        rule = match if isinstance(match, str) else rule_of(match)
        spec = {"kind": kind, "match": rule, "times": times, **more}
        return Fault(self.side, self.side.ask("inject", spec), f"{kind} {rule}")


def rule_of(keys: Mapping[str, str]) -> str:
    """A match rule with these keys."""
    return ",".join(f"{key}='" + value.replace("'", "'\\''") + "'" for key, value in keys.items())
