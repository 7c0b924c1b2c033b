"""Names: what the user database has to say about users and groups in a policy.

Invariant: a look-up that fails, for whatever reason, is a user who is not known; nothing here
raises. Who is not known gets nothing that a policy allows and keeps everything that it denies.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable, Iterable

from jitney.broker.policy import PolicySet

from .cnumber import whole_id
from .model import Identity

SEATS = "/run/systemd/seats/"
LOGGED_IN = "/run/systemd/users/"

# What pwd and grp raise: not found (or the database failed), out of range, a NUL in the name.
_FAILURES = (KeyError, OverflowError, ValueError, OSError)


class UserDatabase:
    """Look-ups by the names in a configuration, each made once: a directory service is slow."""

    def __init__(self) -> None:
        self.users: dict[str, Identity] = {}
        self.groups: dict[str, Identity] = {}

    def user(self, text: str) -> Identity:
        """The user with this name or number."""
        return _look_up(
            self.users,
            text,
            lambda name: pwd.getpwnam(name).pw_uid,
            lambda uid: pwd.getpwuid(uid).pw_uid,
        )

    def group(self, text: str) -> Identity:
        """The group with this name or number."""
        return _look_up(
            self.groups,
            text,
            lambda name: grp.getgrnam(name).gr_gid,
            lambda gid: grp.getgrgid(gid).gr_gid,
        )


def _look_up(
    cache: dict[str, Identity],
    text: str,
    by_name: Callable[[str], int],
    by_id: Callable[[int], int],
) -> Identity:
    found = cache.get(text)
    if found is None:
        number = whole_id(text)
        try:
            id = by_name(text) if number is None else by_id(number)
            found = Identity(name=text, id=id, known=True)
        except _FAILURES:
            # -1 as a uid_t stands for "none"; beyond it there are no ids.
            real = number is not None and number < 0xFFFFFFFF
            found = Identity(name=text, id=number if real else None, known=False)
        cache[text] = found
    return found


def settle(policies: PolicySet, uid: int, gids: Iterable[int]) -> bool:
    """Finds out whether a client is one of those whom the policy names but who were not known when
    it was read. To be called before a client with this uid is admitted; costs nothing if there are
    none.

    False if that cannot be found out: such a client must be refused, unless it is the bus's own
    user, whom containers may run under any uid."""
    if policies.unknown_users:
        try:
            policies.settle_user(pwd.getpwuid(uid).pw_name.encode(), uid)
        except _FAILURES:
            if uid != os.geteuid():
                return False
    if policies.unknown_groups:
        for gid in gids:
            try:
                group = grp.getgrgid(gid).gr_name
            except _FAILURES:
                continue  # containers are full of groups without names
            policies.settle_group(group.encode(), gid)
    return True


def user_groups(uid: int) -> list[int] | None:
    """The groups that the user database gives a user, for `PolicySet.may_connect()`; None, which
    means no, if it does not know the user."""
    try:
        user = pwd.getpwuid(uid)
        return os.getgrouplist(user.pw_name, user.pw_gid)
    except _FAILURES:
        return None


def at_console(uid: int) -> bool:
    """Whether the user is logged in at a seat of this machine: sd_uid_get_seats(3), for
    `<policy at_console=...>`. Without systemd-logind nobody is."""
    if not os.path.isdir(SEATS):
        return False
    try:
        with open(f"{LOGGED_IN}{uid}", encoding="utf-8", errors="replace") as lines:
            return any(line.startswith("SEATS=") and line[6:].strip(' "\n') for line in lines)
    except OSError:
        return False
