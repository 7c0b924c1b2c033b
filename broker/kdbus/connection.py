"""Connection: one participant of a bus, from HELLO to BYEBYE.

Invariant: `id` is given once and never again; a connection that is not `active` is on no list of
its bus, holds no name, waits for no answer and owes none, and no entry is in its queue. What others
have in its pool is charged to them, one user's share never more than a third of what is left.
"""

from __future__ import annotations

import errno
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.errors import Refused

from . import constants as c
from .errors import KdbusError
from .match import Matches, Rule
from .metadata import Caller, Creds, Facts
from .pool import PlainMemory, Pool
from .queue import Entry, Queue
from .validity import attach_flags, is_name

_ACCEPT_FD = c.HELLO_ACCEPT_FD
_INCOMPLETE = c.RECV_INCOMPLETE_FDS
_MSGS_MAX = c.MSGS_MAX
_FDS_MAX = c.FDS_PER_USER
# What a message without descriptors has of them; never changed.
_NO_FDS: list[Any] = []


class Transport:
    """What a front gives a connection: its pool's memory, and how it hears of news.

    `installs`: it can put descriptors into the receiving process."""

    installs = True

    def memory(self, size: int) -> Any:
        return PlainMemory(size)

    def wake(self) -> None:
        """There is something new to receive, or the end."""

    def stir(self) -> None:
        """wake() for the bus itself, which a front may answer without a detour."""
        self.wake()


class Greeting:
    """What HELLO asks for. `rules` are policy entries; `fake` facts take the place of the true."""

    def __init__(self, flags: int = 0, pool_size: int = 1 << 16) -> None:
        self.flags = flags
        self.pool_size = pool_size
        self.attach_send = 0
        self.attach_recv = 0
        self.name: bytes | None = None
        self.description: bytes | None = None
        self.fake: Facts | None = None
        self.rules: list[tuple[bytes, list[tuple[int, int, int]]]] = []


@cython.freelist(16)
@cython.cclass
class Received:
    """Where a message is. `fds`, for fronts that can install them: (handle, the place in the pool
    for the number that it gets); the front drops each handle when it is done with it."""

    offset: int
    size: int
    return_flags: int
    fds: list[tuple[Any, int]]


def new_received(offset: int, size: int, return_flags: int, fds: Any) -> Received:
    made = Received.__new__(Received)
    made.offset = offset
    made.size = size
    made.return_flags = return_flags
    made.fds = fds
    return made


@cython.freelist(64)
@cython.cclass
class Quota:
    """What one user has in a connection's pool."""

    __slots__ = ("fds", "memory", "messages")

    memory: int
    messages: int
    fds: int

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quota) and (self.memory, self.messages, self.fds) == (
            other.memory,
            other.messages,
            other.fds,
        )


def new_quota() -> Quota:
    made = Quota.__new__(Quota)
    made.memory = 0
    made.messages = 0
    made.fds = 0
    return made


class Connection:
    """See `hello()`. `creds` are those of who opened it, `facts` what was known at HELLO."""

    def __init__(
        self, endpoint: Any, caller: Caller, opener: Creds, greeting: Greeting, transport: Transport
    ) -> None:
        bus = endpoint.bus
        endpoint.need_active()
        flags = greeting.flags
        self.monitor = bool(flags & c.HELLO_MONITOR)
        self.activator = bool(flags & c.HELLO_ACTIVATOR)
        self.holder = bool(flags & c.HELLO_POLICY_HOLDER)
        special = self.monitor + self.activator + self.holder
        named = self.activator or self.holder
        self.ordinary = special == 0
        self.privileged = not endpoint.custom and opener.privileged
        self.owner = endpoint.is_owner(opener)
        self.confined = endpoint.custom
        name = greeting.name
        if greeting.pool_size == 0 or greeting.pool_size % c.PAGE:
            raise KdbusError(errno.EINVAL)
        if special > 1 or named != (name is not None):
            raise KdbusError(errno.EINVAL)
        if name is not None and not is_name(name, True):
            raise KdbusError(errno.EINVAL)
        if self.monitor and endpoint.custom:
            raise KdbusError(errno.EOPNOTSUPP)
        if bus.foreign is not None and not bus.foreign.admits(opener):
            raise KdbusError(errno.EPERM)
        if not self.owner and (special or greeting.fake is not None):
            raise KdbusError(errno.EPERM)
        self.send_flags = attach_flags(greeting.attach_send)
        self.recv_flags = attach_flags(greeting.attach_recv)
        self.bus = bus
        self.endpoint = endpoint
        self.flags = flags
        self.creds = opener
        self.description = greeting.description
        self.namespaces = caller.namespaces
        self.fake = greeting.fake
        self.facts = greeting.fake if greeting.fake is not None else caller.facts()
        self.transport = transport
        self.installs = transport.installs
        self.activates: Any = None
        self.matches = Matches()
        self.queue = Queue()
        self.quota: dict[int, Quota] = {}
        self.awaited: dict[int, list[Any]] = {}
        self.owed: dict[Any, None] = {}
        self.requests = 0
        self.lost = 0
        self.active = False
        payer = self.payer()
        bus.domain.count_connection(payer)
        self.account = payer
        # What stands for a user is nobody in the classic world.
        shown = opener.uid if endpoint.custom and bus.foreign is not None else payer
        self.user = bus.core.accounts.user(shown)
        try:
            self.pool = Pool(greeting.pool_size, transport.memory(greeting.pool_size))
            self.connect(name, greeting, caller)
        except BaseException:
            if self.active:
                self.disconnect()
            else:
                bus.domain.uncount_connection(payer)
            raise
        finally:
            bus.flush()

    def payer(self) -> Any:
        """Whose account it is on: the endpoint's, or that of a uid."""
        if self.endpoint.custom:
            return self.endpoint.user
        if self.fake is not None and self.privileged and self.fake.uids is not None:
            uid = self.fake.uids[0]
            if uid < 0xFFFF_FFFF:
                return uid
        return self.creds.uid

    def connect(self, name: bytes | None, greeting: Greeting, caller: Caller) -> None:
        bus = self.bus
        core = bus.core.connect(self.user.uid)
        core.transport = self
        self.core = core
        self.names_held: dict[bytes, Any] = core.names
        if self.monitor:
            self.id = bus.domain.next_id()
            bus.monitors[self.id] = self
            if bus.foreign is not None:
                bus.foreign.monitors_changed()
        else:
            bus.core.last_id = max(bus.core.last_id, bus.domain.last_id)
            try:
                bus.core.hello(core)
            except Refused as refused:
                raise KdbusError(errno.EMFILE) from refused
            self.id = bus.domain.taken(core.id)
        bus.connections[self.id] = self
        bus.wanted |= self.recv_flags
        self.endpoint.connections[self] = None
        self.active = True
        bus.installers += self.installs
        if not self.monitor:
            bus.core.announce(core)
        if self.activator:
            assert name is not None
            bus.names.set_activator(self, name)
        if not self.ordinary and not self.monitor:
            bus.policy.replace(self, greeting.rules, 1, self.holder, self.namespaces)

    # The end

    def byebye(self) -> None:
        """BYEBYE: EBUSY while something is queued, ECONNRESET when it is over already."""
        if not self.ordinary:
            raise KdbusError(errno.EOPNOTSUPP)
        self.need_active()
        if len(self.queue):
            raise KdbusError(errno.EBUSY)
        self.disconnect()

    def disconnect(self) -> None:
        if not self.active:
            return
        bus = self.bus
        self.active = False
        bus.installers -= self.installs
        bus.policy.drop(self)
        del bus.connections[self.id]
        if bus.monitors.pop(self.id, None) is not None and bus.foreign is not None:
            bus.foreign.monitors_changed()
        bus.listeners.pop(self.id, None)
        self.endpoint.connections.pop(self, None)
        if not self.monitor:
            # Sent to one of its names, messages may go back to the activator.
            bus.names.release_all(self)
        for reply in [reply for replies in self.awaited.values() for reply in replies]:
            bus.replies.unlink(reply)
            if reply.done is not None:
                reply.done(errno.ECONNRESET, None)
        for number, entry in list(self.queue.entries.items()):
            self.queue.remove(number)
            self.forget(entry)
        for reply in list(self.owed):
            bus.answer_dead(reply)
        if not self.monitor:
            bus.core.disconnect(self.core)
        bus.domain.uncount_connection(self.account)
        self.wake()
        bus.flush()

    def close(self) -> None:
        """Its handle is gone, and nobody can look into the pool any more."""
        self.disconnect()
        self.pool.close()

    def need_active(self) -> None:
        if not self.active:
            raise KdbusError(errno.ECONNRESET)

    # Receiving

    def recv(self, flags: int, priority: int) -> tuple[Received | None, int]:
        """RECV: (the message or None for a dropped one, how many were lost before).

        With nothing to receive: EAGAIN, with `lost` of the error set."""
        if flags & c.RECV_DROP and flags & c.RECV_USE_PRIORITY:
            raise KdbusError(errno.EINVAL)
        found = self.queue.first(priority if flags & c.RECV_USE_PRIORITY else None)
        lost, self.lost = self.lost, 0
        if found is None:
            return new_received(self.pool.empty, 0, -1, _NO_FDS), lost
        number, entry = found
        if flags & c.RECV_PEEK and not flags & c.RECV_DROP:
            return self.take(entry, True), lost
        self.queue.remove(number)
        received = None
        if flags & c.RECV_DROP:
            reply = entry.reply
            self.forget(entry)
            if reply is not None:
                self.bus.answer_dead(reply)
                self.bus.flush()
        else:
            received = self.take(entry, False)
            self.forget(entry)
        return received, lost

    def next(self) -> Received:
        """The oldest message, as RECV without flags gives it, of a queue that is not empty."""
        entry = self.queue.pop()
        received = self.take(entry, False)
        self.forget(entry)
        return received

    def take(self, entry: Entry, peek: bool) -> Received:
        """Tells the owner where the message is."""
        part = entry.slice
        part.by_owner = True
        offset, size = part.offset, part.size
        flags = 0
        fds = _NO_FDS
        if entry.fds and not peek:
            if self.installs and self.flags & _ACCEPT_FD:
                fds = [
                    (handle.hold(), offset + at)
                    for handle, at in zip(entry.fds, entry.patches, strict=True)
                ]
            elif entry.n_fds or self.installs:
                flags = _INCOMPLETE
        return new_received(offset, size, flags, fds)

    def forget(self, entry: Entry) -> None:
        """An entry that is in no queue any more: gives back what it held."""
        reply = entry.reply
        if reply is not None:
            reply.queued = False
            reply.settle()
            entry.reply = None
        self.discharge(entry.user, entry.size, entry.n_fds)
        self.pool.release(entry.slice)
        if entry.fds:
            for handle in entry.fds:
                handle.drop()

    def free(self, offset: int) -> None:
        """FREE: ENXIO for what it does not have."""
        self.pool.free(offset)

    def lose(self) -> None:
        self.lost += 1
        if self.lost == 1:
            self.wake()

    def wake(self) -> None:
        self.transport.stir()

    @property
    def readable(self) -> bool:
        return len(self.queue) > 0 or self.lost > 0

    # What others may have in its pool

    def charge(self, user: Any, size: int, fds: int) -> None:
        """ENOBUFS or EMFILE where this user would have too much here."""
        quota = self.quota.get(user.index)
        if quota is None:
            quota = self.quota[user.index] = new_quota()
        memory, messages, held_fds = quota.memory, quota.messages, quota.fds
        # Half of the pool is the owner's own.
        room = self.pool.size // 2
        if room < self.pool.accounted:
            raise KdbusError(errno.ENOBUFS)
        share = (room - self.pool.accounted + memory) // 3
        if share < memory + size or messages >= _MSGS_MAX:
            raise KdbusError(errno.ENOBUFS)
        if held_fds + fds > _FDS_MAX:
            raise KdbusError(errno.EMFILE)
        quota.memory = memory + size
        quota.messages = messages + 1
        quota.fds = held_fds + fds

    def discharge(self, user: Any, size: int, fds: int) -> None:
        quota = self.quota[user.index]
        quota.memory -= size
        quota.messages -= 1
        quota.fds -= fds
        if not quota.messages:
            del self.quota[user.index]

    # Matches

    def add_match(self, cookie: int, rules: list[Rule], replace: bool) -> None:
        """MATCH_ADD: EMFILE where it has too many."""
        self.matches.add(cookie, rules, replace)
        self.bus.listeners[self.id] = self

    def remove_match(self, cookie: int) -> None:
        """MATCH_REMOVE: EBADSLT."""
        self.matches.remove(cookie)
        if not self.matches.sets:
            del self.bus.listeners[self.id]

    # UPDATE

    def update(self, send: int | None, recv: int | None, rules: Any, caller: Caller) -> None:
        """Other attach flags or, for a policy holder, another policy; all or nothing."""
        if send is not None:
            if not self.ordinary and not self.monitor:
                raise KdbusError(errno.EOPNOTSUPP)
            send = attach_flags(send)
        if recv is not None:
            if self.holder:
                raise KdbusError(errno.EOPNOTSUPP)
            recv = attach_flags(recv)
        if rules is not None:
            if not self.holder:
                raise KdbusError(errno.EOPNOTSUPP)
            self.bus.policy.replace(self, rules, 1, True, caller.namespaces)
        if send is not None:
            self.send_flags = send
        if recv is not None:
            self.recv_flags = recv
            self.bus.wanted |= recv

    # Names and policy

    def acquire(self, text: bytes, flags: int, caller: Caller) -> int:
        """NAME_ACQUIRE: what became of it; EINVAL, EPERM, E2BIG, EEXIST."""
        if not is_name(text, False):
            raise KdbusError(errno.EINVAL)
        try:
            return self.bus.names.acquire(self, text, flags, caller.creds)
        finally:
            self.bus.flush()

    def release(self, text: bytes) -> None:
        """NAME_RELEASE: ESRCH, EADDRINUSE."""
        try:
            self.bus.names.release(self, text)
        finally:
            self.bus.flush()

    @property
    def owned(self) -> dict[bytes, Any]:
        """Names that lead here."""
        if self.activates is not None and self.activates.owner is None:
            return {self.activates.text: self.activates}
        return self.core.owned

    def owned_flags(self) -> list[tuple[bytes, int]]:
        held = self.bus.names.held(self.core, self.activates)
        return [(name, flags) for name, flags in held if not flags & c.NAME_IN_QUEUE]

    def _any(self, policy: Any, creds: Creds, whom: Connection, right: int) -> bool:
        return any(policy.query(creds, name) >= right for name in whom.owned)

    def may_own(self, creds: Creds, name: bytes) -> bool:
        endpoint = self.endpoint
        if endpoint.custom and endpoint.policy.query(creds, name) < c.OWN:
            return False
        return self.owner or self.bus.policy.query(creds, name) >= c.OWN

    def may_talk(self, creds: Creds | None, whom: Connection) -> bool:
        """`creds`: those of right now; None for those it was opened with."""
        if self.owner and not self.confined:
            return True
        if creds is None:
            creds = self.creds
        if self.confined and not self._any(self.endpoint.policy, creds, whom, c.TALK):
            return False
        if self.owner or creds.euid == whom.creds.uid:
            return True
        return self._any(self.bus.policy, creds, whom, c.TALK)

    def may_reach(self, whom: Any) -> bool:
        """Whether its custom endpoint lets it talk to one of another front."""
        return self._any(self.endpoint.policy, self.creds, whom, c.TALK)

    def may_see_name(self, creds: Creds | None, name: bytes) -> bool:
        """By default all see all; a custom endpoint shows what its policy says."""
        endpoint = self.endpoint
        if not endpoint.custom:
            return True
        creds = creds if creds is not None else self.creds
        return bool(endpoint.policy.query(creds, name) >= c.SEE)

    def may_see(self, creds: Creds, whom: Connection) -> bool:
        endpoint = self.endpoint
        return not endpoint.custom or self._any(endpoint.policy, creds, whom, c.SEE)
