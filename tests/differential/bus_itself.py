"""What different users may ask of the bus itself under the system bus's own policy, and how it says
no: privileged methods at the bus's path and elsewhere, with and without an interface.

Invariant: none of these calls changes the bus for those that come after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from differential.masks import masked
from differential.policy_matrix import NOBODY, Who
from rawclient import DRIVER, DRIVER_PATH, RawClient

from jitney.compat import wire

MONITORING = b"org.freedesktop.DBus.Monitoring"
STATS = b"org.freedesktop.DBus.Debug.Stats"
VERBOSE = b"org.freedesktop.DBus.Verbose"
ACTIVATOR = b"org.freedesktop.systemd1.Activator"

PATHS = (DRIVER_PATH, b"/", b"/org/freedesktop", b"/org/freedesktop/DBus/x", b"/some/where")

# Member, signature, values, and the interfaces it is asked for under.
CALLS: tuple[tuple[bytes, str, tuple[Any, ...], tuple[bytes | None, ...]], ...] = (
    (b"UpdateActivationEnvironment", "a{ss}", ({"LD_PRELOAD": "/tmp/evil.so"},),
     (DRIVER, None, STATS, b"org.freedesktop.DBus.Properties", b"org.freedesktop.DBus.Peer")),
    (b"UpdateActivationEnvironment", "s", ("wrong",), (DRIVER, None)),
    (b"ReloadConfig", "", (), (DRIVER, None)),
    (b"GetStats", "", (), (STATS, None)),
    (b"GetConnectionStats", "s", ("org.freedesktop.DBus",), (STATS, None)),
    (b"GetAllMatchRules", "", (), (STATS, None)),
    (b"EnableVerbose", "", (), (VERBOSE, None)),
    (b"DisableVerbose", "", (), (VERBOSE, None)),
    (b"BecomeMonitor", "asu", ([], 1), (MONITORING, None)),
    (b"BecomeMonitor", "asu", (["nonsense"], 0), (MONITORING, None)),
    (b"AddMatch", "s", ("eavesdrop='true'",), (DRIVER, None)),
    (b"GetConnectionUnixUser", "s", ("org.freedesktop.DBus",), (DRIVER, None)),
    (b"RequestName", "su", ("org.freedesktop.systemd1", 4), (DRIVER,)),
    (b"ReleaseName", "s", ("org.freedesktop.systemd1",), (DRIVER,)),
    (b"RequestName", "su", ("org.example.Anybody", 4), (DRIVER,)),
    (b"StartServiceByName", "su", ("org.example.Nobody", 0), (DRIVER,)),
    (b"Set", "ssv", ("org.freedesktop.DBus", "Features", ("as", [])),
     (b"org.freedesktop.DBus.Properties",)),
    (b"Introspect", "", (), (b"org.freedesktop.DBus.Introspectable", None)),
    (b"Ping", "", (), (b"org.freedesktop.DBus.Peer", None)),
    (b"Nothing", "", (), (DRIVER, None, b"org.example.Nothing")),
)  # fmt: skip


def play(address: str, who: list[Who]) -> Iterator[str]:
    """All calls by all users, and what came of them."""
    for one in who:
        with RawClient(address, uid=one.uid, groups=one.groups, timeout=30) as client:
            client.hello()
            for member, signature, values, interfaces in CALLS:
                if member == b"ReloadConfig" and one.uid == NOBODY:
                    continue  # is not for everybody here, see tests/system/test_system_bus.py
                for interface in interfaces:
                    for path in PATHS:
                        came = _call(client, member, signature, values, interface, path)
                        yield f"{one.name} {came}"
            # A signal, not a call; who may not send it is told all the same.
            client.message(
                wire.SIGNAL, destination=DRIVER, path=b"/", interface=ACTIVATOR,
                member=b"ActivationFailure", signature="sss", values=("org.example.X", "a.b", "x"),
            )  # fmt: skip
            yield f"{one.name} ActivationFailure: {_told(client)}"
            # Last: as a monitor it may say nothing more.
            yield f"{one.name} " + _call(
                client, b"BecomeMonitor", "asu", (["member='X'"], 0), MONITORING, DRIVER_PATH
            )


def everybody(messagebus: int) -> list[Who]:
    return [
        Who("root", 0, (0,)),
        Who("nobody", NOBODY, (NOBODY,)),
        Who("messagebus", messagebus, (messagebus,)),
        # Whom group 0 alone makes nobody special.
        Who("nobody of group root", NOBODY, (0,)),
    ]


def _call(
    client: RawClient,
    member: bytes,
    signature: str,
    values: tuple[Any, ...],
    interface: bytes | None,
    path: bytes,
) -> str:
    shown = f"{(interface or b'-').decode()} {member.decode()}{values} at {path.decode()}"
    reply = client.reply_to(
        client.driver(member, signature, *values, interface=interface, path=path)
    )
    if reply.type == wire.RETURN:
        # Numbers and descriptions have scenarios of their own.
        return f"{shown}: {reply.signature}"
    return f"{shown}: {reply.error_name} {masked(str(reply.body))}"


def _told(client: RawClient) -> str:
    """The errors that the bus has for a client now."""
    barrier = client.driver(b"GetId")
    found = []
    while True:
        message = client.receive()
        assert message is not None
        if message.reply_serial == barrier:
            return "; ".join(found) or "nothing"
        if message.error_name:
            found.append(f"{message.error_name} {masked(str(message.body))}")
