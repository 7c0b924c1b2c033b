"""The environment that started services get.

Invariant: nothing in it speaks of the bus's own sockets or of the bus's own unit, and every key is
one that execve() takes. Keys and values are bytes, as the kernel has them.
"""

from __future__ import annotations

from collections.abc import Mapping

OWN = frozenset({
    # The bus's journal stream, listening sockets, readiness socket, watchdog and invocation
    # (systemd.exec(5)); all else there is as true for a service as it is for the bus.
    b"JOURNAL_STREAM",
    b"LISTEN_FDNAMES",
    b"LISTEN_FDS",
    b"LISTEN_PID",
    b"LISTEN_PIDFDID",
    b"NOTIFY_SOCKET",
    b"WATCHDOG_PID",
    b"WATCHDOG_USEC",
    b"INVOCATION_ID",
})  # fmt: skip


def inherited(environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What services get of the bus's own environment."""
    return {key: value for key, value in environ.items() if key not in OWN}


def update(environment: dict[bytes, bytes], key: bytes, value: bytes) -> None:
    """Sets one variable the way `KEY=VALUE` would be read: a key ends at its first `=`.

    A variable without a name cannot be asked for by anybody, and is not set.
    """
    name, _, value = (key + b"=" + value).partition(b"=")
    if name:
        environment[name] = value


def for_service(
    environment: Mapping[bytes, bytes], address: str, bus_type: str | None
) -> dict[bytes, bytes]:
    """`environment` and where the bus is: its whole address, and its type if it has one."""
    result = dict(environment)
    where = address.encode()
    result[b"DBUS_STARTER_ADDRESS"] = where
    if bus_type is not None:
        result[b"DBUS_STARTER_BUS_TYPE"] = bus_type.encode()
        if bus_type in ("session", "system"):
            result[b"DBUS_%s_BUS_ADDRESS" % bus_type.upper().encode()] = where
    return result
