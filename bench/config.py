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
        for first in range(0, self.rules, len(RULES)):
            name = f"com.example.Service{first // len(RULES)}"
            lines.append('<policy context="default">')
            for rule in RULES[: self.rules - first]:
                lines.append(rule.format(name=name))
            lines.append("</policy>")
        for limit, value in {**LIMITS, **self.limits}.items():
            lines.append(f'<limit name="{limit}">{value}</limit>')
        return PROLOG + "\n".join([*lines, "</busconfig>", ""])

    def write(self, folder: Path) -> Path:
        """Makes the file in `folder`."""
        path = folder / "bus.conf"
        path.write_text(self.xml(folder))
        return path
