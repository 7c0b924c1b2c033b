"""SELinux, as far as the configuration's `<include>` asks about it.

Invariant: only the file system is read, the way libselinux reads it; no library is needed.
"""

from __future__ import annotations

import os

SELINUX_FS = ("/sys/fs/selinux/enforce", "/selinux/enforce")
SELINUX_CONFIG = "/etc/selinux/config"


def enabled() -> bool:
    """Whether the kernel enforces, or watches, an SELinux policy."""
    return any(map(os.path.exists, SELINUX_FS)) and os.path.exists(SELINUX_CONFIG)


def policy_root() -> str:
    """Where the files of the policy in use are: selinux_policy_root(3)."""
    policy = "targeted"
    try:
        with open(SELINUX_CONFIG, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, equals, value = line.strip().partition("=")
                if equals and key == "SELINUXTYPE" and value:
                    policy = value
    except OSError:
        pass
    return f"/etc/selinux/{policy}"
