"""Names: what the user database has to say about a client, while the bus runs.

Invariant: a look-up that fails, for whatever reason, is a user who is not known; nothing here
raises, and nothing here needs what only reading a configuration needs (see `users.py`).
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jitney.broker.policy import PolicySet

SEATS = "/run/systemd/seats/"
LOGGED_IN = "/run/systemd/users/"

# What pwd and grp raise: not found (or the database failed), out of range, a NUL in the name.
FAILURES = (KeyError, OverflowError, ValueError, OSError)


def settle(policies: PolicySet, uid: int, gids: Iterable[int]) -> bool:
    """Finds out whether a client is one of those whom the policy names but who were not known when
    it was read. To be called before a client with this uid is admitted; costs nothing if there are
    none.

    False if that cannot be found out: such a client must be refused, unless it is the bus's own
    user, whom containers may run under any uid."""
    if policies.unknown_users:
        try:
            policies.settle_user(pwd.getpwuid(uid).pw_name.encode(), uid)
        except FAILURES:
            if uid != os.geteuid():
                return False
    if policies.unknown_groups:
        for gid in gids:
            try:
                group = grp.getgrgid(gid).gr_name
            except FAILURES:
                continue  # containers are full of groups without names
            policies.settle_group(group.encode(), gid)
    return True


def user_groups(uid: int) -> list[int] | None:
    """The groups that the user database gives a user, for `PolicySet.may_connect()`; None, which
    means no, if it does not know the user."""
    try:
        user = pwd.getpwuid(uid)
        return os.getgrouplist(user.pw_name, user.pw_gid)
    except FAILURES:
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
