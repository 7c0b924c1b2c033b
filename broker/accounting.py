# cython: infer_types=True
"""Accounting: who is charged for what the bus keeps on somebody's behalf.

Invariant: for each user, `bytes` and `fds` are the sums over all messages queued anywhere
that this user sent; `connections`, `matches`, `names` and `replies` count what the user's
connections hold. Whatever is added is added and taken away at exactly one place each, so
that the sums are zero when nothing is left.
"""

from __future__ import annotations


class User:
    """One user of the bus: a uid, or what stands for it. `index` is its place in Accounts.users."""

    def __init__(self, uid: int | None, index: int) -> None:
        self.uid = uid
        self.index = index
        self.bytes = 0
        self.fds = 0
        self.connections = 0
        self.matches = 0
        self.names = 0
        self.replies = 0

    def idle(self) -> bool:
        """True when nothing is charged to this user any more."""
        return not (
            self.bytes or self.fds or self.connections or self.matches or self.names or self.replies
        )


class Accounts:
    """All users by uid, and by the small index that queues note."""

    def __init__(self) -> None:
        self.by_uid: dict[int | None, User] = {}
        self.users: list[User] = []
        # Index 0 is the bus itself: what the driver sends is nobody else's debt.
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

    def charge(self, index: int, size: int, fds: int) -> None:
        user = self.users[index]
        user.bytes += size
        user.fds += fds

    def discharge(self, index: int, size: int, fds: int) -> None:
        user = self.users[index]
        user.bytes -= size
        user.fds -= fds
