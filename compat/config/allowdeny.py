"""`<allow>` and `<deny>`: from attributes to a rule.

Invariant: a rule is made only of attributes that can mean something together; what dbus-daemon
refuses is refused here, in the same order of checks and the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from jitney.broker.policy_rules import MAX_FDS

from .cnumber import leading_int
from .model import MESSAGE_TYPES, ConnectRule, MessageRule, MessageType, OwnRule
from .users import UserDatabase

SEND = (
    "send_destination",
    "send_destination_prefix",
    "send_broadcast",
    "send_path",
    "send_type",
    "send_interface",
    "send_member",
    "send_error",
    "send_requested_reply",
)
RECEIVE = (
    "receive_sender",
    "receive_path",
    "receive_type",
    "receive_interface",
    "receive_member",
    "receive_error",
    "receive_requested_reply",
)
MODIFIERS = ("eavesdrop", "max_fds", "min_fds")
ALONE = ("own", "own_prefix", "user", "group")

ATTRIBUTES = frozenset((*SEND, *RECEIVE, *MODIFIERS, *ALONE, "log"))

ANY = "*"

Rule = MessageRule | OwnRule | ConnectRule


class BadRule(Exception):
    """The text of a ConfigError, from where the line is not known."""


def make_rule(
    element: str, given: Mapping[str, str], file: str, line: int, users: UserDatabase
) -> Rule:
    """The rule that `<element given...>` stands for, `element` being "allow" or "deny".

    Raises BadRule. All attributes of `given` are known ones."""
    sends = any(name in given for name in SEND)
    # <allow eavesdrop="true"/> is short for <allow receive_sender="*" eavesdrop="true"/>.
    receives = any(name in given for name in RECEIVE) or (not sends and "eavesdrop" in given)
    _check_combination(element, given, sends, receives)
    common: dict[str, Any] = {"allow": element == "allow", "file": file, "line": line}
    if sends or receives:
        return _message_rule("send" if sends else "receive", given, common)
    if "own" in given:
        return OwnRule(name=_unless_any(given["own"]), **common)
    if "own_prefix" in given:
        return OwnRule(name=given["own_prefix"], prefix=True, **common)
    if "user" in given:
        who = None if given["user"] == ANY else users.user(given["user"])
        return ConnectRule(group=False, who=who, **common)
    who = None if given["group"] == ANY else users.group(given["group"])
    return ConnectRule(group=True, who=who, **common)


def _check_combination(element: str, given: Mapping[str, str], sends: bool, receives: bool) -> None:
    if not (sends or receives or any(name in given for name in ALONE)):
        raise BadRule(f"Element <{element}> must have one or more attributes")
    for side in ("send", "receive"):
        if f"{side}_member" in given and not (
            f"{side}_interface" in given or f"{side}_path" in given
        ):
            raise BadRule(
                f"On element <{element}>, if you specify a member you must specify an interface or "
                "a path. Keep in mind that not all messages have an interface field."
            )
    combined = f"Invalid combination of attributes on element <{element}>: "
    about_messages = sends or receives or any(name in given for name in MODIFIERS)
    if about_messages + sum(name in given for name in ALONE) > 1:
        raise BadRule(
            f"{combined}own, own_prefix, user, group and the message-related attributes cannot be "
            "combined"
        )
    if sends and receives:
        raise BadRule(f"{combined}send and receive attributes cannot be combined")
    if "send_error" in given and ("send_member" in given or "send_interface" in given):
        raise BadRule(f"{combined}send_error cannot be combined with send_member or send_interface")
    if "send_destination" in given and "send_destination_prefix" in given:
        raise BadRule(f"{combined}send_destination cannot be combined with send_destination_prefix")
    if "receive_error" in given and ("receive_member" in given or "receive_interface" in given):
        raise BadRule(
            f"{combined}receive_error cannot be combined with receive_member or receive_interface"
        )


def _message_rule(side: str, given: Mapping[str, str], common: dict[str, Any]) -> MessageRule:
    send = side == "send"
    type = _unless_any(given.get(f"{side}_type"))
    if type is not None and type not in MESSAGE_TYPES:
        raise BadRule(f'Bad message type "{type}"')
    # dbus-daemon swaps name and value in some of these texts; it means to say this.
    eavesdrop = _flag(given, "eavesdrop")
    broadcast = _flag(given, "send_broadcast")
    peer = _unless_any(given.get("send_destination" if send else "receive_sender"))
    if send and broadcast and peer is not None:
        raise BadRule(
            f'Rule with send_broadcast="true" and send_destination="{peer}" cannot match anything'
        )
    requested_reply = _flag(given, f"{side}_requested_reply")
    if requested_reply is None:
        # An allow is for replies that were requested, a deny for those that were not.
        requested_reply = common["allow"]
    return MessageRule(
        send=send,
        type=cast(MessageType | None, type),
        path=_unless_any(given.get(f"{side}_path")),
        interface=_unless_any(given.get(f"{side}_interface")),
        member=_unless_any(given.get(f"{side}_member")),
        error=_unless_any(given.get(f"{side}_error")),
        peer=peer,
        prefix=given.get("send_destination_prefix"),
        broadcast=broadcast,
        requested_reply=requested_reply,
        eavesdrop=bool(eavesdrop),
        max_fds=_fds(given, "max_fds", MAX_FDS),
        min_fds=_fds(given, "min_fds", 0),
        log=send and given.get("log") == "true",
        **common,
    )


def _unless_any(value: str | None) -> str | None:
    return None if value == ANY else value


def _flag(given: Mapping[str, str], name: str) -> bool | None:
    value = given.get(name)
    if value is None:
        return None
    if value not in ("true", "false"):
        raise BadRule(f'Bad value "{value}" for {name} attribute, must be true or false')
    return value == "true"


def _fds(given: Mapping[str, str], name: str, otherwise: int) -> int:
    value = given.get(name)
    if value is None:
        return otherwise
    number = leading_int(value)
    if number is None or not 0 <= number[0] <= MAX_FDS:
        raise BadRule(
            f'Bad value "{value}" for {name} attribute, must be an integer in range 0 to '
            f"{MAX_FDS} inclusive"
        )
    return number[0]
