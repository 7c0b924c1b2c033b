"""Names of the errors the bus sends, and the exception that carries one to the caller.

Invariant: every error name that leaves this process is spelled here and nowhere else.
"""

from __future__ import annotations

from jitney.broker import errors as core

_PREFIX = "org.freedesktop.DBus.Error."

FAILED = _PREFIX + "Failed"
NO_MEMORY = _PREFIX + "NoMemory"
SERVICE_UNKNOWN = _PREFIX + "ServiceUnknown"
NAME_HAS_NO_OWNER = _PREFIX + "NameHasNoOwner"
NO_REPLY = _PREFIX + "NoReply"
IO_ERROR = _PREFIX + "IOError"
BAD_ADDRESS = _PREFIX + "BadAddress"
NOT_SUPPORTED = _PREFIX + "NotSupported"
LIMITS_EXCEEDED = _PREFIX + "LimitsExceeded"
ACCESS_DENIED = _PREFIX + "AccessDenied"
AUTH_FAILED = _PREFIX + "AuthFailed"
TIMED_OUT = _PREFIX + "TimedOut"
ADDRESS_IN_USE = _PREFIX + "AddressInUse"
INVALID_ARGS = _PREFIX + "InvalidArgs"
FILE_NOT_FOUND = _PREFIX + "FileNotFound"
NOT_CONTAINER = _PREFIX + "NotContainer"
FILE_EXISTS = _PREFIX + "FileExists"
UNKNOWN_METHOD = _PREFIX + "UnknownMethod"
UNKNOWN_OBJECT = _PREFIX + "UnknownObject"
UNKNOWN_INTERFACE = _PREFIX + "UnknownInterface"
UNKNOWN_PROPERTY = _PREFIX + "UnknownProperty"
PROPERTY_READ_ONLY = _PREFIX + "PropertyReadOnly"
MATCH_RULE_NOT_FOUND = _PREFIX + "MatchRuleNotFound"
MATCH_RULE_INVALID = _PREFIX + "MatchRuleInvalid"
UNIX_PROCESS_ID_UNKNOWN = _PREFIX + "UnixProcessIdUnknown"
INVALID_FILE_CONTENT = _PREFIX + "InvalidFileContent"
SELINUX_CONTEXT_UNKNOWN = _PREFIX + "SELinuxSecurityContextUnknown"
ADT_AUDIT_DATA_UNKNOWN = _PREFIX + "AdtAuditDataUnknown"

SPAWN_EXEC_FAILED = _PREFIX + "Spawn.ExecFailed"
SPAWN_FORK_FAILED = _PREFIX + "Spawn.ForkFailed"
SPAWN_CHILD_EXITED = _PREFIX + "Spawn.ChildExited"
SPAWN_CHILD_SIGNALED = _PREFIX + "Spawn.ChildSignaled"
SPAWN_FAILED = _PREFIX + "Spawn.Failed"
SPAWN_SETUP_FAILED = _PREFIX + "Spawn.FailedToSetup"
SPAWN_CONFIG_INVALID = _PREFIX + "Spawn.ConfigInvalid"
SPAWN_SERVICE_INVALID = _PREFIX + "Spawn.ServiceNotValid"
SPAWN_SERVICE_NOT_FOUND = _PREFIX + "Spawn.ServiceNotFound"
SPAWN_PERMISSIONS_INVALID = _PREFIX + "Spawn.PermissionsInvalid"
SPAWN_FILE_INVALID = _PREFIX + "Spawn.FileInvalid"
SPAWN_NO_MEMORY = _PREFIX + "Spawn.NoMemory"

NAMES = {
    core.NO_OWNER: NAME_HAS_NO_OWNER,
    core.UNKNOWN_SERVICE: SERVICE_UNKNOWN,
    core.ACCESS_DENIED: ACCESS_DENIED,
    core.LIMITS: LIMITS_EXCEEDED,
    core.NOT_SUPPORTED: NOT_SUPPORTED,
    core.NO_REPLY: NO_REPLY,
    core.NOT_FOUND: MATCH_RULE_NOT_FOUND,
    core.INVALID_ARGS: INVALID_ARGS,
    core.FAILED: FAILED,
}
"""D-Bus error name of each code of jitney.broker.errors."""


class DBusError(Exception):
    """A call failed, and its caller is to get the error `name` with the human-readable `text`.

    `name` is a D-Bus error name, `text` goes into the reply's first argument unchanged.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text
