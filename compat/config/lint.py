"""Lint: what is well-formed and accepted in a configuration file, and yet likely a mistake.

Invariant: a tag that lintian or rpmlint knows never says more here than it does there: it may be
narrower, and `TAGS` says where. Tags of our own begin with `jitney-`. Nothing is reported that the
bus itself complains about.

lintian's tags are those of its check desktop/dbus, rpmlint's those of its DBusPolicyCheck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from jitney.broker.syntax import is_bus_name, is_interface, is_member, is_namespace, is_path

from . import overridden
from .allowdeny import ANY
from .cnumber import leading_int
from .model import Config
from .render import rule_xml
from .written import WrittenFile, WrittenRule

TAGS = {
    "dbus-policy-at-console": "lintian: a policy for at_console=true",
    "dbus-policy-excessively-broad": "lintian: an allow of sending that names no destination "
    "and no interface (org.freedesktop.DBus.Properties counts as none)",
    "dbus-policy-without-send-destination": "lintian: a rule about sending that names no "
    "destination; a send_destination_prefix, which lintian does not know, is one here",
    "dbus-session-service-wrong-name": "lintian: a service file not named after its service",
    "dbus-system-service-wrong-name": "lintian: the same for the system bus",
    "dbus-policy-allow-receive": "rpmlint: an allow with receive_sender or receive_interface; here "
    "only in files that deny no receiving",
    "dbus-policy-allow-wildcard": "rpmlint: an allow with a send_ attribute, send_member aside, "
    "that is or has a *",
    "dbus-policy-allow-without-destination": "rpmlint: an allow with send_interface, send_member "
    "or send_path and no destination; a send_destination_prefix is one here",
    "dbus-policy-deny-without-destination": "rpmlint: a deny with send_interface and no "
    "destination; a send_destination_prefix is one here",
    "dbus-policy-missing-allow": "rpmlint: no allow of sending to anybody; here only where "
    "somebody is allowed to own a name",
    "jitney-at-console": "a policy for at_console=false, as deprecated as that for true",
    "jitney-bad-name": "a name, path, interface or member that no message can have",
    "jitney-listen-in-fragment": "a fragment adds an address to every bus that reads it",
    "jitney-member-without-interface": "a member of whatever interface, as only a path is named",
    "jitney-rule-decides-replies-only": "a later rule overrides this one, but for replies, which "
    "an allow means if they were requested and a deny if they were not",
    "jitney-rule-never-decides": "a later rule fits whatever this one fits, or wipes it out",
    "jitney-rule-never-fits": "a rule whose conditions exclude each other",
    "jitney-unique-name": "a unique name, which belongs to somebody else after the next start",
    "jitney-unknown-group": "a group that the user database does not know",
    "jitney-unknown-user": "a user whom the user database does not know",
}
"""Every tag: where it is from and what it is about."""

_PROPERTIES = "org.freedesktop.DBus.Properties"


class Finding(NamedTuple):
    """Something to be said about a line of a file. `kind` is "error", "warning" or "lint"; only
    lints have a tag."""

    file: str
    line: int
    kind: str
    tag: str | None
    text: str


def _lint(file: WrittenFile, line: int, tag: str, text: str) -> Finding:
    return Finding(file.path, line, "lint", tag, text)


def of_file(file: WrittenFile, *, packaged: bool, fragment: bool) -> Iterator[Finding]:
    """Lints of one file as it is written. `packaged`: it is one of those that packages bring, for
    which lintian and rpmlint have rules; `fragment`: other files say where the bus listens."""
    if packaged:
        yield from _lintian(file)
        # rpmlint does not look at session buses: there all is allowed.
        if "session.d" not in file.path.split("/"):
            yield from _rpmlint(file)
    for policy in file.policies:
        if policy.attributes.get("at_console") == "false":
            yield _lint(
                file, policy.line, "jitney-at-console",
                'at_console is deprecated, be it "true" or "false"',
            )  # fmt: skip
    if fragment:
        for line in file.listens:
            yield _lint(
                file, line, "jitney-listen-in-fragment",
                "<listen> in a fragment adds an address to every bus that reads it",
            )  # fmt: skip
    for rule in file.rules:
        yield from _names(file, rule)
        yield from _contradictions(file, rule)


def of_policy(config: Config) -> Iterator[Finding]:
    """Lints of all rules together."""
    for rule, by, wiped, but_replies in overridden.find(config.policy_spec()):
        where = f"line {by.line}" if by.file == rule.file else f"{by.file}:{by.line}"
        what = rule_xml(by)
        if but_replies:
            yield Finding(
                rule.file, rule.line, "lint", "jitney-rule-decides-replies-only",
                f"{rule_xml(rule)} decides about replies alone: {what} in {where} overrides it for "
                "everything else",
            )  # fmt: skip
            continue
        if wiped:
            reason = f"the blanket rule {what} in {where} wipes out all rules before it"
        elif by.allow == rule.allow:
            reason = f"{what} in {where} says the same, and about no less"
        else:
            reason = f"{what} in {where} overrides it whenever it fits"
        yield Finding(
            rule.file, rule.line, "lint", "jitney-rule-never-decides",
            f"{rule_xml(rule)} never decides anything: {reason}",
        )  # fmt: skip


# What others look for


def _has_destination(rule: WrittenRule) -> bool:
    return "send_destination" in rule.attributes or "send_destination_prefix" in rule.attributes


def _lintian(file: WrittenFile) -> Iterator[Finding]:
    for policy in file.policies:
        if policy.attributes.get("at_console") == "true":
            yield _lint(
                file, policy.line, "dbus-policy-at-console",
                "at_console is deprecated: the service should ask logind or polkit instead",
            )  # fmt: skip
    for rule in file.rules:
        sends = any(name.startswith("send_") for name in rule.attributes)
        # What root may send harms nobody: root calls back agents that have no name.
        root = rule.element == "allow" and rule.policy.attributes.get("user") == "root"
        if not sends or _has_destination(rule) or root:
            continue
        yield _lint(
            file, rule.line, "dbus-policy-without-send-destination",
            f"{rule} is about messages to all services, not only to this one",
        )  # fmt: skip
        interface = rule.attributes.get("send_interface", _PROPERTIES)
        if rule.element == "allow" and interface == _PROPERTIES:
            yield _lint(
                file, rule.line, "dbus-policy-excessively-broad",
                f"{rule} is narrowed neither to a service nor to an interface of its own",
            )  # fmt: skip


def _rpmlint(file: WrittenFile) -> Iterator[Finding]:
    sending = False
    owning = None
    # Then an exception from it has its use.
    denies_receiving = any(
        rule.element == "deny" and any(name.startswith("receive_") for name in rule.attributes)
        for rule in file.rules
    )
    for rule in file.rules:
        given = rule.attributes
        if rule.element == "deny":
            if "send_interface" in given and not _has_destination(rule):
                yield _lint(
                    file, rule.line, "dbus-policy-deny-without-destination",
                    f"{rule} blocks messages to other services, too",
                )  # fmt: skip
            continue
        if _has_destination(rule):
            sending = True
        elif "send_interface" in given or "send_member" in given or "send_path" in given:
            sending = True
            yield _lint(
                file, rule.line, "dbus-policy-allow-without-destination",
                f"{rule} allows messages to other services, too",
            )  # fmt: skip
        receives = "receive_sender" in given or "receive_interface" in given
        if receives and not denies_receiving:
            yield _lint(
                file, rule.line, "dbus-policy-allow-receive",
                f"{rule} is not needed: system.conf allows receiving, unless some file denies it",
            )  # fmt: skip
        for name, value in given.items():
            if name.startswith("send_") and name != "send_member" and "*" in value:
                what = "concerns the whole bus, not one service"
                if value != ANY:
                    what = 'is no pattern: only a "*" alone means any'
                yield _lint(
                    file, rule.line, "dbus-policy-allow-wildcard",
                    f'{rule}: {name}="{value}" {what}',
                )  # fmt: skip
        if owning is None and ("own" in given or "own_prefix" in given):
            owning = rule
    if owning is not None and not sending:
        yield _lint(
            file, owning.line, "dbus-policy-missing-allow",
            f"{owning} is for a service that nobody is allowed to send anything to",
        )  # fmt: skip


# What we look for


_NAMES: dict[str, tuple[Callable[[bytes], bool], str]] = {
    "send_destination": (is_bus_name, "bus name"),
    "send_destination_prefix": (is_namespace, "beginning of bus names"),
    "receive_sender": (is_bus_name, "bus name"),
    "own": (is_bus_name, "bus name"),
    "own_prefix": (is_namespace, "beginning of bus names"),
}
_NAMES |= {
    f"{side}_{name}": check
    for side in ("send", "receive")
    for name, check in (
        ("path", (is_path, "object path")),
        ("interface", (is_interface, "interface name")),
        ("member", (is_member, "member name")),
        ("error", (is_interface, "error name")),
    )
}
_PREFIXES = ("send_destination_prefix", "own_prefix")


def _names(file: WrittenFile, rule: WrittenRule) -> Iterator[Finding]:
    for name, value in rule.attributes.items():
        if name not in _NAMES or (value == ANY and name not in _PREFIXES):
            continue
        check, what = _NAMES[name]
        if not check(value.encode()):
            text = f'{rule}: "{value}" is no {what}, so the rule fits nothing that has one'
            if value.endswith(".*") and name in ("send_destination", "own"):
                text += f'; {_prefix_of(name)}="{value[:-2]}" is what covers all names below'
            yield _lint(file, rule.line, "jitney-bad-name", text)
        elif value.startswith(":"):
            yield _lint(
                file, rule.line, "jitney-unique-name",
                f"{rule}: {value} is somebody else each time the bus runs",
            )  # fmt: skip
    for side in ("send", "receive"):
        member = rule.attributes.get(f"{side}_member", ANY)
        interface = rule.attributes.get(f"{side}_interface", ANY)
        if member != ANY and interface == ANY:
            yield _lint(
                file, rule.line, "jitney-member-without-interface",
                f"{rule} is about {member} of every interface",
            )  # fmt: skip


def _prefix_of(name: str) -> str:
    return "own_prefix" if name == "own" else "send_destination_prefix"


def _contradictions(file: WrittenFile, rule: WrittenRule) -> Iterator[Finding]:
    given = rule.attributes
    lowest, highest = leading_int(given.get("min_fds", "")), leading_int(given.get("max_fds", ""))
    reason = ""
    if lowest is not None and highest is not None and lowest[0] > highest[0]:
        reason = f"no number is at least {lowest[0]} and at most {highest[0]}"
    elif given.get("send_broadcast") == "true":
        if given.get("send_type", ANY) not in (ANY, "signal"):
            reason = f"a {given['send_type']} is no broadcast"
        elif given.get("send_destination", ANY) != ANY:
            reason = "what has a destination is no broadcast"
    if reason:
        yield _lint(file, rule.line, "jitney-rule-never-fits", f"{rule} fits nothing: {reason}")
