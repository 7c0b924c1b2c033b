"""The same scripts behind xdg-dbus-proxy and behind our endpoints, step by step."""

from __future__ import annotations

import random
from typing import Any

import buses
import pytest
from endpoints.worlds import ACTIVATABLE, CLIENT, PROXY, world

from jitney.compat import ways, wire

pytestmark = pytest.mark.skipif(
    PROXY is None or buses.REFERENCE is None, reason="no xdg-dbus-proxy or no dbus-daemon"
)

NAMES = (
    "com.example.Svc", "com.example.Svc.Sub", "com.example.Svcs", "com.example.Other",
    "com.example.Hidden", "org.freedesktop.DBus", *ACTIVATABLE,
)  # fmt: skip
POLICIES: dict[str, list[str]] = {
    "nothing": ["--filter"],
    "unfiltered": [],
    "see": ["--filter", "--see=com.example.Svc"],
    "talk": ["--filter", "--talk=com.example.Svc", "--see=com.example.Other"],
    "own": ["--filter", "--own=com.example.Svc", "--talk=com.example.Other"],
    "below": ["--filter", "--talk=com.example.Svc.*", "--own=com.example.Other.*"],
    "call": ["--filter", "--call=com.example.Svc=com.example.I.M@/o"],
    "calls": [
        "--filter",
        "--call=com.example.Svc=com.example.I.*@/o/*",
        "--call=com.example.Other=*",
        "--see=com.example.Svcs",
    ],
    "broadcast": ["--filter", "--broadcast=com.example.Svc=com.example.I.*@/o"],
    "any path": ["--filter", "--call=com.example.Svc.*=@/o", "--broadcast=com.example.*=*"],
    "sloppy": ["--filter", "--sloppy-names", "--see=com.example.Svc.Sub"],
    # As flatpak has them.
    "flatpak session": [
        "--filter",
        "--own=com.example.Svc.*",
        "--own=org.mpris.MediaPlayer2.com.example.Svc",
        "--talk=com.example.Other",
        "--call=org.freedesktop.portal.*=*",
        "--broadcast=org.freedesktop.portal.*=@/org/freedesktop/portal/*",
    ],
    "flatpak a11y": [
        "--filter",
        "--sloppy-names",
        "--call=com.example.Svc=com.example.I.M@/o/p",
        "--call=com.example.Svc=com.example.I.N@/o",
    ],
    "the bus": ["--filter", "--own=org.freedesktop.*", "--see=com.example.*"],
}
WHO = ("S", "T")
PATHS = ("/", "/o", "/o/p", "/op")
INTERFACES = ("com.example.I", "com.example.I.J", None)
MEMBERS = ("M", "N")
ASKED = (
    "GetNameOwner", "NameHasOwner", "GetConnectionUnixUser", "GetConnectionCredentials",
    "ListQueuedOwners", *(("GetConnectionUnixProcessID",) if ways.PEER_PIDS else ()),
)  # fmt: skip


def step(chance: random.Random) -> tuple[Any, ...]:
    """One more step of a script: a method of World and its arguments."""
    name = chance.choice([*NAMES, "@S", "@T", "@C", "@W", "@nobody"])
    path, member = chance.choice(PATHS), chance.choice(MEMBERS)
    interface = chance.choice(INTERFACES)
    who = chance.choice(WHO)
    # Services that are started would fail, each in its time.
    to = name if name not in ACTIVATABLE else "@S"
    kind = chance.randrange(12)
    if kind == 0:
        return ("own", chance.choice([*WHO, CLIENT]), chance.choice(NAMES[:5]))
    if kind in (1, 2):
        return ("ask", chance.choice(ASKED), name)
    if kind == 3:
        return ("listed", chance.choice(["ListNames", "ListActivatableNames"]))
    if kind in (4, 5):
        to = to if to != "org.freedesktop.DBus" else "@T"
        return ("talk", CLIENT, to, path, interface, member)
    if kind == 6:
        return ("send", CLIENT, wire.SIGNAL, to, path, interface or "com.example.I", member)
    if kind == 7:
        who = chance.choice([*WHO, CLIENT])
        return ("send", who, wire.SIGNAL, None, path, interface or "com.example.I", member)
    if kind == 8:
        return ("talk", who, "@C", path, interface, member)
    if kind == 9:
        return ("send", who, wire.SIGNAL, "@C", path, interface or "com.example.I", member)
    if kind == 10:
        return ("replaced", who)
    flags = chance.choice([0, 1, 2])
    return ("send", CLIENT, wire.CALL, "com.example.Hidden", path, interface, member, flags)


def played(ours: bool, words: list[str], script: list[tuple[Any, ...]]) -> list[Any]:
    with world(ours, words) as made:
        return [getattr(made, method)(*arguments) for method, *arguments in script]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", [1, 2])
def test_same_as_behind_the_proxy(name: str, seed: int) -> None:
    chance = random.Random(f"{name}{seed}")
    script = [
        ("own", "S", "com.example.Svc"),
        ("own", "T", "com.example.Other"),
        ("own", "W", "com.example.Hidden"),
        *[step(chance) for _ in range(120)],
    ]
    want, got = played(False, POLICIES[name], script), played(True, POLICIES[name], script)
    for i, (theirs, mine) in enumerate(zip(want, got, strict=True)):
        assert mine == theirs, f"step {i}: {script[i]} after {script[max(0, i - 5) : i]}"


BUS = [
    ("org.freedesktop.DBus", "GetId"),
    ("org.freedesktop.DBus", "UpdateActivationEnvironment", "a{ss}", {}),
    ("org.freedesktop.DBus", "ReloadConfig"),
    ("org.freedesktop.DBus", "AddMatch", "s", "type='signal'"),
    ("org.freedesktop.DBus", "AddMatch", "s", "eavesdrop='true'"),
    ("org.freedesktop.DBus", "AddMatch", "s", "type='signal',eavesdrop = 'true'"),
    ("org.freedesktop.DBus", "RemoveMatch", "s", "type='signal'"),
    ("org.freedesktop.DBus", "NoSuchMethod"),
    ("org.freedesktop.DBus", "StartServiceByName", "su", "com.example.Hidden.Starts", 0),
    ("org.freedesktop.DBus", "StartServiceByName", "su", "com.example.Nowhere", 0),
    ("org.freedesktop.DBus", "RequestName", "su", "com.example.Hidden", 4),
    ("org.freedesktop.DBus", "ReleaseName", "s", "com.example.Hidden"),
    ("org.freedesktop.DBus.Introspectable", "Introspect"),
    ("org.freedesktop.DBus.Properties", "GetAll", "s", "org.freedesktop.DBus"),
    ("org.freedesktop.DBus.Monitoring", "BecomeMonitor", "asu", [], 0),
    ("org.freedesktop.DBus.Peer", "Ping"),
    ("org.freedesktop.DBus.Debug.Stats", "GetStats"),
    (None, "GetId"),
    (None, "ListNames"),
]


@pytest.mark.parametrize("name", ["nothing", "talk", "own", "the bus"])
def test_the_bus_itself_is_as_shut(name: str) -> None:
    script = [("bus", *call) for call in BUS]
    want, got = played(False, POLICIES[name], script), played(True, POLICIES[name], script)
    assert [*zip(script, got, strict=True)] == [*zip(script, want, strict=True)]


def test_nobody_gets_replies_that_were_not_asked_for() -> None:
    script = [("unasked", "S", "@C"), ("unasked", CLIENT, "@S"), ("unasked", CLIENT, "@C")]
    assert played(True, ["--filter"], script) == [False] * 3
    assert played(False, ["--filter"], script) == [False] * 3


def test_talking_ends_with_the_name() -> None:
    """The one difference: a proxy goes on believing what a peer once was."""
    path, interface = "/o", "com.example.I"
    script = [
        ("own", "S", "com.example.Svc"),
        ("talk", CLIENT, "@S", path, interface, "M"),
        ("release", "S", "com.example.Svc"),
        ("talk", CLIENT, "@S", path, interface, "M"),
        ("ask", "GetConnectionUnixUser", "@S"),
    ]
    want, got = played(False, POLICIES["talk"], script), played(True, POLICIES["talk"], script)
    assert got[:3] == want[:3]
    assert answer(want[3])[0] == wire.RETURN
    assert answer(got[3])[5] == "org.freedesktop.DBus.Error.AccessDenied"
    # It is still seen, here as there, so that its end can be.
    assert got[4] == want[4]


@pytest.mark.parametrize("name", ["talk", "own", "below"])
def test_the_client_itself_by_the_names_that_it_owns(name: str) -> None:
    script = [
        ("own", CLIENT, "com.example.Svc"),
        ("own", CLIENT, "com.example.Other.Mine"),
        *[("ask", member, "@C") for member in ASKED],
    ]
    assert played(True, POLICIES[name], script) == played(False, POLICIES[name], script)


def test_scripts_reach_what_they_are_about() -> None:
    """That the scripts above make something pass and something not."""
    path, interface = "/o", "com.example.I"
    script = [
        ("own", "S", "com.example.Svc"),
        ("talk", CLIENT, "com.example.Svc", path, interface, "M"),
        ("talk", CLIENT, "com.example.Hidden", path, interface, "M"),
    ]
    _, passed, hidden = played(True, POLICIES["talk"], script)
    assert answer(passed)[6] == ["S"]
    assert answer(hidden)[5] == "org.freedesktop.DBus.Error.ServiceUnknown"


def answer(got: dict[str, list[Any]]) -> Any:
    """The reply that the client got."""
    (found,) = [entry for entry in got[CLIENT] if entry[0] in (wire.RETURN, wire.ERROR)]
    return found
