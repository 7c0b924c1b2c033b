"""Policy: who may see, talk to and own a name.

Invariant: an entry belongs to the endpoint, activator or policy holder that gave it, and goes
with it; no two entries are for the same name. What nobody gave is not allowed, and of several
rights that fit the highest counts: OWN includes TALK, TALK includes SEE.
"""

from __future__ import annotations

import errno
from typing import Any

from .constants import FOR_GROUP, FOR_USER, FOR_WORLD, OWN, SEE, TALK
from .errors import KdbusError
from .metadata import Creds
from .validity import is_name

DENIED = -1


class Entry:
    """The rights to one name: (to whom, uid or gid, what)."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.rights: list[tuple[int, int, int]] = []

    def highest(self, creds: Creds) -> int:
        best = DENIED
        for whom, number, right in self.rights:
            if right > best and (
                whom == FOR_WORLD
                or (whom == FOR_USER and creds.euid == number)
                or (whom == FOR_GROUP and (creds.egid == number or creds.in_group(number)))
            ):
                best = right
        return best


class Policy:
    """Entries by (name, whether it is for all names one level below it)."""

    def __init__(self) -> None:
        self.entries: dict[tuple[bytes, bool], Entry] = {}

    def query(self, creds: Creds, name: bytes) -> int:
        """The highest right that these credentials have to the name, or DENIED."""
        entry = self.entries.get((name, False))
        if entry is None:
            entry = self.entries.get((name.rpartition(b".")[0], True))
        return entry.highest(creds) if entry is not None else DENIED

    def drop(self, owner: Any) -> None:
        """All that this owner gave."""
        self.entries = {
            key: entry for key, entry in self.entries.items() if entry.owner is not owner
        }

    def replace(
        self,
        owner: Any,
        rules: list[tuple[bytes, list[tuple[int, int, int]]]],
        at_most: int,
        wildcards: bool,
        namespaces: Any,
    ) -> None:
        """What `owner` gives from now on, all or nothing: (name, rights) in the order given.

        `at_most` names (0: any number); uids and gids are those of the caller's `namespaces`."""
        fresh: dict[tuple[bytes, bool], Entry] = {}
        if at_most and len(rules) > at_most:
            raise KdbusError(errno.E2BIG)
        for name, rights in rules:
            if not is_name(name, True):
                raise KdbusError(errno.EINVAL)
            wild = name.endswith(b".*")
            if wild and not wildcards:
                raise KdbusError(errno.EINVAL)
            key = (name[:-2] if wild else name, wild)
            entry = Entry(owner)
            for whom, right, number in rights:
                entry.rights.append((whom, _number(whom, number, namespaces), right))
                if right not in (SEE, TALK, OWN):
                    raise KdbusError(errno.EINVAL)
            other = self.entries.get(key)
            if key in fresh or (other is not None and other.owner is not owner):
                raise KdbusError(errno.EEXIST)
            fresh[key] = entry
        self.drop(owner)
        self.entries.update(fresh)


def _number(whom: int, number: int, namespaces: Any) -> int:
    found: int | None = 0
    if whom == FOR_USER:
        found = namespaces.host_uid(number)
    elif whom == FOR_GROUP:
        found = namespaces.host_gid(number)
    elif whom != FOR_WORLD:
        found = None
    if found is None:
        raise KdbusError(errno.EINVAL)
    return found
