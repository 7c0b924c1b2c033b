"""The systemd units that make jitney the bus: what is in them, and why.

Invariant: a unit begins with MARK, by which it is known as ours, and ends with a section that
systemd skips, in which an installation notes what it found; nothing else records that.

The units are Debian's for dbus-daemon but for the program: started by `dbus.socket`, ready when
they say so, spared by the out-of-memory killer on the system bus. To reload means to go on with
newer code as well as with newer configuration: `jitney upgrade`. The system bus is sandboxed where
it can be, see `install_sandbox`; a user's bus starts that user's programs, which would be in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

UNIT = "jitney.service"
ALIAS = "dbus.service"
SAVED = "dbus.service.before-jitney"
"""How what was called dbus.service is kept. systemd reads no file that is called so."""

MARK = "# Written by `jitney install`"

_NOTES = "[X-Jitney]"
_MADE = "MadeDirectory="

_TEXT = """\
{mark}; `jitney uninstall --{scope}` restores what was before.
# Changes of your own belong into {unit}.d/*.conf: this file is written anew.

[Unit]
Description={description}
Requires=dbus.socket{mounts}

[Service]
Type=notify
NotifyAccess=main
Sockets=dbus.socket
ExecStart={daemon} {options}
ExecReload={as_root}{command} upgrade --bus {bus}
{more}

[Install]
Alias={alias}

# Notes for `jitney uninstall`.
{notes}
"""

_OPTIONS = "--address=systemd: --nofork --nopidfile --systemd-activation --syslog-only"
_SYSTEM = {
    "description": "D-Bus System Message Bus (jitney)",
    "options": f"--system {_OPTIONS}",
    "bus": "system",
    "more": "OOMScoreAdjust=-900",
}
_USER = {
    "description": "D-Bus User Message Bus (jitney)",
    "options": f"--session {_OPTIONS}",
    "bus": "session",
    "more": "Slice=session.slice",
}


UNSAFE = re.compile(r"[\x00-\x1f\x7f\"'\\\udc80-\udcff]")
"""What systemd takes in no path of a program, however it is quoted."""


def quoted(path: str) -> str:
    """A path without anything UNSAFE as the unit of a service has it."""
    plain = path.replace("%", "%%")
    return f'"{plain}"' if " " in plain else plain


def text(scope: str, daemon: str, made: Iterable[str], sandbox: str = "") -> str:
    """The unit of the system bus (scope "system") or of a user's bus ("user").

    `daemon`: the path of jitney-daemon; `made` are the directories that were made for the unit;
    `sandbox`: more lines for it, see `install_sandbox`."""
    unit = dict(_SYSTEM if scope == "system" else _USER)
    if sandbox:
        unit["more"] += "\n" + sandbox
    # A user's manager has no mounts to wait for.
    mounts = f"\nRequiresMountsFor={quoted(daemon)}" if scope == "system" else ""
    return _TEXT.format(
        mark=MARK,
        scope=scope,
        unit=UNIT,
        alias=ALIAS,
        mounts=mounts,
        daemon=quoted(daemon),
        # Whoever asks for a reload is not in the sandbox.
        as_root="+" if scope == "system" else "",
        command=quoted(os.path.join(os.path.dirname(daemon), "jitney")),
        notes="\n".join([_NOTES, *(_MADE + folder for folder in made)]),
        **unit,
    )


def is_ours(data: bytes) -> bool:
    """Whether a file with these bytes was written by `jitney install`."""
    return data.startswith(MARK.encode())


def made_directories(data: bytes) -> list[str]:
    """The directories that were made for a unit of ours, as it notes."""
    lines = data.decode(errors="surrogateescape").partition("\n" + _NOTES + "\n")[2].splitlines()
    return [line.removeprefix(_MADE) for line in lines if line.startswith(_MADE)]
