"""The set-uid helper that starts the services of a system bus, and what its exit codes mean.

Invariant: the codes and the texts are those of dbus-daemon-launch-helper and dbus-daemon
(bus/activation-exit-codes.h), because an administrator's own helper must keep to them, too.
"""

from __future__ import annotations

from .. import errors
from ..errors import DBusError

_MEANING = {
    2: (errors.NO_MEMORY, "Launcher could not run (out of memory)"),
    3: (errors.SPAWN_CONFIG_INVALID, "Invalid configuration (missing or empty <user>?)"),
    4: (errors.SPAWN_SETUP_FAILED, "Failed to setup environment correctly"),
    5: (errors.SPAWN_SERVICE_INVALID, "Bus name is not valid or missing"),
    6: (errors.SPAWN_SERVICE_NOT_FOUND, "Bus name not found in system service directory"),
    7: (
        errors.SPAWN_PERMISSIONS_INVALID,
        "The permission of the setuid helper is not correct",
    ),
    8: (
        errors.SPAWN_PERMISSIONS_INVALID,
        "The service file is incorrect or does not have all required attributes",
    ),
    9: (
        errors.SPAWN_EXEC_FAILED,
        "Cannot launch daemon, file not found or permissions invalid",
    ),
    10: (errors.INVALID_ARGS, "Invalid arguments to command line"),
    11: (
        errors.SPAWN_CHILD_SIGNALED,
        "Launched child was signaled, it probably crashed",
    ),
}


def failure(code: int) -> DBusError:
    """What an exit code other than 0 tells the callers who wait for the service."""
    name, text = _MEANING.get(
        code,
        (errors.SPAWN_CHILD_EXITED, f"Launch helper exited with unknown return code {code}"),
    )
    return DBusError(name, text)


def command(helper: str, name: bytes) -> str:
    """The command line that makes the helper start `name`; `helper` may have arguments."""
    return f"{helper} {name.decode()}"
