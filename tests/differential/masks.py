"""What differs in the texts of two buses that say the same.

Invariant: of a text nothing else is taken away: a mask that is too wide hides what it should show.
"""

from __future__ import annotations

import re

_MASKS = (
    (re.compile(r"^dbus-daemon\[\d+\]: "), ""),
    (re.compile(r":\d+\.\d+"), ":<unique>"),
    (re.compile(r"\bpid=\d+"), "pid=<pid>"),
    # What jitney adds for the log alone.
    (re.compile(r" \((rule: [^()]*:\d+|no rule allows it)\)$"), ""),
    # Its command line changes when it has found out about the network.
    (re.compile(r'comm="(avahi-daemon): [^"]*"'), r'comm="\1"'),
)


def masked(text: str) -> str:
    for mask, stands_for in _MASKS:
        text = mask.sub(stands_for, text)
    return text
