# cython: infer_types=True
"""Match rule strings: the text that AddMatch takes, read and written as dbus-daemon does.

Invariant: a text is accepted, refused with the very words, or read as the same rule as
dbus-daemon 1.14 would. Where that grammar is odder than the specification's ("Match Rules"),
it is the daemon's that holds: clients have been written against it.

`parse()` takes rules as libraries write them at once (`plain()`); at the first thing that is not
plain the text goes to `thorough()`, which knows the whole grammar and all that can be wrong.
"""

from __future__ import annotations

import re
from typing import Any

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.match import Arg, Rule
from jitney.broker.syntax import is_bus_name, is_interface, is_member, is_namespace, is_path

from .errors import LIMITS_EXCEEDED, MATCH_RULE_INVALID, DBusError

if not cython.compiled:
    from jitney.broker.mem import of_bytes, same, take
    from jitney.broker.syntax import (
        bus_name_ok,
        interface_ok,
        member_ok,
        namespace_ok,
        path_ok,
    )

MAX_LENGTH = 1024
MAX_ARG = 63
MAX_KEYS = 16
"""What stands after this many keys is not looked at, not even for errors."""

TYPES = {b"method_call": 1, b"method_return": 2, b"error": 3, b"signal": 4}
_TYPE_NAMES = {number: name.decode() for name, number in TYPES.items()}
_NAMES = {
    b"sender": (is_bus_name, "Sender name"),
    b"destination": (is_bus_name, "Destination name"),
    b"interface": (is_interface, "Interface name"),
    b"member": (is_member, "Member name"),
}
_KEY = re.compile(rb"[ \t\n\r]*([^= \t\n\r]*)[ \t\n\r]*")
_PLAIN = re.compile(rb"[^',\\]+")
# An argument number is whatever strtoul(…, 0) takes for one: sign, 0x and 0 prefixes and all.
_NUMBER = re.compile(rb"[\v\f]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_ULONG_MAX = (1 << 64) - 1


def parse(text: bytes) -> Rule:
    """The rule that `text` says.

    DBusError(MatchRuleInvalid), or LimitsExceeded when it is longer than MAX_LENGTH bytes."""
    rule = plain(text)
    return thorough(text) if rule is None else rule


def plain(text: bytes) -> Rule | None:
    """The rule, if the text is valid and has nothing unusual: each value is either without quotes
    and backslashes, or one run within quotes; no key twice; no space but before keys."""
    p = of_bytes(text)
    end = len(text)
    if end > 1024:
        return None
    rule = Rule()
    args: list[Arg] | None = None
    keys = 0
    pos = 0
    while pos < end:
        while p[pos] == 32:
            pos += 1
            if pos == end:
                return None
        key = pos
        while pos < end and p[pos] != 61:
            c = p[pos]
            if c <= 32 or c == 44 or c == 39 or c == 92:
                return None
            pos += 1
        n_key = pos - key
        pos += 1
        keys += 1
        if pos >= end or n_key == 0 or keys > 16:
            return None
        if p[pos] == 39:
            pos += 1
            start = pos
            while pos < end and p[pos] != 39:
                pos += 1
            n = pos - start
            pos += 1
            if pos > end or (pos < end and p[pos] != 44):
                return None
        else:
            start = pos
            while pos < end and p[pos] != 44:
                if p[pos] == 39 or p[pos] == 92:
                    return None
                pos += 1
            n = pos - start
        pos += 1
        if same(p, key, n_key, b"type"):
            if rule.type:
                return None
            if same(p, start, n, b"signal"):
                rule.type = 4
            else:
                rule.type = TYPES.get(take(p, start, n), 0)
                if rule.type == 0:
                    return None
        elif same(p, key, n_key, b"sender"):
            if rule.sender is not None or not bus_name_ok(p, start, n):
                return None
            rule.sender = take(p, start, n)
        elif same(p, key, n_key, b"interface"):
            if rule.interface is not None or not interface_ok(p, start, n):
                return None
            rule.interface = take(p, start, n)
        elif same(p, key, n_key, b"member"):
            if rule.member is not None or not member_ok(p, start, n):
                return None
            rule.member = take(p, start, n)
        elif same(p, key, n_key, b"path"):
            if rule.path is not None or rule.path_namespace is not None or not path_ok(p, start, n):
                return None
            rule.path = take(p, start, n)
        elif same(p, key, n_key, b"path_namespace"):
            if rule.path is not None or rule.path_namespace is not None or not path_ok(p, start, n):
                return None
            rule.path_namespace = take(p, start, n)
        elif same(p, key, n_key, b"destination"):
            if rule.destination is not None or not bus_name_ok(p, start, n):
                return None
            rule.destination = take(p, start, n)
        elif n_key > 3 and same(p, key, 3, b"arg"):
            arg = plain_arg(p, key, n_key, start, n)
            if arg is None:
                return None
            if args is None:
                args = [arg]
            else:
                # In the order of their numbers.
                at = len(args)
                while at > 0 and args[at - 1].index >= arg.index:
                    at -= 1
                    if args[at].index == arg.index:
                        return None
                args.insert(at, arg)
        else:
            return None
    if args is not None:
        rule.args = tuple(args)
    return rule


def plain_arg(p: Any, key: int, n_key: int, start: int, n: int) -> Arg | None:
    """argN, argNpath or arg0namespace, with N in decimal."""
    pos = key + 3
    stop = key + n_key
    index = p[pos] - 48
    if index < 0 or index > 9:
        return None
    pos += 1
    if index and pos < stop and 48 <= p[pos] <= 57:
        index = index * 10 + p[pos] - 48
        pos += 1
    kind = 115
    if pos < stop:
        if same(p, pos, stop - pos, b"path"):
            kind = 112
        elif index == 0 and same(p, pos, stop - pos, b"namespace") and namespace_ok(p, start, n):
            kind = 110
        else:
            return None
    if index > 63:
        return None
    arg = Arg()
    arg.index = index
    arg.kind = kind
    arg.text = take(p, start, n)
    return arg


def thorough(text: bytes) -> Rule:
    """parse() by the whole grammar."""
    if len(text) > MAX_LENGTH:
        raise DBusError(
            LIMITS_EXCEEDED, f"Match rule text is {len(text)} bytes, maximum is {MAX_LENGTH}"
        )
    type = 0
    found: dict[bytes, bytes] = {}
    args: dict[int, tuple[str, bytes]] = {}
    eavesdrop = False
    for key, value in _pairs(text):
        if key == b"type":
            if type:
                raise _invalid("Key %s specified twice in match rule\n", key)
            type = TYPES.get(value, 0)
            if not type:
                raise _invalid("Invalid message type (%s) in match rule\n", value)
        elif key in _NAMES:
            if key in found:
                raise _invalid("Key %s specified twice in match rule\n", key)
            valid, what = _NAMES[key]
            if not valid(value):
                raise _invalid(what + " '%s' is invalid\n", value)
            found[key] = value
        elif key == b"path" or key == b"path_namespace":
            if b"path" in found or b"path_namespace" in found:
                raise _invalid("path or path_namespace specified twice in match rule\n")
            if not is_path(value):
                raise _invalid("Path '%s' is invalid\n", value)
            found[key] = value
        elif key == b"eavesdrop":
            if value != b"true" and value != b"false":
                raise _invalid("eavesdrop='%s' is invalid, it should be 'true' or 'false'\n", value)
            eavesdrop = value == b"true"
        elif key[:3] == b"arg":
            number, kind = _argument(key, value)
            if number in args:
                raise _invalid("Argument %s matched more than once in match rule\n", key)
            args[number] = (kind, value)
        else:
            raise _invalid('Unknown key "%s" in match rule', key)
    return Rule(
        type=type,
        sender=found.get(b"sender"),
        interface=found.get(b"interface"),
        member=found.get(b"member"),
        path=found.get(b"path"),
        path_namespace=found.get(b"path_namespace"),
        destination=found.get(b"destination"),
        args=args or None,
        eavesdrop=eavesdrop,
    )


def format(rule: Rule) -> str:
    """The rule as GetAllMatchRules lists it: keys in dbus-daemon's order, every value quoted."""
    pairs: list[tuple[str, bytes | None]] = [
        ("type", _TYPE_NAMES[rule.type].encode() if rule.type else None),
        ("interface", rule.interface),
        ("member", rule.member),
        ("path", rule.path),
        ("path_namespace", rule.path_namespace),
        ("sender", rule.sender),
        ("destination", rule.destination),
        ("eavesdrop", b"true" if rule.eavesdrop else None),
    ]
    for arg in rule.args:
        suffix = {ord("p"): "path", ord("n"): "namespace"}.get(arg.kind, "")
        pairs.append((f"arg{arg.index}{suffix}", arg.text))
    # A quote cannot be escaped inside quotes: close them, escape it, open them again.
    return ",".join(
        f"{key}='" + value.decode(errors="replace").replace("'", "'\\''") + "'"
        for key, value in pairs
        if value is not None
    )


def _invalid(text: str, *parts: bytes) -> DBusError:
    return DBusError(
        MATCH_RULE_INVALID, text % tuple(part.decode(errors="replace") for part in parts)
    )


def _pairs(text: bytes) -> list[tuple[bytes, bytes]]:
    """Keys and unquoted values in order; nothing is judged but the quoting."""
    pairs: list[tuple[bytes, bytes]] = []
    pos = 0
    while pos < len(text) and len(pairs) < MAX_KEYS:
        match = _KEY.match(text, pos)
        assert match is not None  # every part of the pattern may be empty
        key = match[1]
        pos = match.end()
        if not key:
            # White space at the end. An "=" without a key also ends the rule, unpunished.
            break
        if text[pos : pos + 1] != b"=":
            raise _invalid("Match rule has a key with no subsequent '=' character")
        value, pos = _value(text, pos + 1)
        pairs.append((key, value))
    return pairs


def _value(text: bytes, pos: int) -> tuple[bytes, int]:
    """The value that starts at `pos`, unquoted, and where the next key starts."""
    parts = []
    while pos < len(text):
        match = _PLAIN.match(text, pos)
        if match is not None:
            parts.append(match[0])
            pos = match.end()
        elif text[pos : pos + 1] == b",":
            pos += 1
            break
        elif text[pos : pos + 1] == b"'":
            end = text.find(b"'", pos + 1)
            if end < 0:
                raise _invalid("Unbalanced quotation marks in match rule")
            parts.append(text[pos + 1 : end])
            pos = end + 1
        else:
            # A backslash escapes a quote; before anything else it stands for itself.
            after = text[pos + 1 : pos + 2]
            parts.append(after if after == b"'" else b"\\" + after)
            pos += 2
    return b"".join(parts), pos


def _argument(key: bytes, value: bytes) -> tuple[int, str]:
    """Number and kind of an argN, argNpath or arg0namespace key."""
    if len(key) < 4:
        raise _invalid(
            "Key '%s' in match rule starts with 'arg' but lacks an arg number."
            " Should be 'arg0' or 'arg7' for example.\n",
            key,
        )
    match = _NUMBER.match(key, 3)
    number = _c_integer(match[2]) if match is not None else _ULONG_MAX + 1
    if match is None or number > _ULONG_MAX:
        raise _invalid(
            "Key '%s' in match rule starts with 'arg' but could not parse arg number."
            " Should be 'arg0' or 'arg7' for example.\n",
            key,
        )
    if match[1] == b"-":
        number = -number & _ULONG_MAX
    kind = "s"
    rest = key[match.end() :]
    if rest == b"path":
        kind = "p"
    elif key == b"arg0namespace":
        kind = "n"
        if not is_namespace(value):
            raise _invalid("arg0namespace='%s' is not a valid prefix of a bus name", value)
    elif rest:
        raise _invalid(
            "Key '%s' in match rule contains junk after argument number (%s)."
            " Only 'arg%spath' (for example) or 'arg0namespace' are valid",
            key,
            b"%d" % number,
            b"%d" % number,
        )
    if number > MAX_ARG:
        raise _invalid(
            f"Key '%s' in match rule has arg number {number} but the maximum is {MAX_ARG}.\n", key
        )
    return number, kind


def _c_integer(digits: bytes) -> int:
    if digits[:2].lower() == b"0x":
        return int(digits, 16)
    return int(digits, 8 if digits[:1] == b"0" else 10)
