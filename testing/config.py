"""What a test's bus is made of: a policy, limits and services, said in Python.

Invariant: it becomes the XML that `jitney-daemon` reads, and is read by the same code, so that what
a test's bus allows or refuses is what a real one does, in the same words.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

_XML = """<busconfig>
  <type>{type}</type>
  <listen>unix:path={directory}/bus</listen>
  <auth>EXTERNAL</auth>
  <servicedir>{directory}/services</servicedir>
{limits}  <policy context="default">
    <allow user="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
{rules}  </policy>
{extra}
</busconfig>
"""


class _Rule:
    """One rule of the policy; the attributes are those of dbus-daemon(1)."""

    element = ""

    def __init__(self, **attributes: str) -> None:
        self.attributes = attributes

    def xml(self) -> str:
        words = [f"{key}={quoteattr(value)}" for key, value in self.attributes.items()]
        return f"    <{' '.join([self.element, *words])}/>\n"


class Allow(_Rule):
    """`<allow …/>`: Allow(send_destination="com.example.Clock")."""

    element = "allow"


class Deny(_Rule):
    """`<deny …/>`: Deny(send_interface="com.example.Clock", send_member="Set")."""

    element = "deny"


def described(
    type: str,
    policy: Iterable[Allow | Deny],
    limits: Mapping[str, int],
    services: Mapping[str, str | Sequence[str]],
    extra: str,
) -> dict[str, Any]:
    """The same as plain data, which can be sent to another process."""
    return {
        "type": type,
        "rules": "".join(rule.xml() for rule in policy),
        "limits": dict(limits),
        "services": {
            name: command if isinstance(command, str) else shlex.join(command)
            for name, command in services.items()
        },
        "extra": extra,
    }


def write(directory: str, about: Mapping[str, Any]) -> str:
    """Writes the configuration and the service files; where the configuration is."""
    folder = os.path.join(directory, "services")
    os.makedirs(folder, exist_ok=True)
    for name, command in about["services"].items():
        with open(os.path.join(folder, f"{name}.service"), "w") as file:
            file.write(f"[D-BUS Service]\nName={name}\nExec={command}\n")
    limits = "".join(
        f"  <limit name={quoteattr(name)}>{value}</limit>\n"
        for name, value in about["limits"].items()
    )
    path = os.path.join(directory, "bus.conf")
    with open(path, "w") as file:
        file.write(
            _XML.format(
                type=escape(about["type"]),
                directory=escape(directory),
                limits=limits,
                rules=about["rules"],
                extra=about["extra"],
            )
        )
    return path
