"""Explanation: a decision of the policy as plain data, the same for a running bus and for files.

Invariant: what is made here is what JSON knows: dicts, lists, texts, numbers, booleans and None.
Users and groups are numbers here; who wants names looks them up where waiting hurts nobody.

The keys of a question (`about`), all of them optional, are those of `org.jitney.Policy1.Explain`:
`type`, `destination`, `path`, `interface`, `member`, `error`, `fds`, `requested_reply`,
`eavesdrop`, `own`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jitney.broker import explain as core
from jitney.broker.policy import NO_UID
from jitney.broker.policy_rules import MAX_FDS, ConnectRule, OwnRule
from jitney.broker.syntax import is_bus_name, is_interface, is_member, is_path

from .config.render import TYPES, rule_xml

if TYPE_CHECKING:
    from jitney.broker.explain import Blocks, Decision, ImaginedMessage, Placed, Remedy
    from jitney.broker.policy_rules import Connection

    Account = dict[str, Any]

DRIVER = "org.freedesktop.DBus"

_CHECKS: dict[str, tuple[Callable[[bytes], bool], str]] = {
    "destination": (is_bus_name, "bus name"),
    "path": (is_path, "object path"),
    "interface": (is_interface, "interface name"),
    "member": (is_member, "member name"),
    "error": (is_interface, "error name"),
    "own": (is_bus_name, "bus name"),
}


_ALWAYS = ("path", "member")
"""What a call or signal cannot be without."""


class BadQuestion(Exception):
    """A question that cannot be asked; the text says why."""


def message_about(about: Mapping[str, Any]) -> ImaginedMessage:
    """The message that the question is about. Raises BadQuestion."""
    text = {name: name_in(about, name) for name in ("destination", "path", "interface", "member")}
    error = name_in(about, "error")
    otherwise = "error" if error else "method_call" if text["destination"] else "signal"
    type = about.get("type", otherwise)
    if type not in TYPES[1:]:
        raise BadQuestion(f'"{type}" is no message type: it is one of {", ".join(TYPES[1:])}')
    number = TYPES.index(type)
    if text["destination"] is None and number != core.SIGNAL:
        raise BadQuestion(f"a {type} needs a destination: only signals are for everybody")
    if error is not None and number != core.ERROR:
        raise BadQuestion(f"a {type} has no error name")
    if number in (core.CALL, core.SIGNAL):
        # These have both, always: what is not said is not absent, but of no matter.
        for name in _ALWAYS:
            text[name] = text[name] or core.UNNAMED
    fds = about.get("fds", 0)
    if not 0 <= fds <= MAX_FDS:
        raise BadQuestion(f"no message has {fds} file descriptors")
    return core.ImaginedMessage(
        type=number,
        path=text["path"],
        interface=text["interface"],
        member=text["member"],
        error_name=error,
        destination=text["destination"],
        reply_serial=1 if number in (core.RETURN, core.ERROR) else 0,
        n_fds=fds,
    )


def name_in(about: Mapping[str, Any], key: str) -> bytes | None:
    """A name out of the question, as messages carry it. Raises BadQuestion."""
    value = about.get(key)
    if value is None:
        return None
    check, what = _CHECKS[key]
    try:
        raw: bytes = value.encode()
    except UnicodeEncodeError:
        raise BadQuestion(f"{value!r} is no {what}") from None
    if not check(raw):
        raise BadQuestion(f'"{value}" is no {what}')
    return raw


def is_requested(about: Mapping[str, Any], msg: ImaginedMessage) -> bool:
    """Whether it is a reply that somebody waits for, as replies are unless it is said."""
    return msg.reply_serial != 0 and bool(about.get("requested_reply", True))


class End:
    """One end of a message: how the policy sees it, and what holds for it.

    `conn` None is the bus itself, whom no policy binds; so is the service that would have to be
    started. `uid` is NO_UID for an anonymous client."""

    def __init__(self, conn: Connection | None, blocks: Blocks | None, uid: int) -> None:
        self.conn = conn
        self.blocks = blocks
        self.uid = uid

    def account(self) -> Account:
        conn = self.conn
        return {
            "uid": None if self.uid == NO_UID else self.uid,
            "unique_name": conn.unique_name.decode() if conn is not None else "",
            "names": [name.decode() for name in conn.names] if conn is not None else [],
        }


def account_of_message(
    about: Mapping[str, Any], msg: ImaginedMessage, sender: End, receiver: End
) -> Account:
    """Both halves of a message's way, and what comes of them."""
    requested = is_requested(about, msg)
    eavesdropping = bool(about.get("eavesdrop"))
    found: Account = {
        "question": "message",
        "allowed": True,
        "message": shown_message(msg, requested, eavesdropping),
        "sender": sender.account(),
        "receiver": receiver.account(),
        "send": None,
        "receive": None,
        "notes": [],
    }
    if eavesdropping:
        requested = False  # the reply is somebody else's
    missing = [name for name in _ALWAYS if getattr(msg, name) == core.UNNAMED]
    absent: Account = dict.fromkeys(missing)
    blurred = replace(msg, **absent)
    left_out = False
    if sender.blocks is not None:
        ask = partial(_ask_send, msg, receiver.conn, requested)
        denied = ask(sender.blocks)
        left_out |= denied != core.explain_send(sender.blocks, blurred, receiver.conn, requested)
        name = core.well_known(None if eavesdropping else msg.destination, receiver.conn)
        rule = core.rule_to_send(msg, name, requested)
        found["send"] = account_of(denied, _remedy(sender.blocks, denied, rule, ask))
    if receiver.blocks is not None:
        ask = partial(_ask_receive, msg, sender.conn, eavesdropping, requested)
        denied = ask(receiver.blocks)
        left_out |= denied != _ask_receive(
            blurred, sender.conn, eavesdropping, requested, receiver.blocks
        )
        name = core.well_known(msg.sender, sender.conn)
        rule = core.rule_to_receive(msg, name, eavesdropping, requested)
        found["receive"] = account_of(denied, _remedy(receiver.blocks, denied, rule, ask))
    if left_out:
        found["notes"].append(
            f"no {' and no '.join(missing)} was given: rules that name one do not count"
        )
    found["allowed"] = all(found[half] is None or found[half]["allowed"] for half in HALVES)
    return found


HALVES = ("send", "receive")


def account_of_owning(name: bytes, client: End) -> Account:
    """Whether the client may own a name."""
    assert client.blocks is not None
    ask = partial(_ask_own, name)
    denied = ask(client.blocks)
    found = account_of(denied, _remedy(client.blocks, denied, OwnRule(True, name), ask))
    return {
        "question": "own",
        "allowed": denied.allowed,
        "name": name.decode(),
        "client": client.account(),
        "own": found,
        "notes": [],
    }


def account_of_connecting(
    blocks: Blocks, uid: int, gids: Sequence[int] | None, bus_uid: int, name: str = ""
) -> Account:
    """Whether a user may connect; `gids` None: nobody whom the user database knows."""
    ask = partial(_ask_connect, uid, gids, bus_uid)
    denied = ask(blocks)
    rule = ConnectRule(True, uid, False, name.encode())
    notes = []
    if gids is None:
        notes.append("the user database does not know this user, which is a no")
    elif denied.decider is None:
        notes.append("no rule is about it: the bus's own user may connect, nobody else")
    return {
        "question": "connect",
        "allowed": denied.allowed,
        "client": {"uid": uid, "unique_name": "", "names": []},
        "connect": account_of(denied, _remedy(blocks, denied, rule, ask)),
        "notes": notes,
    }


def _ask_send(msg: Any, receiver: Any, requested: bool, blocks: Blocks) -> Decision:
    return core.explain_send(blocks, msg, receiver, requested)


def _ask_receive(
    msg: Any, sender: Any, eavesdropping: bool, requested: bool, blocks: Blocks
) -> Decision:
    return core.explain_receive(blocks, msg, sender, eavesdropping, requested)


def _ask_own(name: bytes, blocks: Blocks) -> Decision:
    return core.explain_own(blocks, name)


def _ask_connect(uid: int, gids: Sequence[int] | None, bus_uid: int, blocks: Blocks) -> Decision:
    return core.explain_connect(blocks, uid, gids, bus_uid)


def _remedy(
    blocks: Blocks, denied: Decision, rule: Any, ask: Callable[[Blocks], Decision]
) -> Remedy | None:
    return None if denied.allowed else core.remedy(blocks, denied, rule, ask)


# One decision


def account_of(decision: Decision, remedy: Remedy | None) -> Account:
    """A decision's rules in the order in which they apply, and what would turn it."""
    found: Account = {
        "allowed": decision.allowed,
        "decided_by": _placed(decision.decider),
        "overridden": [_placed(placed) for placed in decision.overridden],
        "wiped_out": [_placed(placed) for placed in decision.wiped],
        "wiped_out_by": _placed(decision.blanket) if decision.wiped else None,
        "remedy": None,
    }
    if remedy is not None:
        found["remedy"] = {
            "scope": remedy.scope,
            "id": _id(remedy.scope, remedy.id),
            "rule": rule_xml(remedy.rule),
            "behind": _placed(remedy.behind),
        }
    return found


def _placed(placed: Placed | None) -> Account | None:
    if placed is None:
        return None
    rule = placed.rule
    return {
        "file": rule.file,
        "line": rule.line,
        "rule": rule_xml(rule),
        "allow": bool(rule.allow),
        "scope": placed.scope,
        "id": _id(placed.scope, placed.id),
    }


def _id(scope: str, id: int) -> int | None:
    return id if scope in ("user", "group") else None


def shown_message(msg: ImaginedMessage, requested: bool, eavesdropping: bool) -> Account:
    """What the message looks like; what it does not have is None."""

    def text(value: bytes | None) -> str | None:
        return None if value is None or value == core.UNNAMED else value.decode()

    return {
        "type": TYPES[msg.type],
        "destination": text(msg.destination),
        "path": text(msg.path),
        "interface": text(msg.interface),
        "member": text(msg.member),
        "error": text(msg.error_name),
        "fds": msg.n_fds,
        "requested_reply": requested if msg.reply_serial else None,
        "eavesdrop": eavesdropping,
    }
