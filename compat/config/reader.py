"""Reader: one file's elements into a draft.

Invariant: each element, attribute and text is either understood or refused, at its line and in
dbus-daemon's words. What an element says takes effect where it stands: at its start tag if the
attributes say all, at its text otherwise, so that later elements have the last word.
"""

from __future__ import annotations

from typing import Protocol

from . import dirs, selinux
from .allowdeny import ATTRIBUTES, BadRule, Rule, make_rule
from .cnumber import leading_int
from .draft import LIMITS, Draft
from .errors import ConfigError
from .model import ConnectRule, Identity, Listen, Policy, ServiceDir
from .users import UserDatabase

INT_MAX = 2**31 - 1

# Elements that say what they have to say in a text, which may not be missing.
WITH_TEXT = frozenset(
    (
        "auth",
        "include",
        "includedir",
        "limit",
        "listen",
        "pidfile",
        "servicedir",
        "servicehelper",
        "type",
        "user",
    )
)
SWITCHES = frozenset(("allow_anonymous", "fork", "keep_umask", "syslog"))
INCLUDE_FLAGS = ("ignore_missing", "if_selinux_enabled", "selinux_root_relative")

# What <busconfig> may contain, and the attributes of each.
CHILDREN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(WITH_TEXT | SWITCHES, ()),
    "standard_session_servicedirs": (),
    "standard_system_servicedirs": (),
    "selinux": (),
    "include": INCLUDE_FLAGS,
    "limit": ("name",),
    "policy": ("context", "user", "group", "at_console"),
    "apparmor": ("mode",),
}


class Includer(Protocol):
    """Who reads other files, and what does not depend on the file."""

    users: UserDatabase

    def include(self, path: str, into: Draft, line: int, by: str, *, missing_ok: bool) -> None:
        """Reads the file `path` into the draft; raises ConfigError."""

    def include_dir(self, path: str, into: Draft, line: int, by: str) -> None: ...

    def add_session_dirs(self, into: Draft, line: int, by: str) -> None: ...


class Element:
    """An element that is open."""

    def __init__(self, name: str, attributes: dict[str, str], line: int) -> None:
        self.name = name
        self.attributes = attributes
        self.line = line
        self.has_text = False


class OpenPolicy:
    """A `<policy>` whose rules are still coming."""

    def __init__(self, scope: str, who: Identity | None, line: int) -> None:
        self.scope = scope
        self.who = who
        self.line = line
        self.rules: list[Rule] = []

    @property
    def ignored(self) -> bool:
        """It is about nobody whom the user database knows."""
        return self.who is not None and not self.who.known


class FileReader:
    """The sink of one file's XML; see `xml.Sink`."""

    def __init__(self, file: str, draft: Draft, includer: Includer) -> None:
        self.file = file
        self.draft = draft
        self.includer = includer
        self.users = includer.users
        self.base = directory_of(file)
        self.open: list[Element] = []
        self.policy: OpenPolicy | None = None

    # Events

    def start(self, name: str, attributes: dict[str, str], line: int) -> None:
        inside = self.open[-1].name if self.open else None
        if inside is None:
            if name != "busconfig":
                self.refuse(line, f"Unknown element <{name}> at root of configuration file")
            self.check_attributes(name, attributes, (), line)
        elif inside == "busconfig":
            if name not in CHILDREN:
                self.refuse_child(name, inside, line)
            self.check_attributes(name, attributes, CHILDREN[name], line)
            self.start_child(name, attributes, line)
        elif inside == "policy":
            if name not in ("allow", "deny"):
                self.refuse_child(name, inside, line)
            self.check_attributes(name, attributes, ATTRIBUTES, line)
            self.start_rule(name, attributes, line)
        elif inside == "selinux":
            if name != "associate":
                self.refuse_child(name, inside, line)
            self.check_attributes(name, attributes, ("own", "context"), line)
            self.start_associate(attributes, line)
        else:
            self.refuse(line, f"Element <{name}> is not allowed in this context")
        self.open.append(Element(name, attributes, line))

    def text(self, text: str, line: int) -> None:
        element = self.open[-1]
        if element.name in WITH_TEXT:
            element.has_text = True
            self.element_text(element, text)
        elif text.strip(" \t\n\r"):
            self.refuse(
                line,
                f"No text content expected inside XML element {element.name} in configuration file",
            )

    def end(self, name: str) -> None:
        element = self.open.pop()
        if name in WITH_TEXT and not element.has_text:
            self.refuse(
                element.line, f"XML element <{name}> was expected to have content inside it"
            )
        if name == "policy" and self.policy is not None:
            policy, self.policy = self.policy, None
            self.draft.policies.append(
                Policy.model_validate(
                    {
                        "scope": policy.scope,
                        "who": policy.who,
                        "rules": tuple(policy.rules),
                        "file": self.file,
                        "line": policy.line,
                    }
                )
            )

    def skipped(self, name: str, line: int) -> None:
        self.draft.warn(
            self.file, line, f'Entity "{name}" is not defined in this file and stands for nothing'
        )

    # Refusals

    def refuse(self, line: int, text: str) -> None:
        raise ConfigError(self.file, line, text)

    def refuse_child(self, name: str, inside: str, line: int) -> None:
        self.refuse(line, f"Element <{name}> not allowed inside <{inside}> in configuration file")

    def check_attributes(
        self, name: str, given: dict[str, str], allowed: tuple[str, ...] | frozenset[str], line: int
    ) -> None:
        for attribute in given:
            if attribute not in allowed:
                self.refuse(
                    line,
                    f'Attribute "{attribute}" is invalid on <{name}> element in this context',
                )

    # Start tags

    def start_child(self, name: str, attributes: dict[str, str], line: int) -> None:
        draft = self.draft
        if name in SWITCHES:
            setattr(draft, name, True)
        elif name == "policy":
            self.policy = self.open_policy(attributes, line)
        elif name == "include":
            for flag in INCLUDE_FLAGS:
                if attributes.get(flag, "no") not in ("yes", "no"):
                    self.refuse(line, f'{flag} attribute must have value "yes" or "no"')
        elif name == "limit":
            if "name" not in attributes:
                self.refuse(line, '<limit> element must have a "name" attribute')
        elif name == "apparmor":
            self.start_apparmor(attributes, line)
        elif name == "standard_session_servicedirs":
            self.includer.add_session_dirs(draft, line, self.file)
        elif name == "standard_system_servicedirs":
            for path in dirs.system():
                draft.add_service_dir(ServiceDir(path=path, file=self.file, line=line))

    def start_apparmor(self, attributes: dict[str, str], line: int) -> None:
        mode = attributes.get("mode")
        if mode is None:
            return
        if mode not in ("disabled", "enabled", "required"):
            self.refuse(
                line,
                'Mode attribute on <apparmor> must have value "required", "enabled" or "disabled", '
                f'not "{mode}"',
            )
        self.draft.apparmor = mode

    def open_policy(self, attributes: dict[str, str], line: int) -> OpenPolicy:
        if len(attributes) != 1:
            self.refuse(
                line,
                "<policy> element must have exactly one of (context|user|group|at_console) "
                "attributes",
            )
        ((attribute, value),) = attributes.items()
        who = None
        scope = attribute
        if attribute == "context":
            scope = value
            if value not in ("default", "mandatory"):
                self.refuse(
                    line,
                    'context attribute on <policy> must have the value "default" or "mandatory", '
                    f'not "{value}"',
                )
        elif attribute == "user":
            who = self.users.user(value)
            if not who.known:
                self.warn_unknown("username", value, "in message bus configuration file", line)
        elif attribute == "group":
            who = self.users.group(value)
            if not who.known:
                self.warn_unknown("group", value, "in message bus configuration file", line)
        else:
            scope = "console" if value == "true" else "no_console"
            if value not in ("true", "false"):
                self.refuse(
                    line,
                    f'Unknown value "{value}" for at_console in message bus configuration file',
                )
        return OpenPolicy(scope, who, line)

    def start_rule(self, name: str, attributes: dict[str, str], line: int) -> None:
        policy = self.policy
        assert policy is not None
        try:
            rule = make_rule(name, attributes, self.file, line, self.users)
        except BadRule as bad:
            raise ConfigError(self.file, line, str(bad)) from None
        if isinstance(rule, ConnectRule):
            if rule.who is not None and not rule.who.known:
                what = "group" if rule.group else "username"
                self.warn_unknown(what, rule.who.name, f"on element <{name}>", line)
            elif policy.scope in ("user", "group") and not policy.ignored:
                self.refuse(
                    line,
                    f"<{name}> rule cannot be per-{policy.scope} because it has bus-global "
                    "semantics",
                )
        policy.rules.append(rule)

    def warn_unknown(self, what: str, name: str, where: str, line: int) -> None:
        self.draft.warn(self.file, line, f'Unknown {what} "{name}" {where}')

    def start_associate(self, attributes: dict[str, str], line: int) -> None:
        own, context = attributes.get("own"), attributes.get("context")
        if own is None or context is None:
            self.refuse(
                line,
                'Element <associate> must have attributes own="<servicename>" and '
                'context="<selinux context>"',
            )
        else:
            self.draft.selinux_contexts[own] = context

    # Texts

    def element_text(self, element: Element, text: str) -> None:
        draft = self.draft
        name = element.name
        if name in ("type", "user", "pidfile"):
            setattr(draft, name, text)
        elif name == "listen":
            draft.listen.append(Listen(address=text, file=self.file, line=element.line))
        elif name == "auth":
            draft.auth.append(text)
        elif name == "servicehelper":
            draft.servicehelper = self.full_path(text)
        elif name == "servicedir":
            draft.add_service_dir(
                ServiceDir(path=self.full_path(text), file=self.file, line=element.line)
            )
        elif name == "includedir":
            self.includer.include_dir(self.full_path(text), draft, element.line, self.file)
        elif name == "include":
            self.include(element, text)
        else:
            self.limit(element, text)

    def include(self, element: Element, text: str) -> None:
        flags = {flag: element.attributes.get(flag) == "yes" for flag in INCLUDE_FLAGS}
        if flags["if_selinux_enabled"] and not selinux.enabled():
            return
        path = self.full_path(text)
        if flags["selinux_root_relative"]:
            path = join(selinux.policy_root(), text)
        self.includer.include(
            path, self.draft, element.line, self.file, missing_ok=flags["ignore_missing"]
        )

    def limit(self, element: Element, text: str) -> None:
        name = element.attributes["name"]
        number = leading_int(text)
        if number is None:
            raise ConfigError(
                self.file,
                element.line,
                f'<limit name="{name}"> element has invalid value (could not parse as integer)',
            )
        value, rest = number
        if name not in LIMITS:
            self.refuse(element.line, f'There is no limit called "{name}"')
        if value < 0:
            self.refuse(element.line, f'<limit name="{name}"> must be a positive number')
        if LIMITS[name] and value > INT_MAX:
            self.refuse(element.line, f'<limit name="{name}"> value is too large')
        if rest.strip():
            self.draft.warn(
                self.file, element.line, f'<limit name="{name}"> is {value}, "{rest}" is ignored'
            )
        self.draft.limit_values[name] = value

    def full_path(self, path: str) -> str:
        """Paths in a file are relative to the directory of that file."""
        return join(self.base, path)


def directory_of(path: str) -> str:
    """The directory part of a path, as written: no links are followed."""
    head, slash, _ = path.rstrip("/").rpartition("/")
    if not slash:
        return "/" if path.startswith("/") else "."
    return head.rstrip("/") or "/"


def join(directory: str, path: str) -> str:
    if path.startswith("/"):
        return path
    return directory + path if directory.endswith("/") else f"{directory}/{path}"
