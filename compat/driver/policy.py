"""org.jitney.Policy1: the bus explains the policy that is in force, which may not be the files'.

Invariant: an explanation changes nothing: neither the connections' policies nor what they remember
of their last decision. Root and the bus's own user alone may ask: with a long policy an answer
takes the bus as long as thousands of messages, and others wait meanwhile.

The interface is our own; dbus-daemon has none like it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jitney.broker.policy import NO_UID

from .. import wire
from ..errors import INVALID_ARGS, DBusError
from .bus import peer_of
from .table import DRIVER, Interface, Method

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jitney.broker.connection import Connection
    from jitney.broker.explain import ImaginedMessage
    from jitney.broker.message import Message

    from ..explanation import Account, End
    from .driver import Driver

_KEYS = {
    "sender": "s", "receiver": "s", "destination": "s", "path": "s", "interface": "s",
    "member": "s", "error": "s", "type": "s", "fds": "u", "requested_reply": "b",
    "eavesdrop": "b", "own": "s", "connect": "u",
}  # fmt: skip


def explain(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    (given,) = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)
    about = _checked(given)
    # Asked for once in a while, if at all: not worth being loaded by every bus.
    import json

    from ..explanation import BadQuestion

    try:
        if "connect" in about:
            account = _connecting(driver, about["connect"])
        else:
            account = _message_or_name(driver, conn, about)
    except BadQuestion as reason:
        raise DBusError(INVALID_ARGS, str(reason)) from None
    return wire.string(json.dumps(account))


def _checked(given: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    about = {}
    for key, (signature, value) in given.items():
        if key not in _KEYS:
            raise DBusError(INVALID_ARGS, f'Explain knows no "{key}"')
        if signature != _KEYS[key]:
            raise DBusError(INVALID_ARGS, f'"{key}" must be of type {_KEYS[key]}, not {signature}')
        about[key] = value
    return about


def _connecting(driver: Driver, uid: int) -> Account:
    from jitney.broker.explain import connect_blocks

    from ..config.names import user_groups
    from ..explanation import account_of_connecting

    groups = user_groups(uid)
    if groups is None and uid == driver.context.uid:
        groups = []  # as it is admitted
    blocks = connect_blocks(driver.front.policies)
    return account_of_connecting(blocks, uid, groups, driver.context.uid)


def _message_or_name(driver: Driver, conn: Connection, about: dict[str, Any]) -> Account:
    from .. import explanation

    sender: Connection | None = conn
    if "sender" in about:
        sender = peer_of(driver, about["sender"].encode(), "policy")
    if "own" in about:
        if sender is None:
            raise explanation.BadQuestion("the bus itself asks nobody for its name")
        name = explanation.name_in(about, "own")
        assert name is not None
        return explanation.account_of_owning(name, _end(driver, sender))
    note = ""
    receiver = None
    if "receiver" in about:
        receiver = peer_of(driver, about["receiver"].encode(), "policy")
        if "destination" not in about and not _is_broadcast(about):
            about["destination"] = about["receiver"]
    message = explanation.message_about(about)
    message.sender = sender.unique_name if sender is not None else DRIVER
    destination = message.destination
    if about.get("eavesdrop"):
        if receiver is None or destination is None:
            raise explanation.BadQuestion("eavesdropping takes a receiver and another destination")
        if driver.find(destination) is receiver:
            raise explanation.BadQuestion("who gets what was sent to it does not eavesdrop")
    elif destination is None:
        if receiver is None:
            raise explanation.BadQuestion("which receiver? A broadcast is for many")
    else:
        owner = driver.find(destination)
        to_bus = destination == DRIVER and receiver is None
        if "receiver" in about and not to_bus and (owner is None or owner is not receiver):
            shown = destination.decode()
            raise explanation.BadQuestion(f"{about['receiver']} does not own {shown}")
        if owner is None and not to_bus:
            note = (
                f"nobody owns {destination.decode()} now: this is what is asked before a service "
                "is started for it"
            )
        receiver = owner
    account = explanation.account_of_message(
        about, message, _end(driver, sender), _end(driver, receiver)
    )
    if note:
        account["notes"].append(note)
    account["notes"] += notes_on(driver.interfaces, message)
    if sender is not None and sender.endpoint is not None and sender.endpoint.filtering:
        account["notes"].append(_by_endpoint(sender, destination))
    return account


def _by_endpoint(sender: Connection, destination: bytes | None) -> str:
    endpoint = sender.endpoint
    about = (
        f"{sender.label} came in by endpoint {endpoint.name.decode()}, whose policy is asked first"
    )
    if destination is None:
        return about
    level = ("hides", "lets it see", "lets it talk to", "lets it own")[
        endpoint.level(sender, destination)
    ]
    return f"{about}: it {level} {destination.decode()}"


def notes_on(interfaces: Iterable[Interface], msg: ImaginedMessage) -> list[str]:
    """What the bus asks of a call to itself, besides the policy."""
    if msg.destination != DRIVER or msg.type != wire.CALL or msg.member is None:
        return []
    wanted = msg.interface
    return [
        f"the policy aside, {method.name} is for root and the bus's own user alone"
        for interface in interfaces
        for method in interface.methods
        if method.privileged and method.member == msg.member and wanted in (None, method.interface)
    ]


def _is_broadcast(about: Mapping[str, Any]) -> bool:
    return about.get("type") == "signal" and "destination" not in about


def _end(driver: Driver, conn: Connection | None) -> End:
    from jitney.broker.explain import blocks_in_force

    from ..explanation import End

    if conn is None:
        return End(None, None, NO_UID)
    uid = NO_UID if conn.user.uid is None else conn.user.uid
    return End(conn, blocks_in_force(driver.front.policies, conn.policy, uid), uid)


INTERFACE = Interface(
    "org.jitney.Policy1",
    [Method("Explain", "a{sv}", "s", explain, privileged=True)],
    feature=True,
)
