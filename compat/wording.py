"""Wording: an explanation for people to read, and the names of those whom it has as numbers.

Invariant: all that the text says is in the account it was made of. A rule is one line,
`FILE:LINE: <allow .../> (scope)`, so that editors and terminals can jump to it.
"""

from __future__ import annotations

import grp
import pwd
from typing import TYPE_CHECKING, Any

from .config.names import FAILURES
from .config.render import policy_xml, scope_text

if TYPE_CHECKING:
    from .explanation import Account


def user_name(uid: int) -> str:
    """A user's name; the number where nobody knows it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except FAILURES:
        return str(uid)


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except FAILURES:
        return str(gid)


def add_names(found: Any) -> None:
    """Puts names beside all numbers of users and groups in an account, and makes whole
    `<policy>` elements of the rules that would help."""
    if isinstance(found, list):
        for item in found:
            add_names(item)
    elif isinstance(found, dict):
        for item in found.values():
            add_names(item)
        if "uid" in found:
            found["user"] = None if found["uid"] is None else user_name(found["uid"])
        if "scope" in found:
            id = found["id"]
            who = ""
            if id is not None:
                who = user_name(id) if found["scope"] == "user" else group_name(id)
            found["name"] = who or None
            if "behind" in found:
                found["policy"] = policy_xml(found["scope"], who, found["rule"])


def text(account: Account) -> str:
    """An account whose numbers have names, as lines."""
    verdict = "allowed" if account["allowed"] else "denied"
    question = account["question"]
    if question == "message":
        lines = [f"{verdict}: {_message(account['message'])}"]
        ends = (("send", account["sender"]), ("receive", account["receiver"]))
        for half, end in ends:
            if account[half] is not None:
                lines += ["", f"{_end(end)} {_may(account[half])} {half} it"]
                lines += _decision(account[half])
    else:
        client = _end(account["client"])
        if question == "own":
            lines = [f"{verdict}: {client} as owner of {account['name']}", ""]
        else:
            lines = [f"{verdict}: {client} as a client of the bus", ""]
        lines += _decision(account[question])
        if lines[-1] == "":
            lines.pop()
    for note in account["notes"]:
        lines += ["", f"note: {note}"]
    return "\n".join(lines)


def _message(message: Account) -> str:
    what = [message["type"]]
    if message["error"]:
        what.append(message["error"])
    elif message["member"]:
        before = f"{message['interface']}." if message["interface"] else ""
        what.append(before + message["member"])
    elif message["interface"]:
        what.append(f"of {message['interface']}")
    if message["path"]:
        what.append(f"at {message['path']}")
    if message["destination"]:
        what.append(f"to {message['destination']}")
    else:
        what.append("to everybody who wants it")
    if message["fds"]:
        what.append(f"with {message['fds']} file descriptor{'s'[: message['fds'] > 1]}")
    if message["requested_reply"] is False:
        what.append("that nobody asked for")
    if message["eavesdrop"]:
        what.append("as somebody else gets it")
    return " ".join(what)


def _end(end: Account) -> str:
    """Who somebody is: a user and the names he has on the bus."""
    who = "an anonymous client" if end["uid"] is None else f"user {end['user']}"
    names = [name for name in (end["unique_name"], *end["names"]) if name]
    return f"{who} ({', '.join(names)})" if names else who


def _may(decision: Account) -> str:
    return "may" if decision["allowed"] else "may not"


def _decision(decision: Account) -> list[str]:
    lines = []
    if decision["decided_by"] is not None:
        lines.append(f"  {_rule(decision['decided_by'])}")
    else:
        lines.append("  no rule applies")
    if decision["overridden"]:
        lines.append("  which overrides, the latest first")
        lines += [f"    {_rule(rule)}" for rule in reversed(decision["overridden"])]
    if decision["wiped_out"]:
        lines.append("  rules before this blanket rule never count")
        lines.append(f"    {_rule(decision['wiped_out_by'])}")
        lines.append("  so these do not, the latest first")
        lines += [f"    {_rule(rule)}" for rule in reversed(decision["wiped_out"])]
    if not decision["allowed"]:
        lines += _remedy(decision["remedy"])
    return lines


def _remedy(remedy: Account | None) -> list[str]:
    if remedy is None:
        return ["  no rule would allow it"]
    lines = ["  this would allow it", f"    {remedy['policy']}"]
    if remedy["behind"] is not None:
        behind = remedy["behind"]
        lines.append(f"  if it is read after {behind['file']}:{behind['line']}")
    if remedy["scope"] in ("mandatory", "console", "no_console"):
        whom = {
            "mandatory": "everybody",
            "console": "all users at the console",
            "no_console": "all users who are not at the console",
        }[remedy["scope"]]
        lines.append(f"  no policy for one user can: this one holds for {whom}")
    return lines


def _rule(rule: Account) -> str:
    scope = scope_text(rule["scope"], rule["name"] or "")
    return f"{rule['file']}:{rule['line']}: {rule['rule']} ({scope})"
