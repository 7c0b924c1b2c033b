"""What the bus and systemd say to each other when systemd starts services.

Invariant: the bus only ever asks; success is the name's appearing, and a failure is believed from
the owner of `org.freedesktop.systemd1` alone (which `activator` checks before it reads here).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .. import errors, wire
from ..errors import DBusError

NAME = b"org.freedesktop.systemd1"

_ERROR_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+")


def activation_request(serial: int, unit: str) -> bytes:
    """The signal that asks systemd to start a unit.

    A signal, since nothing is expected back; directed to the well-known name, since systemd may
    not be on the bus yet.
    """
    return wire.message(
        wire.SIGNAL,
        serial,
        path=b"/org/freedesktop/DBus",
        interface=b"org.freedesktop.systemd1.Activator",
        member=b"ActivationRequest",
        destination=NAME,
        signature="s",
        body=wire.marshal("s", [unit]),
    )


def set_environment(
    serial: int, variables: Iterable[tuple[bytes, bytes]], destination: bytes = NAME
) -> bytes:
    """The call by which systemd learns of variables for the services it starts."""
    lines = [key + b"=" + value for key, value in variables]
    return wire.message(
        wire.CALL,
        serial,
        flags=wire.NO_REPLY,
        path=b"/org/freedesktop/systemd1",
        interface=b"org.freedesktop.systemd1.Manager",
        member=b"SetEnvironment",
        destination=destination,
        signature="as",
        body=wire.marshal("as", [lines]),
    )


def activation_failure(msg: Any) -> tuple[str, DBusError] | None:
    """The unit that systemd could not start, and why; None if the signal says neither."""
    if msg.signature != b"sss":
        return None
    unit, name, text = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)
    if len(name) > 255 or not _ERROR_NAME.fullmatch(name):
        # No valid reply could carry it.
        name = errors.FAILED
    return unit, DBusError(name, text)
