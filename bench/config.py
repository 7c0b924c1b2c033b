"""The configuration that every broker of a comparison gets.

Invariant: what `Config.xml()` returns depends on nothing but the Config and the folder, and every
broker that reads configuration files is given the same bytes of it. Limits are so high that no
scenario meets them unless it asks for lower ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LIMITS: Mapping[str, int] = {
    "max_incoming_bytes": 2**30 - 1,
    "max_incoming_unix_fds": 2**28 - 1,
    "max_outgoing_bytes": 2**30 - 1,
    "max_outgoing_unix_fds": 2**28 - 1,
    "max_message_size": 2**27,
    "auth_timeout": 240_000,
    "pending_fd_timeout": 150_000,
    "max_completed_connections": 100_000,
    "max_incomplete_connections": 10_000,
    "max_connections_per_user": 100_000,
    "max_names_per_connection": 50_000,
    "max_match_rules_per_connection": 50_000,
    "max_replies_per_connection": 50_000,
}
"""About those of dbus-daemon's session.conf; times in milliseconds.

dbus-broker reads four of them and makes limits of a *user* by multiplying with
`max_connections_per_user`; its version 33 keeps only the lowest 32 bits of each product. 2**k - 1
times a multiple of 2**(32 - k) leaves nearly all of them, where a round number may leave next to
none.
"""

PROLOG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
"""

# What the packages of a full desktop put into system.d, a service after the other.
RULES = (
    '<deny own="{name}"/>',
    '<deny send_destination="{name}"/>',
    '<allow send_destination="{name}" send_interface="org.freedesktop.DBus.Introspectable"/>',
    '<allow send_destination="{name}" send_interface="org.freedesktop.DBus.Properties"/>',
    '<allow send_destination="{name}" send_interface="{name}" send_member="GetDevices"/>',
    '<deny send_destination="{name}" send_path="/com/example" send_member="SetAll"/>',
    '<allow send_destination="{name}" send_type="method_call" send_interface="{name}"/>',
    '<allow receive_sender="{name}"/>',
)


IN_A_FILE = 8000
"""So many rules go into one file: dbus-daemon reads none that is larger than 1 MiB."""


@dataclass(frozen=True)
class Config:
    """What a scenario wants of a broker.

    `rules`: so many further policy rules, all of them about names that nobody owns or calls.
    `limits`: by the names of dbus-daemon(1), in place of those in LIMITS. Mind that dbus-broker
    counts bytes, descriptors and match rules by user: the limit times `max_connections_per_user`.
    """

    rules: int = 0
    limits: Mapping[str, int] = field(default_factory=dict)

    def xml(self, folder: Path) -> str:
        """The configuration file of a bus that listens on `folder`/bus."""
        lines = [
            "<busconfig>",
            "<type>session</type>",
            f"<listen>unix:path={folder}/bus</listen>",
            "<auth>EXTERNAL</auth>",
            '<policy context="default">',
            '<allow send_destination="*" eavesdrop="true"/>',
            '<allow eavesdrop="true"/>',
            '<allow own="*"/>',
            "</policy>",
        ]
        if self.rules <= IN_A_FILE:
            lines += self.policies(0, self.rules)
        else:
            lines += [f"<include>{path}</include>" for path in self.rule_files(folder)]
        for limit, value in {**LIMITS, **self.limits}.items():
            lines.append(f'<limit name="{limit}">{value}</limit>')
        return PROLOG + "\n".join([*lines, "</busconfig>", ""])

    def policies(self, first: int, last: int) -> list[str]:
        """The elements with the further rules from number `first` to before `last`."""
        lines = []
        for start in range(first, last, len(RULES)):
            name = f"com.example.Service{start // len(RULES)}"
            lines.append('<policy context="default">')
            lines += [rule.format(name=name) for rule in RULES[: last - start]]
            lines.append("</policy>")
        return lines

    def rule_files(self, folder: Path) -> dict[Path, int]:
        """Files for more rules than fit into one, and the number of the first rule of each."""
        if self.rules <= IN_A_FILE:
            return {}
        return {folder / f"rules-{n}.conf": n for n in range(0, self.rules, IN_A_FILE)}

    def write(self, folder: Path) -> Path:
        """Makes the file in `folder`, and those that it includes."""
        for path, first in self.rule_files(folder).items():
            lines = self.policies(first, min(first + IN_A_FILE, self.rules))
            path.write_text(PROLOG + "\n".join(["<busconfig>", *lines, "</busconfig>", ""]))
        path = folder / "bus.conf"
        path.write_text(self.xml(folder))
        return path
