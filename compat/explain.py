"""`jitney explain`: which rule decides, which ones it overrides, and which one would allow it.

Invariant: the answer is on standard output and complaints are on standard error; the status is 0
for what is allowed, 1 for what is denied, 2 where the question or the configuration is no good.
Nothing is changed or created by asking.

Either files are asked, about users who need not be there, or a running bus is, about connections
that are: see `from_files()` and `from_bus()`.
"""

from __future__ import annotations

import argparse
import grp
import json
import os
import pwd
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import explanation, wording
from .config.names import FAILURES, at_console, settle, user_groups
from .explanation import DRIVER, BadQuestion, End
from .refusal import NoRefusal, question

if TYPE_CHECKING:
    from jitney.broker.policy import PolicySet

    from .explanation import Account

DENIED, UNUSABLE = 1, 2

_DESCRIPTION = """\
Explains a decision of a bus's policy: the rule that decides, the rules that it overrides, and a
rule that would allow what is denied. Asks configuration files (--config, --system, --session),
about users and names, or a running jitney (--address, --bus), about connections."""

_FILES_ONLY = (
    "sender_user", "sender_group", "sender_name", "sender_at_console", "receiver_user",
    "receiver_group", "receiver_name", "receiver_at_console",
)  # fmt: skip
_BUS_ONLY = ("sender", "receiver")
_MESSAGE_ONLY = (
    "receiver", "receiver_user", "receiver_name", "destination", "path", "interface", "member",
    "error", "type", "fds", "requested_reply", "broadcast", "eavesdrop",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these words; the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    live = bool(options.address or options.bus)
    try:
        _take_refusal(options, live)
    except NoRefusal as reason:
        parser.error(str(reason))
    wrong = _set(options, _FILES_ONLY if live else _BUS_ONLY)
    if wrong:
        where = "files, not a running bus" if live else "a running bus, not files"
        parser.error(f"--{wrong} is a question to {where}")
    if options.own or options.connect:
        wrong = _set(options, _MESSAGE_ONLY)
        if wrong:
            parser.error(f"--{wrong} is about messages, not about --own or --connect")
    try:
        account = (from_bus if live else from_files)(options)
    except BadQuestion as reason:
        print(f"jitney explain: {reason}", file=sys.stderr)
        return UNUSABLE
    wording.add_names(account)
    print(json.dumps(account, indent=2) if options.json else wording.text(account))
    return 0 if account["allowed"] else DENIED


def _take_refusal(options: argparse.Namespace, live: bool) -> None:
    """What a line of the log says, where the command line says nothing else."""
    if options.refusal is None:
        return
    text = sys.stdin.read() if options.refusal == "-" else options.refusal
    for key, value in question(text, live).items():
        if getattr(options, key) in (None, False, []):
            setattr(options, key, value)


def _set(options: argparse.Namespace, names: Sequence[str]) -> str:
    """The first of these options that was given, as it is written."""
    for name in names:
        if getattr(options, name) not in (None, False, []):
            return name.replace("_", "-")
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jitney explain", description=_DESCRIPTION, allow_abbrev=False
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--config", metavar="FILE", help="ask this configuration file")
    where.add_argument("--system", action="store_true", help="the files of the system bus")
    where.add_argument("--session", action="store_true", help="the files of the session bus")
    where.add_argument("--address", help="ask the bus that runs at this address")
    where.add_argument("--bus", choices=("system", "session"), help="the one that runs here")
    parser.add_argument("--json", action="store_true", help="the answer as JSON")

    parser.add_argument(
        "--refusal",
        metavar="LINE",
        help="a line of the bus's log, or an error's text, that tells of a refusal (- for standard "
        "input): the question is what it says, and what other options add",
    )

    message = parser.add_argument_group("the message")
    message.add_argument("--destination", metavar="NAME")
    message.add_argument("--path", metavar="PATH")
    message.add_argument("--interface", metavar="NAME")
    message.add_argument("--member", metavar="NAME")
    message.add_argument("--error", metavar="NAME", help="the error's name; it is a reply then")
    message.add_argument(
        "--type",
        choices=("method_call", "method_return", "error", "signal"),
        help="what can be told from the other options",
    )
    message.add_argument("--fds", type=int, metavar="N", help="with so many file descriptors")
    reply = message.add_mutually_exclusive_group()
    reply.add_argument(
        "--requested-reply",
        action="store_const",
        const=True,
        help="the receiver waits for this reply (if nothing else is said)",
    )
    reply.add_argument(
        "--unrequested", dest="requested_reply", action="store_const", const=False,
        help="the receiver waits for no such reply",
    )  # fmt: skip
    message.add_argument("--broadcast", action="store_true", help="a signal to all who want it")
    message.add_argument(
        "--eavesdrop", action="store_true", help="the receiver is not the destination"
    )

    other = parser.add_argument_group("instead of a message")
    instead = other.add_mutually_exclusive_group()
    instead.add_argument("--own", metavar="NAME", help="may the sender own this name")
    instead.add_argument("--connect", action="store_true", help="may the sender connect")

    people = parser.add_argument_group("who, for files")
    for end, names in (("sender", "the bus itself is org.freedesktop.DBus"),
                       ("receiver", "the destination")):  # fmt: skip
        people.add_argument(f"--{end}-user", metavar="USER", help="name or uid")
        people.add_argument(
            f"--{end}-group", f"--{end}-groups", metavar="GROUP", action="append", default=[],
            help="these instead of the user's own; may be repeated, or joined by commas",
        )  # fmt: skip
        people.add_argument(
            f"--{end}-name", metavar="NAME", action="append", default=[],
            help=f"a name that it owns; may be repeated ({names})",
        )  # fmt: skip
        people.add_argument(
            f"--{end}-at-console", choices=("yes", "no"), help="instead of what logind says"
        )
    connections = parser.add_argument_group("who, for a running bus")
    connections.add_argument("--sender", metavar="NAME", help="unique or other name")
    connections.add_argument("--receiver", metavar="NAME", help="the destination's owner")
    return parser


def _about(options: argparse.Namespace) -> dict[str, Any]:
    """The question, with what was said and nothing else."""
    about = {
        key: getattr(options, key)
        for key in ("destination", "path", "interface", "member", "error", "type", "fds",
                    "requested_reply", "own")
        if getattr(options, key) is not None
    }  # fmt: skip
    if options.eavesdrop:
        about["eavesdrop"] = True
    if options.broadcast:
        if "destination" in about or about.get("type", "signal") != "signal":
            raise BadQuestion("a broadcast is a signal without a destination")
        about["type"] = "signal"
    return about


# A running bus


def from_bus(options: argparse.Namespace) -> Account:
    """Asks the bus, whose policy may be older than the files, about those who are on it."""
    from .client import Client, NoBus, standard_address
    from .errors import ACCESS_DENIED, UNKNOWN_INTERFACE, UNKNOWN_METHOD, DBusError

    about = _about(options)
    for key in _BUS_ONLY:
        if getattr(options, key) is not None:
            about[key] = getattr(options, key)
    try:
        address = options.address or standard_address(options.bus)
        with Client(address) as client:
            if options.connect:
                name = options.sender or client.unique_name
                about = {"connect": client.call("GetConnectionUnixUser", "s", name)[0]}
            given = {key: (_signature(value), value) for key, value in about.items()}
            answer = client.call("Explain", "a{sv}", given, interface=b"org.jitney.Policy1")
    except NoBus as reason:
        raise BadQuestion(str(reason)) from None
    except (OSError, ValueError) as error:
        raise BadQuestion(f"the bus does not answer as it should: {error}") from None
    except DBusError as error:
        text = error.text
        if error.name in (UNKNOWN_INTERFACE, UNKNOWN_METHOD):
            text = "this bus cannot explain itself: it is no jitney, or an old one"
        elif error.name == ACCESS_DENIED and text.startswith("Rejected"):
            text += (
                "\nThe bus's policy does not let you ask. This in its configuration would:\n"
                '  <allow send_destination="org.freedesktop.DBus"'
                ' send_interface="org.jitney.Policy1"/>'
            )
        raise BadQuestion(text) from None
    account: Account = json.loads(answer[0])
    return account


def _signature(value: object) -> str:
    return "b" if isinstance(value, bool) else "u" if isinstance(value, int) else "s"


# Files


class Person:
    """A user as the command line names him."""

    def __init__(self, name: str, uid: int, gids: Sequence[int] | None) -> None:
        self.name = name
        self.uid = uid
        self.gids = gids


def from_files(options: argparse.Namespace) -> Account:
    """Reads the configuration and asks it about users and names."""
    from jitney.broker.policy import PolicySet

    from .cli import standard_config
    from .config import ConfigError, load

    about = _about(options)
    path = options.config or standard_config("system" if options.system else "session")
    try:
        config = load(path, create_dirs=False)
    except ConfigError as error:
        raise BadQuestion(str(error)) from None
    policies = PolicySet(config.policy_spec())
    skipped = [
        f"{warning.file}:{warning.line}: {warning.text}"
        for warning in config.warnings
        if warning.text.startswith("Encountered error")
    ]
    sender = _person(options.sender_user, options.sender_group, policies)
    if options.connect:
        from jitney.broker.explain import connect_blocks

        bus_uid = os.geteuid() if config.user is None else _person(config.user, [], policies).uid
        account = explanation.account_of_connecting(
            connect_blocks(policies), sender.uid, sender.gids, bus_uid, sender.name
        )
    elif options.own:
        name = explanation.name_in(about, "own")
        assert name is not None
        end = _end(policies, sender, [], options.sender_at_console)
        account = explanation.account_of_owning(name, end)
    else:
        account = _message(options, about, policies, sender)
    account["notes"] += skipped
    return account


def _message(
    options: argparse.Namespace, about: dict[str, Any], policies: PolicySet, sender: Person
) -> Account:
    from jitney.broker.policy import NO_UID

    message = explanation.message_about(about)
    if about.get("eavesdrop") and message.destination is None:
        raise BadQuestion("eavesdropping is about messages with a destination")
    notes: list[str] = []
    if DRIVER in options.sender_name:
        message.sender = DRIVER.encode()
        from_end = End(None, None, NO_UID)
    else:
        from_end = _end(policies, sender, options.sender_name, options.sender_at_console)
    destination = about.get("destination")
    if destination == DRIVER and not about.get("eavesdrop"):
        from .driver import INTERFACES
        from .driver.policy import notes_on

        to_end = End(None, None, NO_UID)
        notes += notes_on(INTERFACES, message)
    else:
        names = list(options.receiver_name)
        # A unique name comes beside others, a well-known one is taken for the only one.
        missing = destination is not None and (not names or destination.startswith(":"))
        if missing and not about.get("eavesdrop"):
            names.append(destination)
        if options.receiver_user is None:
            receiver, why = _likely_owner(names, policies, sender)
            notes.append(why)
        else:
            receiver = _person(options.receiver_user, options.receiver_group, policies)
        to_end = _end(policies, receiver, names, options.receiver_at_console)
    account = explanation.account_of_message(about, message, from_end, to_end)
    account["notes"] += notes
    return account


def _end(policies: PolicySet, person: Person, names: Sequence[str], console: str | None) -> End:
    from jitney.broker.explain import ImaginedConnection, blocks_for

    conn = ImaginedConnection()
    for name in names:
        raw = explanation.name_in({"destination": name}, "destination")
        assert raw is not None
        if raw[:1] == b":":
            conn.unique_name = raw
        else:
            conn.names[raw] = None
    there = at_console(person.uid) if console is None else console == "yes"
    return End(conn, blocks_for(policies, person.uid, person.gids or [], there), person.uid)


def _likely_owner(names: Sequence[str], policies: PolicySet, sender: Person) -> tuple[Person, str]:
    """Who the receiver is if nobody said so, and how that was found out."""
    from jitney.broker.policy_rules import OwnRule

    wanted = [name.encode() for name in names if not name.startswith(":")]
    if not wanted:
        return sender, "no --receiver-user was given: taken for the sender's user"
    shown = names[0]
    owners = [
        uid
        for uid, rules in policies.by_uid.items()
        if all(
            any(
                isinstance(rule, OwnRule) and rule.allow and rule.name is not None
                and rule.fits(name)
                for rule in rules
            )
            and policies.client(uid, user_groups(uid) or [], False).may_own(name)
            for name in wanted
        )
    ]  # fmt: skip
    if len(owners) == 1:
        person = _person(str(owners[0]), [], policies)
        return person, f"no --receiver-user was given: only {person.name} has a rule to own {shown}"
    mine = policies.client(sender.uid, sender.gids or [], at_console(sender.uid))
    if all(mine.may_own(name) for name in wanted):
        return sender, "no --receiver-user was given: taken for the sender's user"
    root = _person("0", [], policies)
    why = "several users have" if owners else "nobody has"
    return (
        root,
        f"no --receiver-user was given: taken for {root.name}, as {why} a rule to own {shown}",
    )


def _person(user: str | None, groups: Sequence[str], policies: PolicySet) -> Person:
    """Looks a user up, and tells the policy, which may wait for him. Raises BadQuestion."""
    uid = os.getuid()
    if user is not None:
        try:
            uid = int(user) if user.isascii() and user.isdigit() else pwd.getpwnam(user).pw_uid
        except FAILURES:
            raise BadQuestion(f'there is no user "{user}"') from None
        if uid >= 0xFFFFFFFF:
            raise BadQuestion(f'there is no user "{user}"')
    gids: Sequence[int] | None = user_groups(uid)
    if groups:
        gids = [_gid(group) for text in groups for group in text.split(",")]
    settle(policies, uid, gids or [])
    return Person(wording.user_name(uid), uid, gids)


def _gid(group: str) -> int:
    try:
        return int(group) if group.isascii() and group.isdigit() else grp.getgrnam(group).gr_gid
    except FAILURES:
        raise BadQuestion(f'there is no group "{group}"') from None
