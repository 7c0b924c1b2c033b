"""Refusal: a line of the log, or an error's text, that says what was refused: the question in it.

Invariant: what is found is what the line says; nothing is made up. Both are dbus-daemon's
sentences, so lines of its logs do as well.
"""

from __future__ import annotations

import re
from typing import Any

_UNSET = "(unset)"
_END = (
    r" \((?:uid=(?P<{0}_uid>\d+)|bus|)(?: pid=\d+)?"
    r'(?: comm=".*?"(?=\)| label=))?(?: label="[^"]*")?\)'
)
_MESSAGE = re.compile(
    r'(?P<kind>Rejected|Would reject)[^;"]*; type="(?P<type>[^"]*)", sender="(?P<sender>[^"]*)"'
    + _END.format("sender")
    + r' interface="(?P<interface>[^"]*)" member="(?P<member>[^"]*)"'
    + r' error name="(?P<error>[^"]*)" requested_reply="(?P<requested>[01])"'
    + r' destination="(?P<destination>[^"]*)"'
    + _END.format("receiver")
)
_OWN = re.compile(
    r'Connection "(?P<sender>[^"]*)" is not allowed to own the service "(?P<own>[^"]*)"'
)
_CONNECT = re.compile(r"Rejected connection of user (?P<uid>\d+)")


class NoRefusal(Exception):
    """The text says of nothing that it was refused for a policy."""


def question(text: str, live: bool) -> dict[str, Any]:
    """What to ask, by the names of the options of `jitney explain`, for a refusal that is told in
    `text`; `live`: a running bus is asked, where those whom it names may still be. Raises
    NoRefusal."""
    found = _MESSAGE.search(text)
    if found is not None:
        return _about_message(found, live)
    found = _OWN.search(text)
    if found is not None:
        asked = {"own": found["own"]}
        return asked | {"sender": found["sender"]} if live else asked
    found = _CONNECT.search(text)
    if found is not None and not live:
        return {"connect": True, "sender_user": found["uid"]}
    raise NoRefusal("there is no refused message in it, as dbus-daemon or jitney would tell it")


def _about_message(found: re.Match[str], live: bool) -> dict[str, Any]:
    asked: dict[str, Any] = {
        key: found[key]
        for key in ("type", "interface", "member", "error", "destination")
        if found[key] != _UNSET
    }
    if found["type"] in ("method_return", "error"):
        asked["requested_reply"] = found["requested"] == "1"
    if live:
        asked["sender"] = found["sender"]
    else:
        for end in ("sender", "receiver"):
            if found[f"{end}_uid"] is not None:
                asked[f"{end}_user"] = found[f"{end}_uid"]
        if found["sender"] == _UNSET:
            asked["sender_name"] = ["org.freedesktop.DBus"]
    return asked
