"""Message: one that came, for as long as it is kept.

Invariant: its bytes are in the pool and do not change until `free()`, which gives the slice back
and closes the descriptors that it still owns, once; after that it has no payload any more. Who
forgets to free a message keeps its room in the pool.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from jitney.broker.kdbus import constants as c

from . import items
from .envelope import Envelope, InMemfd, Off
from .frames import FormatError
from .items import Metadata, Notification
from .memory import Mapped


class Message:
    """What somebody sent to us, or the bus's own `notification`.

    `with message:` frees it at the end. All numbers are as in kdbus.message(7)."""

    __slots__ = (
        "_done", "_fds", "_mapped", "_metadata", "_view", "_views", "cookie", "dst", "envelope",
        "flags", "incomplete", "lost", "payload_type", "priority", "src",
    )  # fmt: skip

    def __init__(
        self,
        view: memoryview,
        fds: list[int],
        done: Callable[[], None],
        flags: int = 0,
        lost: int = 0,
    ) -> None:
        self._view = view
        self._fds = fds
        self._done: Callable[[], None] | None = done
        self._views: list[memoryview] = []
        self._mapped: list[Mapped] = []
        self._metadata: Metadata | None = None
        self.envelope = envelope = Envelope.parse(view)
        self.src = envelope.src
        """Who sent it; 0 for the bus."""
        self.dst = envelope.dst
        self.flags = envelope.flags
        self.cookie = envelope.cookie
        self.priority = envelope.priority
        self.payload_type = envelope.payload_type
        self.incomplete = bool(flags & c.RECV_INCOMPLETE_FDS)
        """Whether descriptors of it could not be given to us."""
        self.lost = lost
        """How many broadcasts were lost before this one, for want of room."""

    def __repr__(self) -> str:
        return f"<message {self.cookie} from {self.src}>"

    # What it is

    @property
    def wants_reply(self) -> bool:
        return bool(self.flags & c.EXPECT_REPLY)

    @property
    def is_signal(self) -> bool:
        return bool(self.flags & c.SIGNAL)

    @property
    def reply_to(self) -> int:
        """The cookie of the call that this answers, or is about; 0 if it is none."""
        return 0 if self.wants_reply else self.envelope.timeout

    @property
    def deadline(self) -> int:
        """Until when a call waits, in nanoseconds of CLOCK_MONOTONIC; 0 if it does not."""
        return self.envelope.timeout if self.wants_reply else 0

    @property
    def name(self) -> str | None:
        """The name that it was sent to."""
        name = self.envelope.name
        return name.decode() if name is not None else None

    @property
    def metadata(self) -> Metadata:
        """What is told about the sender; what we did not ask for at HELLO is not there."""
        if self._metadata is None:
            self._metadata = found = Metadata()
            for kind, data in self.envelope.others:
                found.add(kind, data)
        return self._metadata

    @property
    def notification(self) -> Notification | None:
        """What the bus says, if it is the one that speaks."""
        if self.src == c.SRC_KERNEL:
            for kind, data in self.envelope.others:
                found = items.notification_of(kind, data)
                if found is not None:
                    return found
        return None

    # What is in it

    @property
    def parts(self) -> list[memoryview]:
        """The parts of the payload, without a copy: views of the pool, and of memfds that came.

        ValueError after `free()`; FormatError for a part whose memfd did not come."""
        if self._done is None:
            raise ValueError("the message was freed")
        if not self._views:
            for part in self.envelope.parts:
                self._views.append(self._part(part))
        return list(self._views)

    def _part(self, part: object) -> memoryview:
        if isinstance(part, Off):
            if part.offset == c.NONE64:
                return memoryview(bytes(part.size))
            view = self._view[part.offset : part.offset + part.size]
            if len(view) != part.size:
                raise FormatError("payload that is not in the message")
            return view
        if isinstance(part, InMemfd) and 0 <= part.fd < len(self._fds):
            mapped = Mapped(self._fds[part.fd], part.start, part.size)
            self._mapped.append(mapped)
            return mapped.view
        raise FormatError("payload whose memfd did not come")

    @property
    def payload(self) -> memoryview:
        """The payload in one piece: a view of the pool (or the memfd) where its parts follow each
        other there, as those of most messages do; else a copy. ValueError after `free()`."""
        envelope = self.envelope
        found = envelope.parts
        if len(found) > 1 and self._done is not None:
            first, last = found[0], found[-1]
            if isinstance(first, Off) and isinstance(last, Off) and self._in_a_row():
                return self._part(Off(last.offset + last.size - first.offset, first.offset))
        parts = self.parts
        if len(parts) == 1:
            return parts[0]
        return memoryview(b"".join(parts))

    def _in_a_row(self) -> bool:
        at = -1
        for part in self.envelope.parts:
            if not isinstance(part, Off) or part.offset == c.NONE64 or at not in (-1, part.offset):
                return False
            at = part.offset + part.size
        return True

    @property
    def fds(self) -> list[int]:
        """The descriptors that were sent along, -1 for one that did not come. They are closed by
        `free()`; os.dup() what is to stay."""
        return [self._fds[at] if 0 <= at < len(self._fds) else -1 for at in self.envelope.fds]

    def take_fds(self) -> list[int]:
        """The same, and they are the caller's from now on."""
        taken = self.fds
        for at in self.envelope.fds:
            if 0 <= at < len(self._fds):
                self._fds[at] = -1
        return taken

    # The end

    def free(self) -> None:
        """Gives the room in the pool back. Nothing happens the second time."""
        done, self._done = self._done, None
        if done is None:
            return
        for view in self._views:
            view.release()
        for mapped in self._mapped:
            mapped.close()
        self._views.clear()
        self._mapped.clear()
        self._view.release()
        for fd in self._fds:
            if fd >= 0:
                os.close(fd)
        self._fds.clear()
        done()

    def __enter__(self) -> Message:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()
