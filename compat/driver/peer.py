"""org.freedesktop.DBus.Peer: what every object of every connection answers to.

Invariant: a machine id that was read once is kept; a failure to read it is not.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from .. import wire
from ..errors import ACCESS_DENIED, FAILED, FILE_NOT_FOUND, INVALID_FILE_CONTENT, DBusError
from .table import Interface, Method

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

    from .driver import Driver

MACHINE_ID_FILES = ["/var/lib/dbus/machine-id", "/etc/machine-id"]
"""In the order libdbus reads them; the first good one counts."""

_LENGTH = 32
_ERRNO_NAMES = {
    errno.ENOENT: FILE_NOT_FOUND,
    errno.EACCES: ACCESS_DENIED,
    errno.EPERM: ACCESS_DENIED,
}
_known: list[bytes] = []


def machine_id() -> bytes:
    """This machine's id, 32 hex digits. DBusError when no file has it, with all reasons."""
    if _known:
        return _known[0]
    failures = []
    for file in MACHINE_ID_FILES:
        try:
            found = _read(file)
        except DBusError as error:
            failures.append(error)
            continue
        _known.append(found)
        return found
    reasons = "; ".join(error.text for error in failures)
    raise DBusError(
        failures[-1].name,
        "D-Bus library appears to be incorrectly set up: see the manual page for dbus-uuidgen"
        f" to correct this issue. ({reasons})",
    )


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            content = stream.read(4096).rstrip(b" \t\r\n\f\v")
    except OSError as error:
        name = _ERRNO_NAMES.get(error.errno or 0, FAILED)
        reason = os.strerror(error.errno or 0)
        raise DBusError(name, f'Failed to open "{file}": {reason}') from error
    if len(content) != _LENGTH:
        raise DBusError(
            INVALID_FILE_CONTENT,
            f"UUID file '{file}' should contain a hex string of length {_LENGTH},"
            f" not length {len(content)}, with no other text",
        )
    try:
        return bytes.fromhex(content.decode("ascii")).hex().encode()
    except ValueError as error:
        raise DBusError(
            INVALID_FILE_CONTENT, f"UUID file '{file}' contains invalid hex data"
        ) from error


def get_machine_id(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    return wire.string(machine_id())


def ping(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
    return b""


INTERFACE = Interface(
    "org.freedesktop.DBus.Peer",
    [
        Method("GetMachineId", "", "s", get_machine_id, any_path=True),
        Method("Ping", "", "", ping, any_path=True, ack=True),
    ],
    any_path=True,
)
