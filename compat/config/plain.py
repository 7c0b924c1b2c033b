"""Plain: what a bus needs of its configuration, in types that every Python has.

Invariant: nothing here knows a model, XML or pydantic, so that a process which was handed a
`Plain` never loads them. It holds the answers that the models give, not the elements they were
made from, and it travels as `marshal` writes it: numbers, texts, bytes and tuples of those.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from jitney.broker.limits import Limits

if TYPE_CHECKING:
    from .model import Config

# One entry of `policy_spec()`: scope, id, name, rule; see jitney.broker.policy.
SpecEntry = tuple[str, int, bytes, dict[str, Any]]

# Rules that are unpacked together: few enough to cost no memory, enough to cost no time.
_PIECE = 256


class ServiceDir(NamedTuple):
    """`model.ServiceDir` without where it was written."""

    path: str
    watched: bool
    strict: bool


class ConfigWarning(NamedTuple):
    """`model.ConfigWarning`."""

    file: str
    line: int
    text: str


class Plain(NamedTuple):
    """The fields of `model.Config` that the daemon looks at, with these differences: `addresses`
    are those of `listen`, and `rules` are what `policy_spec()` says, packed."""

    type: str | None
    user: str | None
    fork: bool
    keep_umask: bool
    syslog: bool
    allow_anonymous: bool
    pidfile: str | None
    servicehelper: str | None
    auth: tuple[str, ...]
    include_dirs: tuple[str, ...]
    limit_values: dict[str, int]
    apparmor: str
    selinux_contexts: dict[str, str]
    addresses: tuple[str, ...]
    service_dirs: tuple[ServiceDir, ...]
    warnings: tuple[ConfigWarning, ...]
    rules: tuple[bytes, ...]

    def limits(self) -> Limits:
        """The limits in force."""
        return limits_of(self.limit_values)

    def policy_spec(self) -> Iterator[SpecEntry]:
        """All rules, for `jitney.broker.policy.PolicySet`; never all of them unpacked at once."""
        for piece in self.rules:
            yield from marshal.loads(piece)

    def without_rules(self) -> Plain:
        """The same for somebody who has made a PolicySet of it: a long policy is not kept twice."""
        return self._replace(rules=())


def limits_of(values: dict[str, int]) -> Limits:
    """Limits by their names. Those of containers are known but limit nothing: there are none."""
    limits = Limits()
    for name, value in values.items():
        if hasattr(limits, name):
            setattr(limits, name, value)
    return limits


def pack(config: Config) -> tuple[Any, ...]:
    """What `unpack()` makes a Plain of, in types that marshal knows."""
    special = {
        "addresses": tuple(entry.address for entry in config.listen),
        "service_dirs": tuple((x.path, x.watched, x.strict) for x in config.service_dirs),
        "warnings": tuple((x.file, x.line, x.text) for x in config.warnings),
        "rules": tuple(_pieces(config)),
    }
    return tuple(
        special[name] if name in special else getattr(config, name) for name in Plain._fields
    )


def unpack(packed: tuple[Any, ...]) -> Plain:
    plain = Plain(*packed)
    return plain._replace(
        service_dirs=tuple(ServiceDir(*x) for x in plain.service_dirs),
        warnings=tuple(ConfigWarning(*x) for x in plain.warnings),
    )


def _pieces(config: Config) -> Iterator[bytes]:
    rules = (entry for policy in config.policies for entry in policy.spec())
    while piece := [_short(entry) for entry in islice(rules, _PIECE)]:
        yield marshal.dumps(piece)


def _short(entry: SpecEntry) -> SpecEntry:
    """An entry without the arguments that are None, which is what a rule takes them for anyway."""
    scope, id, name, rule = entry
    return scope, id, name, {key: value for key, value in rule.items() if value is not None}
