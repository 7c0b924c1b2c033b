"""The two roles, and how they talk to who started them.

    LIBRARY probe                           prints the library's version
    LIBRARY service ADDRESS                 prints its unique name once it serves
    LIBRARY client ADDRESS DESTINATION      reads orders, a line each, and prints an answer to each

An order is `{"round": NAME, "count": N, "seconds": S}` as JSON: so many calls or signals, or for
so long if `count` is 0. The answer is the round's figures (`Round.figures`).

Invariant: figures are printed only for a round in which every reply and every signal was what
it should be; anything else ends the program with a traceback.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

PATH = "/org/example/Echo"
INTERFACE = "org.example.Echo"
BATCH = 100
"""Signals that the service sends for one call of Emit. So few that a socket takes them all: with
a full one, dbus-fast's service (5.2) gives up its connection, whoever the broker is."""
OUTSTANDING = 16
"""Calls under way at once in the round "calls16"."""


class Wrong(Exception):
    """An answer or a signal that is not what it should be."""


class Round:
    """When a round is over, and what it has seen.

    A client's calls: `while more(): text = next_text(); begun = now(); ...; answered(begun, text,
    reply)`. Its signals: `while size := batch(): ...`, and `signalled` for each."""

    now = staticmethod(time.perf_counter_ns)

    def __init__(self, count: int = 0, seconds: float = 0.0) -> None:
        self.count = count
        self.nanoseconds: list[int] = []
        self.done = 0
        self.asked = 0
        self.extra = 0
        """Messages through the broker that the figures do not count."""
        self.began = self.now()
        self._until = self.began + int(seconds * 1e9)

    def more(self) -> bool:
        """Whether to begin another call; if so, it is taken as begun."""
        if self.asked >= self.count if self.count else self.now() >= self._until:
            return False
        self.asked += 1
        return True

    def batch(self) -> int:
        """How many signals to ask for next, 0 for none; they are taken as asked for.

        Not before all that were asked for earlier have come."""
        if self.done != self.asked:
            raise Wrong(f"{self.done} signals in place of {self.asked}")
        if not self.count and self.now() >= self._until:
            return 0
        size = min(BATCH, self.count - self.asked) if self.count else BATCH
        self.asked += size
        self.extra += 2 if size else 0  # the call of Emit and its reply
        return size

    def complete(self) -> bool:
        """Whether all that was asked for is there."""
        return self.done == self.asked

    def next_text(self) -> str:
        """What to send now: never the same twice in a round."""
        return f"call number {self.asked:012d}"

    def answered(self, begun: int, sent: str, got: object) -> None:
        """A reply is there."""
        self.nanoseconds.append(self.now() - begun)
        if got != sent:
            raise Wrong(f"{got!r} came back for {sent!r}")
        self.done += 1

    def signalled(self, number: object) -> None:
        """A signal is there; they have to come in the order of their numbers, from 0."""
        if number != self.done:
            raise Wrong(f"signal {number!r} in place of {self.done}")
        self.done += 1

    def figures(self) -> dict[str, float]:
        """Rate a second, and microseconds of single calls."""
        seconds = (self.now() - self.began) / 1e9
        if self.done != self.asked:
            raise Wrong(f"{self.done} answers to {self.asked} calls")
        found = {"count": self.done, "rate": self.done / seconds, "seconds": seconds}
        times = sorted(self.nanoseconds)
        if times:
            found["p50_us"] = times[len(times) // 2] / 1e3
            found["p99_us"] = times[len(times) * 99 // 100] / 1e3
            found["messages"] = 2 * self.done
        else:
            found["messages"] = self.done + self.extra
        return found


class Client(Protocol):
    """A library's client: each method runs one round to its end."""

    def calls(self, round: Round) -> None:
        """One call after the other, as the library's users write it."""

    def calls16(self, round: Round) -> None:
        """OUTSTANDING calls under way until the round is over."""

    def signals(self, round: Round) -> None:
        """Has the service emit BATCH signals at a time (Emit), and counts them.

        The next batch is asked for when the reply to Emit and all its signals have come."""


class Library(Protocol):
    """What a module of a library brings."""

    def version(self) -> str:
        """Its version; ImportError or OSError if it is not there."""

    def serve(self, address: str, ready: Callable[[str], None]) -> None:
        """Exports Echo(s) -> s, Emit(u first, u count) and the signal Tick(u); calls `ready`
        with its unique name, and serves until it is killed."""

    Client: Callable[[str, str], Client]


ROUNDS = ("calls", "calls16", "signals")


def main(words: list[str]) -> None:
    """Runs the role that the command line asks for."""
    name, role, *rest = words
    library: Any = importlib.import_module("clients." + name)
    if role == "probe":
        _say(library.version())
    elif role == "service":
        library.serve(rest[0], _say)
    else:
        client = library.Client(*rest)
        _say("ready")
        for line in sys.stdin:
            order = json.loads(line)
            measured = Round(order["count"], order["seconds"])
            getattr(client, order["round"])(measured)
            _say(json.dumps(measured.figures()))


def _say(text: str) -> None:
    print(text, flush=True)
