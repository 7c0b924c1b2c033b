"""What both modules say of a message, in dbus-daemon's words.

Invariant: plain text of what is in the message and of whom it is from and for; nothing is decided.
"""

from __future__ import annotations

from typing import Any

TYPES = {1: "method_call", 2: "method_return", 3: "error", 4: "signal"}
DRIVER = b"org.freedesktop.DBus"


def text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")


def pid_of(conn: Any) -> int | None:
    """The process behind a connection, if it is one and has one (None: the bus)."""
    creds = conn.creds if conn is not None else None
    pid: int | None = creds.pid if creds is not None else None
    return pid


def name_of(conn: Any) -> str:
    """How errors call a connection."""
    name: str = conn.unique_name.decode() or "(inactive)"
    return name
