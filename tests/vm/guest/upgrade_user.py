"""`systemctl --user reload dbus`, by the user.

Invariant: as in `upgrade`.
"""

from __future__ import annotations

from helpers import ask
from upgrade import reload


def check_reload_of_the_user_bus() -> str:
    return reload(ask, ("--user",), "--user")
