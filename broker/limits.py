"""Limits: how much one client, one user or one message may claim of the bus.

Invariant: each attribute is an int named exactly as the configuration's `<limit name="…">`,
and a fresh `Limits()` holds what dbus-daemon applies when its configuration is silent.
Sizes in bytes, times in milliseconds, everything else in pieces.
"""

from __future__ import annotations

MIB = 1024 * 1024

# Linux passes at most 253 fds in one go (SCM_MAX_FD); dbus-daemon stays well below.
FDS_PER_MESSAGE = 16


KEPT_BYTES = 64 * MIB
KEPT_FDS = 1024
"""No queue is taken for granted more than this, whatever the configuration says: the session bus
of dbus-daemon may grow by 1 GB for each client that does not read."""

USER_SHARE = 4
"""The queues of one user's connections together may hold so many times what one of them may."""

USER_OBJECTS = 64
"""And the user so many times the names, match rules and awaited replies of one connection."""


class Limits:
    """One set of limits, replaced as a whole when the configuration is read again."""

    def __init__(self) -> None:
        self.max_incoming_bytes = 127 * MIB
        self.max_incoming_unix_fds = 4 * FDS_PER_MESSAGE
        self.max_outgoing_bytes = 127 * MIB
        self.max_outgoing_unix_fds = 4 * FDS_PER_MESSAGE
        self.max_message_size = 32 * MIB
        self.max_message_unix_fds = FDS_PER_MESSAGE
        self.service_start_timeout = 25_000
        self.auth_timeout = 30_000
        self.pending_fd_timeout = 150_000
        self.max_completed_connections = 2048
        self.max_incomplete_connections = 64
        self.max_connections_per_user = 256
        self.max_pending_service_starts = 512
        self.max_names_per_connection = 512
        self.max_match_rules_per_connection = 512
        self.max_replies_per_connection = 128
        # A caller is told NoReply after this long; -1: never, only when the callee is gone.
        self.reply_timeout = -1
