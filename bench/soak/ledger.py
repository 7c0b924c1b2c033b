"""The books: what was sent to whom, and what became of it.

Invariant: a unicast is open from `sent()` until it has arrived or its sender was told otherwise;
both together, either of them twice, or neither is Wrong. What is settled is forgotten, so that the
books do not grow. Nothing here knows sockets.

A stream is all that one connection sends to one destination as it writes it, a unique or a
well-known name; its messages are numbered from 1. Broadcasts are numbered by sender.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

Stream = tuple[str, str]
REFUSED, UNKNOWN = "refused", "unknown"
"""What an error says of its call: it was not delivered; or whoever was to answer has gone."""


class Wrong(Exception):
    """The bus did what it promises not to do."""


class Subscriber:
    """What one connection has heard of the broadcasts. `keeps_up`: it has missed none so far."""

    def __init__(self, keeps_up: bool, cursor: int, floor: dict[str, int]) -> None:
        self.keeps_up = keeps_up
        self.cursor = cursor
        self.begun = False
        self.floor = floor  # by sender: what was sent before it had been heard to be subscribed
        self.last: dict[str, int] = {}
        self.heard = 0
        self.dropped = 0
        self.doubtful = 0
        self.since = 0  # broadcasts of all when it asked, and when it had the answer
        self.surely = 0


class Ledger:
    """All that is under way on one bus."""

    def __init__(self) -> None:
        self.numbers: Counter[Stream] = Counter()
        self.open: dict[Stream, set[int]] = {}
        self.last: dict[tuple[str, str, str], int] = {}
        self.calls: dict[tuple[str, int], tuple[Stream, int]] = {}
        self.silent: dict[tuple[str, int], tuple[Stream, int]] = {}
        self.counts: Counter[str] = Counter()
        # Broadcasts in the order of the bus, from number `base` on.
        self.order: list[tuple[str, int]] = []
        self.place: dict[tuple[str, int], int] = {}
        self.base = 0
        self.said: Counter[str] = Counter()
        self.known: Counter[str] = Counter()  # of these somebody has heard
        self.total = 0
        self.doubtful = 0  # said by who has gone since, perhaps before the bus had read it
        self.settled = 0  # of these, what is over
        self.subscribers: dict[str, Subscriber] = {}

    # Unicasts

    def number(self, sender: str, dest: str) -> int:
        """The number of the stream's next message."""
        return self.numbers[sender, dest] + 1

    def sent(self, sender: str, dest: str, serial: int, wants_reply: bool) -> None:
        stream = (sender, dest)
        self.numbers[stream] += 1
        n = self.numbers[stream]
        self.open.setdefault(stream, set()).add(n)
        (self.calls if wants_reply else self.silent)[sender, serial] = (stream, n)
        self.counts["calls" if wants_reply else "unicasts without a reply"] += 1

    def arrived(self, receiver: str, sender: str, dest: str, n: int) -> None:
        at = (sender, dest, receiver)
        if n <= self.last.get(at, 0):
            raise Wrong(f"{receiver} got {n} from {sender} to {dest} after {self.last[at]}")
        self.last[at] = n
        waiting = self.open.get((sender, dest))
        if waiting is None or n not in waiting:
            raise Wrong(
                f"{receiver} got {n} from {sender} to {dest}, which was refused or is twice"
            )
        waiting.discard(n)
        self.counts["delivered"] += 1

    def returned(self, caller: str, serial: int) -> None:
        """The answer of whoever was called."""
        found = self.calls.pop((caller, serial), None)
        if found is None:
            raise Wrong(f"{caller} got an answer to {serial}, which it does not wait for")
        stream, n = found
        if n in self.open[stream]:
            raise Wrong(f"{caller} got an answer to {n} of {stream}, which nobody has got")
        self.counts["answered"] += 1

    def failed(self, caller: str, serial: int, what: str) -> None:
        """The bus's own answer."""
        found = self.calls.pop((caller, serial), None) or self.silent.pop((caller, serial), None)
        if found is None:
            raise Wrong(f"{caller} got an error for {serial}, of which it knows nothing")
        stream, n = found
        waiting = self.open[stream]
        if what == REFUSED and n not in waiting:
            raise Wrong(f"{caller} was told that {n} of {stream} was refused, but it had arrived")
        waiting.discard(n)

    # Broadcasts

    def subscribing(self, name: str, keeps_up: bool) -> None:
        """The connection has asked for all broadcasts."""
        made = Subscriber(keeps_up, self.base + len(self.order), {})
        # What was said before may be heard, too, unless somebody had heard it by then.
        made.since = self.total - (self.said.total() - self.known.total())
        made.since -= self.doubtful - self.settled
        made.doubtful = self.doubtful
        self.subscribers[name] = made

    def subscribed(self, name: str) -> None:
        """It has got the answer: from now on it hears all."""
        found = self.subscribers[name]
        found.floor = dict(self.said)
        found.surely = self.total

    def broadcast(self, sender: str) -> int:
        """One more; its number."""
        self.said[sender] += 1
        self.total += 1
        self.counts["broadcasts"] += 1
        return self.said[sender]

    def heard(self, name: str, sender: str, n: int) -> None:
        who = self.subscribers.get(name)
        if who is None:
            raise Wrong(f"{name} has heard {n} of {sender} and has not asked for it")
        last = who.last.get(sender)
        who.last[sender] = n
        who.heard += 1
        self.known[sender] = max(n, self.known[sender])
        self.counts["broadcasts heard"] += 1
        if last is not None and n <= last:
            raise Wrong(f"{name} has heard {n} of {sender} after {last}")
        if not who.keeps_up:
            return
        place = self.place.get((sender, n))
        end = self.base + len(self.order)
        if place is not None and place < who.cursor:
            raise Wrong(f"{name} has heard {n} of {sender} in an order of its own")
        gap = n > (last if last is not None else who.floor.get(sender, 0)) + 1
        if gap or (who.begun and who.cursor != (end if place is None else place)):
            # The bus must say at the next audit that it has dropped as many.
            who.keeps_up = False
            self.counts["readers that fell behind"] += 1
            return
        if place is None:
            if not who.begun and any(w.begun and w.keeps_up for w in self.subscribers.values()):
                return  # those who were there before may have more to read that came before this
            place = end
            self.place[sender, n] = place
            self.order.append((sender, n))
        who.begun = True
        who.cursor = place + 1
        if len(self.order) > 20000:
            self._trim()

    def missed(self, name: str, dropped: int) -> None:
        """The bus says that it has dropped so many for this subscriber, who has read all else."""
        who = self.subscribers[name]
        least = self.total - who.surely - (self.doubtful - who.doubtful)
        most = self.total - who.since
        if not least <= who.heard + dropped <= most:
            raise Wrong(
                f"{name} has heard {who.heard} broadcasts of {least} to {most}, and the bus says "
                f"that it dropped {dropped}"
            )
        self.counts["broadcasts dropped and counted"] += dropped - who.dropped
        who.dropped = dropped

    def _trim(self) -> None:
        """Forgets what all have heard."""
        least = min((who.cursor for who in self.subscribers.values() if who.keeps_up), default=None)
        gone = len(self.order) if least is None else least - self.base
        for entry in self.order[:gone]:
            del self.place[entry]
        del self.order[:gone]
        self.base += gone

    # Comings and goings

    def gone(self, name: str) -> None:
        """The connection has ended: nobody will tell it anything, nor deliver to it for ever."""
        self.subscribers.pop(name, None)
        self.doubtful += self.said[name] - self.known[name]
        for table in (self.calls, self.silent):
            for key in [key for key in table if key[0] == name]:
                del table[key]

    def unsettled(self, alive: Iterable[str]) -> list[str]:
        """What should have arrived, or been told, by now. Call when nothing is under way."""
        living = set(alive)
        found = [f"{key} waits for an answer" for key in self.calls]
        for stream, waiting in self.open.items():
            # Calls to who has gone are answered by the bus; of the rest nobody hears.
            with_receiver = stream[1].startswith(":") and stream[1] not in living
            if waiting and stream[0] in living and not with_receiver:
                found.append(f"{sorted(waiting)[:5]} of {stream} never arrived")
        return found

    def lagging(self) -> bool:
        """Whether somebody who keeps up has not heard what others have."""
        end = self.base + len(self.order)
        return any(w.keeps_up and w.begun and w.cursor != end for w in self.subscribers.values())

    def prune(self, alive: Iterable[str]) -> None:
        """Forgets, when nothing is under way, who has gone and what is settled."""
        living = set(alive)
        self.silent.clear()
        self.settled = self.doubtful
        for stream, waiting in self.open.items():
            if stream[0] in living:
                self.counts["lost with their receiver"] += len(waiting)
                waiting.clear()
        self.open = {key: left for key, left in self.open.items() if key[0] in living}
        self.numbers = Counter({k: n for k, n in self.numbers.items() if k[0] in living})
        self.last = {
            key: n for key, n in self.last.items() if key[0] in living and key[2] in living
        }
        for who in self.subscribers.values():
            if who.keeps_up and not who.begun:
                who.begun, who.cursor = True, self.base + len(self.order)
        self.said = Counter({name: n for name, n in self.said.items() if name in living})
        self.known = Counter({name: n for name, n in self.known.items() if name in living})
        self._trim()
