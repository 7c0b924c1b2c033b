"""The policy file that lets root ask a system bus for what jitney adds to D-Bus.

Invariant: it allows nothing to anybody but root, who may do what these interfaces do in any case:
they ask for root or the bus's own user themselves, whatever a policy says.

The system bus's own configuration denies everything that it does not know, to root as well.
"""

from __future__ import annotations

FOLDER = "/etc/dbus-1/system.d"
PATH = f"{FOLDER}/org.jitney.conf"

INTERFACES = (
    "org.jitney.Policy1",
    "org.jitney.Inspect1",
    "org.jitney.Trace1",
    "org.jitney.Upgrade1",
)

_MARK = "<!-- Written by `jitney install`; `jitney uninstall` removes it. -->"

TEXT = "\n".join(
    [
        _MARK,
        "<busconfig>",
        '  <policy user="root">',
        *(
            f'    <allow send_destination="org.freedesktop.DBus" send_interface="{name}"/>'
            for name in INTERFACES
        ),
        "  </policy>",
        "</busconfig>",
        "",
    ]
)


def is_ours(data: bytes) -> bool:
    """Whether a file with these bytes was written by `jitney install`."""
    return data.startswith(_MARK.encode())
