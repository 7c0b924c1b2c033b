"""The configuration that every broker of a comparison gets.

Invariant: what `Config.files()` returns depends on nothing but the Config and the folder, and
every broker that reads configuration files is given the same bytes of it. Limits are so high that
no scenario meets them unless it asks for lower ones.
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

RULES_A_FILE = 500 * len(RULES)
"""dbus-daemon reads no file of more than a MiB."""


@dataclass(frozen=True)
class Config:
    """What a scenario wants of a broker.

    `rules`: so many further policy rules, all of them about names that nobody owns or calls.
    `limits`: by the names of dbus-daemon(1), in place of those in LIMITS. Mind that dbus-broker
    counts bytes, descriptors and match rules by user: the limit times `max_connections_per_user`.
    `options`: words for jitney's command line; no other broker can have such a configuration.
    `services`: folders of service files, below that of the bus.
    """

    rules: int = 0
    limits: Mapping[str, int] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    services: tuple[str, ...] = ()

    def files(self, folder: Path) -> dict[str, str]:
        """Names, below `folder`, and contents of the files for a bus that listens on `folder`/bus.

        "bus.conf" is the one to start with."""
        lines = [
            "<type>session</type>",
            f"<listen>unix:path={folder}/bus</listen>",
            "<auth>EXTERNAL</auth>",
            *(f"<servicedir>{folder}/{place}</servicedir>" for place in self.services),
            '<policy context="default">',
            '<allow send_destination="*" eavesdrop="true"/>',
            '<allow eavesdrop="true"/>',
            '<allow own="*"/>',
            "</policy>",
        ]
        for limit, value in {**LIMITS, **self.limits}.items():
            lines.append(f'<limit name="{limit}">{value}</limit>')
        found = {}
        for first in range(0, self.rules, RULES_A_FILE):
            name = f"rules{first // RULES_A_FILE}.conf"
            lines.append(f"<include>{folder}/{name}</include>")
            found[name] = _file(_policies(first, min(first + RULES_A_FILE, self.rules)))
        return {"bus.conf": _file(lines), **found}

    def write(self, folder: Path) -> Path:
        """Makes the files in `folder`; the one to start with."""
        for place in self.services:
            (folder / place).mkdir()
        for name, text in self.files(folder).items():
            (folder / name).write_text(text)
        return folder / "bus.conf"


def _policies(start: int, stop: int) -> list[str]:
    """The rules from number `start` up to `stop`, a policy for each service."""
    lines = []
    for first in range(start, stop, len(RULES)):
        name = f"com.example.Service{first // len(RULES)}"
        rules = [rule.format(name=name) for rule in RULES[: stop - first]]
        lines += ['<policy context="default">', *rules, "</policy>"]
    return lines


def _file(lines: list[str]) -> str:
    return PROLOG + "\n".join(["<busconfig>", *lines, "</busconfig>", ""])
