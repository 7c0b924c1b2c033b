"""Service activation: what runs when a message goes to a name that nobody owns yet.

`desktop` reads a service file, `directories` and `watch` find them, `shell`, `environment`,
`spawn`, `journal` and `helper` make a process of one, `systemd` has systemd make it, and
`activator` keeps the messages (the plain data of `pending`) until the name is there.
"""

from .activator import Activator, Context, Settings
from .directories import Service, ServiceDir, Services
from .watch import directory_watch

__all__ = [
    "Activator",
    "Context",
    "Service",
    "ServiceDir",
    "Services",
    "Settings",
    "directory_watch",
]
