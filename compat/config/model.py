"""Models: what a configuration says, once all its files are read.

Invariant: a model is complete, checked and never changed. Everything that can be complained about
later knows its file and line. Values are as written where they mean something to somebody else
(addresses, mechanisms) and resolved where they mean something here (paths, uids, limits).

Meaning of the elements: dbus-daemon(1), "CONFIGURATION FILE".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from jitney.broker.limits import Limits
from jitney.broker.policy_rules import ANYBODY, EITHER, MAX_FDS, NO, UNKNOWN, YES

from .plain import SpecEntry, limits_of

MessageType = Literal["method_call", "method_return", "error", "signal"]
MESSAGE_TYPES = {"method_call": 1, "method_return": 2, "error": 3, "signal": 4}

# A path may be any bytes. Those that are no UTF-8 are escaped as Python does it (PEP 383), which
# pydantic would not take for text.
Path = Annotated[str, SkipValidation]


class Model(BaseModel):
    """Base of all models: frozen, and no field that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Placed(Model):
    """Something that was written in a line of a file."""

    file: Path
    line: int = Field(ge=0)


class ConfigWarning(Placed):
    """Something that is only worth a word in the log; the configuration is good."""

    text: Path


class Listen(Placed):
    """`<listen>`: an address, or several with semicolons, as written."""

    address: str


class ServiceDir(Placed):
    """A directory of `.service` files. `watched`: new files there are to be noticed; `strict`: a
    file must be named after the service it is for."""

    path: Path
    watched: bool = True
    strict: bool = False


class Identity(Model):
    """A user or group that a policy names. `id` is None, or just the number that was given, if the
    user database did not know it (`known` is False then)."""

    name: str
    id: int | None
    known: bool

    @property
    def spec_id(self) -> int:
        return UNKNOWN if self.id is None else self.id


class MessageRule(Placed):
    """`<allow>`, `<deny>` with send_ or receive_ attributes. None: any. `peer` is send_destination
    or receive_sender, `prefix` is send_destination_prefix."""

    kind: Literal["message"] = "message"
    allow: bool
    send: bool
    type: MessageType | None = None
    path: str | None = None
    interface: str | None = None
    member: str | None = None
    error: str | None = None
    peer: str | None = None
    prefix: str | None = None
    broadcast: bool | None = None
    requested_reply: bool
    eavesdrop: bool = False
    min_fds: int = Field(default=0, ge=0, le=MAX_FDS)
    max_fds: int = Field(default=MAX_FDS, ge=0, le=MAX_FDS)
    log: bool = False

    def spec(self) -> dict[str, Any]:
        return {
            "kind": "message",
            "allow": self.allow,
            "send": self.send,
            "type": MESSAGE_TYPES[self.type] if self.type else 0,
            "path": _wire(self.path),
            "interface": _wire(self.interface),
            "member": _wire(self.member),
            "error": _wire(self.error),
            "peer": _wire(self.peer),
            "prefix": _wire(self.prefix),
            "broadcast": EITHER if self.broadcast is None else YES if self.broadcast else NO,
            "requested_reply": self.requested_reply,
            "eavesdrop": self.eavesdrop,
            "min_fds": self.min_fds,
            "max_fds": self.max_fds,
            "log": self.log,
            "file": self.file,
            "line": self.line,
        }


class OwnRule(Placed):
    """`<allow>`, `<deny>` with `own` or `own_prefix`. No name: any."""

    kind: Literal["own"] = "own"
    allow: bool
    name: str | None
    prefix: bool = False

    def spec(self) -> dict[str, Any]:
        return {
            "kind": "own",
            "allow": self.allow,
            "name": _wire(self.name),
            "prefix": self.prefix,
            "file": self.file,
            "line": self.line,
        }


class ConnectRule(Placed):
    """`<allow>`, `<deny>` with `user` or `group`. No identity: anybody."""

    kind: Literal["connect"] = "connect"
    allow: bool
    group: bool
    who: Identity | None

    def spec(self) -> dict[str, Any]:
        return {
            "kind": "connect",
            "allow": self.allow,
            "id": ANYBODY if self.who is None else self.who.spec_id,
            "group": self.group,
            "name": b"" if self.who is None else self.who.name.encode(),
            "file": self.file,
            "line": self.line,
        }


class Policy(Placed):
    """One `<policy>` element; `who` is set for "user" and "group"."""

    scope: Literal["default", "mandatory", "user", "group", "console", "no_console"]
    who: Identity | None = None
    rules: tuple[MessageRule | OwnRule | ConnectRule, ...] = ()

    def spec(self) -> Iterator[SpecEntry]:
        """The rules that count.

        What a policy says about somebody whom the user database does not know, dbus-daemon
        forgets. So do we with what it allows. What it denies is kept, because forgetting it would
        open a door to a user who is merely not known *yet* (a network directory that is not up
        when the bus starts): under the uid, if a number was given, and else under the name, until
        `names.settle()` finds out that a client is that user."""
        scope_id = ANYBODY if self.who is None else self.who.spec_id
        name = b"" if self.who is None else self.who.name.encode()
        for rule in self.rules:
            known = self.who is None or self.who.known
            if isinstance(rule, ConnectRule):
                # Who may connect is asked before any of the other policies can be looked up.
                if self.scope not in ("default", "mandatory"):
                    continue
                known = rule.who is None or rule.who.known
            if known or not rule.allow:
                yield self.scope, scope_id, name, rule.spec()


class Config(Model):
    """A whole configuration, included files and all.

    `type`, `user`, `pidfile`, `servicehelper`: the last one given, None if none was; `listen` and
    `auth` in the order given; `service_dirs` the same, each directory once; `include_dirs` are the
    `<includedir>` that exist, `files` all files that were read: changes there change the
    configuration. `apparmor` "required" is a demand: the daemon meets it or refuses to start."""

    type: str | None = None
    user: str | None = None
    fork: bool = False
    keep_umask: bool = False
    syslog: bool = False
    allow_anonymous: bool = False
    pidfile: str | None = None
    servicehelper: Path | None = None
    listen: tuple[Listen, ...]
    auth: tuple[str, ...] = ()
    service_dirs: tuple[ServiceDir, ...] = ()
    include_dirs: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    limit_values: dict[str, int] = {}
    policies: tuple[Policy, ...] = ()
    apparmor: Literal["disabled", "enabled", "required"] = "enabled"
    selinux_contexts: dict[str, str] = {}
    warnings: tuple[ConfigWarning, ...] = ()

    def limits(self) -> Limits:
        """The limits in force. Those of containers are known but limit nothing: there are none."""
        return limits_of(self.limit_values)

    def policy_spec(self) -> list[SpecEntry]:
        """All rules as plain data, for `jitney.broker.policy.PolicySet`."""
        return [entry for policy in self.policies for entry in policy.spec()]


def _wire(text: str | None) -> bytes | None:
    """A name as messages carry it."""
    return None if text is None else text.encode()
