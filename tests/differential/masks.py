"""What differs in the texts of two buses that say the same.

Invariant: of a text nothing else is taken away: a mask that is too wide hides what it should show.
"""

from __future__ import annotations

import re

from jitney.compat import ways

_MASKS = (
    (re.compile(r"^dbus-daemon\[\d+\]: "), ""),
    (re.compile(r":\d+\.\d+"), ":<unique>"),
    (re.compile(r"\bpid=\d+"), "pid=<pid>"),
    # What jitney adds for the log alone.
    (re.compile(r" \((rule: [^()]*:\d+|no rule allows it)\)$"), ""),
    # Its command line changes when it has found out about the network.
    (re.compile(r'comm="(avahi-daemon): [^"]*"'), r'comm="\1"'),
)


_PROCESS = re.compile(r' pid=\d+ comm="[^"]*"')


def untold(text: str) -> str:
    """Without what dbus-daemon says of clients and ours is not told, if Linux's ways are off."""
    return text if ways.PEER_PIDS else _PROCESS.sub("", text)


def masked(text: str) -> str:
    text = untold(text)
    for mask, stands_for in _MASKS:
        text = mask.sub(stands_for, text)
    return text
