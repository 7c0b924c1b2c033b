"""The policy of an endpoint as text: a line for each grant.

Invariant: `parse()` takes what xdg-dbus-proxy takes behind its options, and no more; what
`written()` makes of what was learned is read back by `read()`.

    see NAME              NAME.* is NAME and all names below it
    talk NAME
    own NAME
    call NAME=RULE        RULE is [INTERFACE.MEMBER][@PATH], where INTERFACE.* is the whole
    broadcast NAME=RULE   interface, * everything, and PATH/* the object and all below it

Empty lines, and what follows a # that begins a line or comes after a space, say nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jitney.broker.endpoint import BROADCASTS, CALLS, OWN, SEE, TALK, Grant
from jitney.broker.syntax import is_bus_name

if TYPE_CHECKING:
    from jitney.broker.learning import Learned

LEVELS = {"see": SEE, "talk": TALK, "own": OWN}
WHAT = {"call": CALLS, "broadcast": BROADCASTS}

_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*(\.\*)?\Z")
_PATH = re.compile(r"/(\*|([A-Za-z0-9_]+(/[A-Za-z0-9_]+)*(/\*)?)?)\Z")
_COMMENT = re.compile(r"(^|\s)#.*")


class BadGrant(ValueError):
    """A line that is no grant; the text says why."""


def parse(line: str) -> Grant:
    """The grant that a line is. Raises BadGrant."""
    kind, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if kind in LEVELS:
        name, subtree = _name(rest)
        return Grant(name, LEVELS[kind], subtree)
    if kind not in WHAT:
        raise BadGrant(f"'{kind}' is none of {', '.join((*LEVELS, *WHAT))}")
    text, equals, rule = rest.partition("=")
    if not equals:
        raise BadGrant(f"'{rest}' is not a valid name + rule")
    name, subtree = _name(text)
    method, at, path = rule.partition("@")
    where, below = _path(path) if at and path else (None, False)
    interface, member = _method(method)
    return Grant(name, TALK, subtree, WHAT[kind], where, below, interface, member)


def _name(text: str) -> tuple[bytes, bool]:
    subtree = text.endswith(".*")
    name = text.removesuffix(".*").encode()
    if name[:1] == b":" or not is_bus_name(name):
        raise BadGrant(f"'{text}' is not a valid dbus name")
    return name, subtree


def _method(text: str) -> tuple[bytes | None, bytes | None]:
    if text in ("", "*"):
        return None, None
    if not _METHOD.match(text):
        raise BadGrant(f"'{text}' is not INTERFACE.MEMBER, INTERFACE.* or *")
    interface, dot, member = text.rpartition(".")
    if not dot:
        return text.encode(), None
    return interface.encode(), None if member == "*" else member.encode()


def _path(text: str) -> tuple[bytes | None, bool]:
    if not _PATH.match(text):
        raise BadGrant(f"'{text}' is not an object path, or one with /* behind it")
    if text == "/*":
        return None, False  # all there are
    return text.removesuffix("/*").encode(), text.endswith("/*")


def read(text: str, file: str) -> list[str]:
    """The lines of a policy that say something. Raises BadGrant, with the place."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        said = _COMMENT.sub("", line).strip()
        if not said:
            continue
        try:
            parse(said)
        except BadGrant as reason:
            raise BadGrant(f"{file}:{number}: {reason}") from None
        found.append(" ".join(said.split()))
    return found


def written(learned: Learned) -> list[str]:
    """What was done and refused, as the lines of a policy that would let it be done."""
    lines = _lines(learned.used)
    missed = [line for line in _lines(learned.missed) if line not in lines]
    if missed:
        lines += ["# refused:", *[f"# {line}" for line in missed]]
    if learned.n_nameless:
        lines.append(
            f"# {learned.n_nameless} messages to or of peers without a name, which no line can name"
        )
    if learned.n_forgotten:
        lines.append(f"# and {learned.n_forgotten} more than could be kept")
    return lines


def _lines(entries: dict[tuple[str, bytes, bytes], int]) -> list[str]:
    # Who may be talked to is seen, too; who may own it, may do all else.
    owned = {name for kind, name, _ in entries if kind == "own"}
    talked = {name for kind, name, _ in entries if kind not in ("see", "own")} | owned
    found = set()
    for kind, name, what in entries:
        if kind == "own":
            found.add(f"own {name.decode()}")
        elif name in owned or (kind == "see" and name in talked):
            continue
        elif kind in LEVELS:
            found.add(f"{kind} {name.decode()}")
        else:
            found.add(f"{kind} {name.decode()}={what.decode()}")
    return sorted(found, key=lambda line: (line.split()[1].partition("=")[0], line))
