# cython: infer_types=True
"""Accounting: who is charged for what the bus keeps on somebody's behalf.

Invariant: each message that waits in a queue is charged, from `charge()` to `discharge()`, to one
Tally: what one sender has waiting at one user's connections. Sums over tallies stand in their
Share (two users), and sums over shares in both users: `bytes` and `fds` of the one that sent,
`kept_bytes` and `kept_fds` of the one whose connections are to receive. `connections`, `matches`,
`names` and `replies` count what a user's connections hold. All sums are zero when nothing is left.

Nobody can take the last share. A queue's limit is dbus-daemon's; behind it there is a reserve of
half as much again, in which a sender finds room as long as what it has waiting there is not more
than what is left (`leaves_room()`). Whoever filled the queue has no place in the reserve, and each
who comes after leaves one for the next; see kdbus(7), "pool" and "quota", and `Pool`.
"""

from __future__ import annotations

from typing import Any

from .meter import Counts


class User:
    """One user of the bus: a uid, or what stands for it. `index` is its place in Accounts.users.

    `tallies`: what it said to everybody, by the index of the receiving user; `latest` is the one
    that was asked for last. What is said to one receiver alone is the connection's tally.
    `totals`: what its connections have done so far, see `meter`; None: nothing."""

    def __init__(self, uid: int | None, index: int) -> None:
        self.uid = uid
        self.index = index
        self.bytes = 0
        self.fds = 0
        self.kept_bytes = 0
        self.kept_fds = 0
        self.connections = 0
        self.matches = 0
        self.names = 0
        self.replies = 0
        self.shares: dict[int, Share] = {}
        self.tallies: dict[int, Tally] = {}
        self.latest: Tally | None = None
        self.totals: Counts | None = None

    def idle(self) -> bool:
        """True when nothing is charged to this user any more, nor kept for it."""
        return not (
            self.bytes
            or self.fds
            or self.kept_bytes
            or self.kept_fds
            or self.connections
            or self.matches
            or self.names
            or self.replies
        )


class Share:
    """What one user's connections have waiting in the queues of another's."""

    def __init__(self, sender: User, receiver: User) -> None:
        self.sender = sender
        self.receiver = receiver
        self.bytes = 0
        self.fds = 0


class Tally:
    """What one sender has waiting in the queues of one user's connections.

    `owner`: the connection, or None for what a user says to everybody, and once the connection is
    gone (`ended`); `held`: reading from the owner has stopped until some of it is gone."""

    def __init__(self, index: int, share: Share, owner: Any) -> None:
        self.index = index
        self.share = share
        self.receiver = share.receiver
        self.owner = owner
        self.bytes = 0
        self.fds = 0
        self.held = False
        self.ended = False


class Accounts:
    """All users by uid, and all tallies by the small number that queues note.

    `released`: tallies of senders that may speak again; whoever set `held` takes them out.
    `moment`: what the time is, in microseconds of the bus's clock, at the start of this round."""

    def __init__(self) -> None:
        self.by_uid: dict[int | None, User] = {}
        self.users: list[User] = []
        self.tallies: list[Any] = []
        self.spare: list[int] = []
        self.released: list[Tally] = []
        self.moment = 0
        # What the driver sends is nobody else's debt.
        self.bus = User(None, 0)
        self.users.append(self.bus)

    def user(self, uid: int | None) -> User:
        """The user of this uid (None: anonymous peers, who share one account)."""
        user = self.by_uid.get(uid)
        if user is None:
            user = User(uid, len(self.users))
            self.users.append(user)
            self.by_uid[uid] = user
        return user

    def tally(self, sender: User, receiver: User, owner: Any) -> Tally:
        """A new tally; its number is used again once it is over."""
        share = receiver.shares.get(sender.index)
        if share is None:
            share = Share(sender, receiver)
            receiver.shares[sender.index] = share
        if self.spare:
            index = self.spare.pop()
            tally = Tally(index, share, owner)
            self.tallies[index] = tally
        else:
            tally = Tally(len(self.tallies), share, owner)
            self.tallies.append(tally)
        return tally

    def to_many(self, sender: User, receiver: User) -> Tally:
        """The tally of what `sender` says to everybody, at connections of `receiver`."""
        tally = sender.latest
        if tally is not None and tally.receiver is receiver:
            return tally
        tally = sender.tallies.get(receiver.index)
        if tally is None:
            tally = self.tally(sender, receiver, None)
            sender.tallies[receiver.index] = tally
        sender.latest = tally
        return tally

    def end(self, tally: Tally) -> None:
        """Its owner is gone; the tally goes with the last message that is charged to it."""
        tally.ended = True
        tally.owner = None
        tally.held = False
        if tally.bytes == 0:
            self.forget(tally)

    def forget(self, tally: Tally) -> None:
        self.tallies[tally.index] = None
        self.spare.append(tally.index)

    def charge(self, tally: Tally, size: int, fds: int) -> None:
        share = tally.share
        tally.bytes += size
        share.bytes += size
        share.sender.bytes += size
        share.receiver.kept_bytes += size
        if fds:
            tally.fds += fds
            share.fds += fds
            share.sender.fds += fds
            share.receiver.kept_fds += fds

    def discharge(self, index: int, size: int, fds: int) -> None:
        tally = self.tallies[index]
        share = tally.share
        tally.bytes -= size
        share.bytes -= size
        share.sender.bytes -= size
        share.receiver.kept_bytes -= size
        if fds:
            tally.fds -= fds
            share.fds -= fds
            share.sender.fds -= fds
            share.receiver.kept_fds -= fds
        if tally.held:
            # Once for each stop: who set the mark looks whether it is enough, and sets it again.
            tally.held = False
            self.released.append(tally)
        elif tally.ended and tally.bytes == 0:
            self.forget(tally)


def leaves_room(used: int, limit: int, claim: int, need: int) -> bool:
    """Whether a claimant that has `claim` of what is `used` may add `need`; bytes or pieces.

    Up to the limit anybody may, and the last one over it, as in dbus-daemon; beyond, in the
    reserve, only who will have no more than what it leaves."""
    return used <= limit or claim + need <= limit + limit // 2 - used - need


def room_for_one(count: int, limit: int, claim: int) -> bool:
    """leaves_room() for things of which no more than `limit` are given out one by one, as
    connections and starts of services: whether a claimant that has `claim` of `count` may have
    another one."""
    return count < limit or claim + 1 <= limit + limit // 2 - count - 1


class Pool:
    """How much may wait: for one connection and, in its connections together, for one user.

    Both are dbus-daemon's max_outgoing_bytes and max_outgoing_unix_fds, cut to what the process
    can stand (`limits.KEPT_BYTES`, `KEPT_FDS`); a user's is `limits.USER_SHARE` times as much."""

    def __init__(self, nbytes: int, fds: int, user_bytes: int, user_fds: int) -> None:
        self.bytes = nbytes
        self.fds = fds
        self.user_bytes = user_bytes
        self.user_fds = user_fds

    def admits(self, size: int, fds: int, tally: Tally, need: int, need_fds: int) -> bool:
        """Whether a queue that holds `size` bytes and `fds` descriptors takes one more message.

        Among a user's own connections each counts for itself, others count as the users they
        are: they could open as many connections as they like."""
        receiver = tally.receiver
        if (
            size <= self.bytes
            and fds <= self.fds
            and receiver.kept_bytes <= self.user_bytes
            and receiver.kept_fds <= self.user_fds
        ):
            return True
        share = tally.share
        claim = share.bytes
        claim_fds = share.fds
        if share.sender is receiver:
            claim = tally.bytes
            claim_fds = tally.fds
        return (
            leaves_room(size, self.bytes, claim, need)
            and leaves_room(fds, self.fds, claim_fds, need_fds)
            and leaves_room(receiver.kept_bytes, self.user_bytes, claim, need)
            and leaves_room(receiver.kept_fds, self.user_fds, claim_fds, need_fds)
        )
