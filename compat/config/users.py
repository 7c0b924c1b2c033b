"""Users: who a name in a configuration is, asked while the configuration is being read.

Invariant: a look-up that fails, for whatever reason, is a user who is not known; nothing here
raises. Who is not known gets nothing that a policy allows and keeps everything that it denies;
`names.settle()` asks again when a client comes.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable

from .cnumber import whole_id
from .model import Identity
from .names import FAILURES


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
        except FAILURES:
            # -1 as a uid_t stands for "none"; beyond it there are no ids.
            real = number is not None and number < 0xFFFFFFFF
            found = Identity(name=text, id=number if real else None, known=False)
        cache[text] = found
    return found
