"""Filters: what to trace, as words of the command line and as options of org.jitney.Trace1.

Invariant: every filter is applied by the bus, none here; keys narrow, peers and rules widen.
"""

from __future__ import annotations

import argparse
import pwd
from typing import Any

_KEYS = ("type", "sender", "destination", "path", "interface", "member")


class BadFilter(Exception):
    """A filter that means nothing; the text says which."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("where")
    bus = where.add_mutually_exclusive_group()
    bus.add_argument("--bus", choices=("session", "system"), default="session")
    bus.add_argument("--address", help="the bus at this address")
    what = parser.add_argument_group(
        "what", "Keys narrow down what is traced; --peer and --match, each, widen it again."
    )
    what.add_argument("--type", choices=("method_call", "method_return", "error", "signal"))
    what.add_argument("--sender", metavar="NAME")
    what.add_argument("--destination", metavar="NAME")
    what.add_argument("--path", metavar="PATH")
    what.add_argument("--interface", metavar="NAME")
    what.add_argument("--member", metavar="NAME")
    what.add_argument(
        "--peer", metavar="NAME", action="append", default=[],
        help="who sends or is sent to (may be repeated)",
    )  # fmt: skip
    what.add_argument(
        "--match", metavar="RULE", action="append", default=[],
        help="a match rule of D-Bus (may be repeated)",
    )  # fmt: skip
    what.add_argument(
        "--user", metavar="USER", action="append", default=[],
        help="whose connections send or are sent to (may be repeated)",
    )  # fmt: skip


def options(words: argparse.Namespace) -> dict[str, tuple[str, Any]]:
    """Of Trace1.Start. Replies to the calls that are found come along. Raises BadFilter."""
    keys = {key: getattr(words, key) for key in _KEYS if getattr(words, key)}
    rules = list(words.match)
    for peer in words.peer:
        for end in ("sender", "destination"):
            if end in keys:
                raise BadFilter(f"--peer and --{end} say the same twice")
            rules.append(_rule({**keys, end: peer}))
    if keys and not words.peer:
        rules.append(_rule(keys))
    found: dict[str, tuple[str, Any]] = {}
    if rules:
        found["match"] = ("as", rules)
    if words.user:
        found["users"] = ("au", [_uid(user) for user in words.user])
    return found


def _rule(keys: dict[str, str]) -> str:
    return ",".join(f"{key}='" + value.replace("'", "'\\''") + "'" for key, value in keys.items())


def _uid(user: str) -> int:
    if user.isdigit():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise BadFilter(f"there is no user {user}") from None
