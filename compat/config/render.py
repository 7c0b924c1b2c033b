"""Render: rules and policies back into the XML that they are written in.

Invariant: `make_rule()` reads what `rule_xml()` writes as the same rule. It need not be the same
text: `send_destination="*"` and no destination at all are one to a rule.

Nothing here needs the models, so that a running bus can quote its policy.
"""

from __future__ import annotations

from typing import Any

from jitney.broker.policy_rules import ANYBODY, EITHER, MAX_FDS, YES, MessageRule, OwnRule

TYPES = ("", "method_call", "method_return", "error", "signal")
"""Names of the message types; the first stands for any."""

_ESCAPES = {"&": "&amp;", "<": "&lt;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}


def rule_xml(rule: Any) -> str:
    """`<allow .../>` or `<deny .../>` for a rule of `jitney.broker.policy_rules`."""
    if isinstance(rule, MessageRule):
        attributes = _message(rule)
    elif isinstance(rule, OwnRule):
        name = "*" if rule.name is None else rule.name.decode()
        attributes = {"own_prefix" if rule.prefix else "own": name}
    else:
        who = "*" if rule.id == ANYBODY else rule.name.decode() or str(rule.id)
        attributes = {"group" if rule.group else "user": who}
    return element("allow" if rule.allow else "deny", attributes)


def element(name: str, attributes: dict[str, str]) -> str:
    """An element without content."""
    written = "".join(f' {key}="{_escaped(value)}"' for key, value in attributes.items())
    return f"<{name}{written}/>"


def policy_xml(scope: str, who: str, inside: str) -> str:
    """`<policy ...>` around something; `who` is the user or group of those scopes."""
    if scope in ("user", "group"):
        condition = f'{scope}="{_escaped(who)}"'
    elif scope in ("console", "no_console"):
        condition = f'at_console="{"true" if scope == "console" else "false"}"'
    else:
        condition = f'context="{scope}"'
    return f"<policy {condition}>{inside}</policy>"


def scope_text(scope: str, who: str) -> str:
    """A scope in a word or two."""
    if scope in ("user", "group"):
        return f"{scope} {who}"
    return {"console": "at_console", "no_console": "not at_console"}.get(scope, scope)


def _message(rule: MessageRule) -> dict[str, str]:
    side = "send" if rule.send else "receive"
    peer = "send_destination" if rule.send else "receive_sender"
    found: dict[str, str] = {}
    if rule.peer is not None:
        found[peer] = rule.peer.decode()
    if rule.prefix is not None:
        found["send_destination_prefix"] = rule.prefix.decode()
    if rule.type:
        found[f"{side}_type"] = TYPES[rule.type]
    for name in ("path", "interface", "member", "error"):
        value = getattr(rule, name)
        if name == "interface" and value is None and rule.member is not None and not rule.path:
            value = b"*"  # no member without one of them
        if value is not None:
            found[f"{side}_{name}"] = value.decode()
    if rule.broadcast != EITHER:
        found["send_broadcast"] = _flag(rule.broadcast == YES)
    if rule.requested_reply != rule.allow:
        found[f"{side}_requested_reply"] = _flag(rule.requested_reply)
    if not found and (rule.send or not rule.eavesdrop):
        # Something has to say what it is about; eavesdrop alone is about receiving.
        found[peer] = "*"
    if rule.eavesdrop:
        found["eavesdrop"] = "true"
    if rule.min_fds > 0:
        found["min_fds"] = str(rule.min_fds)
    if rule.max_fds < MAX_FDS:
        found["max_fds"] = str(rule.max_fds)
    if rule.log:
        found["log"] = "true"
    return found


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _escaped(text: str) -> str:
    return "".join([_ESCAPES.get(char, char) for char in text])
