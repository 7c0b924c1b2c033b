"""Scenarios about the methods of the bus itself.

Invariant: as in scenarios_names.
"""

from __future__ import annotations

from jitney.compat import ways

from .script import (
    INTROSPECTABLE,
    MONITORING,
    PEER,
    PROPERTIES,
    STATS,
    Stage,
    credentials,
    interfaces,
    scenario,
    stats,
    unordered,
    xml,
)

NOBODY = 65534

# Member, interface, a good signature and good values.
METHODS: list[tuple[str, bytes | None, str, tuple[object, ...]]] = [
    ("RequestName", None, "su", ("call.name", 0)),
    ("ReleaseName", None, "s", ("call.name",)),
    ("StartServiceByName", None, "su", ("no.such", 0)),
    ("UpdateActivationEnvironment", None, "a{ss}", ({"JITNEY_TEST": "1"},)),
    ("NameHasOwner", None, "s", ("no.body",)),
    ("ListNames", None, "", ()),
    ("ListActivatableNames", None, "", ()),
    ("AddMatch", None, "s", ("type='signal',member='X'",)),
    ("RemoveMatch", None, "s", ("type='signal',member='X'",)),
    ("GetNameOwner", None, "s", ("org.freedesktop.DBus",)),
    ("ListQueuedOwners", None, "s", ("org.freedesktop.DBus",)),
    ("GetConnectionUnixUser", None, "s", ("org.freedesktop.DBus",)),
    ("GetConnectionUnixProcessID", None, "s", ("org.freedesktop.DBus",)),
    ("GetAdtAuditSessionData", None, "s", ("org.freedesktop.DBus",)),
    ("GetConnectionSELinuxSecurityContext", None, "s", ("org.freedesktop.DBus",)),
    ("ReloadConfig", None, "", ()),
    ("GetId", None, "", ()),
    ("GetConnectionCredentials", None, "s", ("org.freedesktop.DBus",)),
    ("Get", PROPERTIES, "ss", ("org.freedesktop.DBus", "Features")),
    ("GetAll", PROPERTIES, "s", ("org.freedesktop.DBus",)),
    ("Set", PROPERTIES, "ssv", ("org.freedesktop.DBus", "Features", ("as", []))),
    ("Introspect", INTROSPECTABLE, "", ()),
    ("BecomeMonitor", MONITORING, "asu", ([], 1)),
    ("GetStats", STATS, "", ()),
    ("GetConnectionStats", STATS, "s", ("org.freedesktop.DBus",)),
    ("GetAllMatchRules", STATS, "", ()),
    ("Ping", PEER, "", ()),
    ("GetMachineId", PEER, "", ()),
    ("EnableVerbose", b"org.freedesktop.DBus.Verbose", "", ()),
    ("GetInstanceInfo", b"org.freedesktop.DBus.Containers1", "o", ("/",)),
]
MASKS = {
    "Introspect": xml, "Get": interfaces, "GetAll": interfaces, "GetStats": stats,
    "GetAllMatchRules": unordered, "ListNames": unordered, "ListActivatableNames": unordered,
    "GetConnectionCredentials": credentials,
}  # fmt: skip


@scenario()
def every_method(stage: Stage) -> None:
    """At its place, elsewhere, without an interface, with a wrong one, unasked, both endians."""
    client = stage.client("client")
    client.driver("AddMatch", "s", "member='ActivatableServicesChanged'")
    for member, interface, signature, values in METHODS:
        mask = MASKS.get(member)
        home = interface or b"org.freedesktop.DBus"
        for given in (
            {"interface": home},
            {"interface": home, "path": b"/elsewhere"},
            {"interface": home, "path": b"/org/freedesktop/DBus/x"},
            {"interface": None},
            {"interface": None, "path": b"/elsewhere"},
            {"interface": b"no.such"},
            {"interface": PEER if interface is not PEER else STATS},
            {"interface": home, "flags": 1},
            {"interface": home, "flags": 2},
            {"interface": home, "big_endian": True},
        ):
            client.driver(member, signature, *values, mask=mask, **given)


@scenario()
def wrong_arguments(stage: Stage) -> None:
    client = stage.client("client")
    for member, interface, signature, values in METHODS:
        home = interface or b"org.freedesktop.DBus"
        client.driver(member, signature + "s", *values, "more", interface=home)
        client.driver(member, "t", 5, interface=home)
        if signature:
            client.driver(member, interface=home)
        # The path is found wrong before the arguments are.
        client.driver(member, "t", 5, interface=home, path=b"/elsewhere")


@scenario()
def unprivileged(stage: Stage) -> None:
    client = stage.client("nobody", uid=NOBODY)
    for member, interface, signature, values in METHODS:
        home = interface or b"org.freedesktop.DBus"
        # These are for the privileged here; see test_who_may_make_the_bus_work.
        if home != STATS and member != "ReloadConfig":
            mask = MASKS.get(member)
            client.driver(member, signature, *values, interface=home, mask=mask)
    client.driver("UpdateActivationEnvironment", "s", "wrong", path=b"/elsewhere")
    client.driver("UpdateActivationEnvironment", "s", "wrong")
    client.driver("BecomeMonitor", "asu", [], 0, interface=MONITORING)
    client.driver("BecomeMonitor", "asu", [], 0, interface=MONITORING, flags=1)
    client.driver("AddMatch", "s", "eavesdrop='true'")
    client.driver("AddMatch", "s", "eavesdrop='true',eavesdrop='false'")
    client.driver("GetConnectionCredentials", "s", client.raw.unique_name, mask=credentials)
    client.driver("GetConnectionUnixUser", "s", client.raw.unique_name)


@scenario()
def who_is_who(stage: Stage) -> None:
    client, other = stage.client("client"), stage.client("other", fds=False)
    other.driver("RequestName", "su", "who.name", 0)
    theirs = ("who.name", other.raw.unique_name, client.raw.unique_name)
    for name in (*theirs, "org.freedesktop.DBus", "no.body", "", "not a name", ":9.9"):
        for member in (
            "GetConnectionUnixUser",
            "GetConnectionUnixProcessID",
            "GetConnectionCredentials",
            "GetAdtAuditSessionData",
            "GetConnectionSELinuxSecurityContext",
        ):
            if member == "GetConnectionUnixProcessID" and name in theirs and not ways.PEER_PIDS:
                continue  # dbus-daemon is told
            mask = MASKS.get(member)
            client.driver(member, "s", name, mask=mask)
            other.driver(member, "s", name, mask=mask)


@scenario()
def properties(stage: Stage) -> None:
    client = stage.client("client")
    names = (
        b"org.freedesktop.DBus", PROPERTIES, INTROSPECTABLE, PEER, MONITORING, STATS,
        b"org.freedesktop.DBus.Verbose", b"no.such", b"",
    )  # fmt: skip
    for interface in names:
        name = interface.decode()
        client.driver("GetAll", "s", name, interface=PROPERTIES, mask=interfaces)
        for item in ("Features", "Interfaces", "Nothing", ""):
            client.driver("Get", "ss", name, item, interface=PROPERTIES, mask=interfaces)
            client.driver("Set", "ssv", name, item, ("s", "x"), interface=PROPERTIES)


@scenario()
def introspection(stage: Stage) -> None:
    client = stage.client("client")
    for path in (
        b"/", b"/org", b"/org/freedesktop", b"/org/freedesktop/DBus", b"/org/freedesktop/DBus/x",
        b"/elsewhere",
    ):  # fmt: skip
        client.driver("Introspect", interface=INTROSPECTABLE, path=path, mask=xml)
        client.driver("Introspect", interface=None, path=path, mask=xml)


@scenario()
def statistics(stage: Stage) -> None:
    client, other = stage.client("client"), stage.client("other")
    other.driver("RequestName", "su", "stats.name", 0)
    for rule in (
        "", "member='B'", "type='signal',interface='a.b'", "type='error'", "path='/a'",
        "sender='a.b',destination=':1.999',arg0='it'\\''s',arg3path='/x',path_namespace='/p'",
    ):  # fmt: skip
        other.driver("AddMatch", "s", rule)
    other.driver("RemoveMatch", "s", "path='/a'")
    other.driver("RequestName", "su", "stats.other", 0)
    other.driver("ReleaseName", "s", "stats.other")
    client.driver("RequestName", "su", "stats.name", 0)
    stage.client("incomplete", hello=False)
    client.driver("GetStats", interface=STATS, mask=stats)
    names = ("stats.name", client.raw.unique_name, "org.freedesktop.DBus", "no.body", "")
    for name in names:
        client.driver("GetConnectionStats", "s", name, interface=STATS, mask=stats)
    client.driver("GetAllMatchRules", interface=STATS, mask=unordered)
    other.close()
    client.driver("GetAllMatchRules", interface=STATS, mask=unordered)


@scenario()
def reload_and_environment(stage: Stage) -> None:
    # Who has to wait for the reload is read first: jitney answers others meanwhile.
    client, watcher = stage.client("client"), stage.client("watcher")
    watcher.driver("AddMatch", "s", "type='signal'")
    client.driver("AddMatch", "s", "type='signal'")
    client.driver("ReloadConfig")
    client.driver("ReloadConfig", flags=1)
    client.driver("UpdateActivationEnvironment", "a{ss}", {"A": "b", "C": ""})
    client.driver("UpdateActivationEnvironment", "a{ss}", {"A": "b"}, flags=1)
    client.driver("UpdateActivationEnvironment", "a{ss}", {})
    client.driver("UpdateActivationEnvironment", "a{ss}", {"": "b", "=": "c", "x=y": "d"})


@scenario()
def starting_services(stage: Stage) -> None:
    client, owner = stage.client("client"), stage.client("owner")
    owner.driver("RequestName", "su", "started.name", 0)
    for name in (
        "started.name", "no.such", "org.freedesktop.DBus", owner.raw.unique_name, "", "not a name",
    ):  # fmt: skip
        client.driver("StartServiceByName", "su", name, 0)
        client.driver("StartServiceByName", "su", name, 7)
        client.driver("StartServiceByName", "su", name, 0, flags=1)


@scenario(extra='<limit name="max_match_rules_per_connection">3</limit>')
def limit_of_match_rules(stage: Stage) -> None:
    client = stage.client("client")
    for number in range(5):
        client.driver("AddMatch", "s", f"member='M{number}'")
    client.driver("RemoveMatch", "s", "member='M4'")
    client.driver("RemoveMatch", "s", "member='M1'")
    client.driver("AddMatch", "s", "member='M4'")
    client.driver("AddMatch", "s", "member='M5'")
    stage.client("other").driver("AddMatch", "s", "")


@scenario(
    extra="""
  <limit name="max_completed_connections">3</limit>
  <limit name="max_connections_per_user">3</limit>"""
)
def limit_of_connections(stage: Stage) -> None:
    stage.client("one")
    two = stage.client("two")
    three = stage.client("three", hello=False)
    three.driver("Hello")
    three.driver("GetId")
    two.close()
    three.hello()
