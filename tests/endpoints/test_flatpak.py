"""A flatpak's manifest: what it may do on the session and accessibility bus, behind xdg-dbus-proxy
and behind our endpoints.

Invariant: the words are those that `flatpak run` gives the proxy for such a manifest; each step
says what must come of it, and both worlds must agree with that and with each other.
"""

from __future__ import annotations

from typing import Any

import buses
import pytest
from endpoints.worlds import CLIENT, PROXY, world

from jitney.compat import wire

APP = "org.example.Editor"
MANIFEST = [
    "--share=ipc", "--socket=wayland", "--device=dri", "--filesystem=xdg-documents",
    "--talk-name=org.freedesktop.secrets", "--talk-name=org.gtk.vfs.*",
    "--own-name=org.example.Helpers.*",
]  # fmt: skip

PORTAL, OTHER_PORTAL = "org.freedesktop.portal.Desktop", "org.freedesktop.portal.Documents"
DESKTOP = "/org/freedesktop/portal/desktop"
BACKEND = "org.freedesktop.impl.portal.desktop.example"
REGISTRY, ROOT = "org.a11y.atspi.Registry", "/org/a11y/atspi/accessible/root"
CONTROLLER = "/org/a11y/atspi/registry/deviceeventcontroller"
DENIED, UNKNOWN = "AccessDenied", "ServiceUnknown"


def session_words(finish_args: list[str]) -> list[str]:
    """What flatpak makes of a manifest's finish-args, and adds for every app."""
    words = ["--filter", f"--own={APP}.*", f"--own=org.mpris.MediaPlayer2.{APP}.*"]
    for key, given in (("talk", "--talk-name="), ("own", "--own-name=")):
        words += [
            f"--{key}={word.removeprefix(given)}" for word in finish_args if word.startswith(given)
        ]
    return [
        *words,
        "--call=org.freedesktop.portal.*=*",
        "--broadcast=org.freedesktop.portal.*=@/org/freedesktop/portal/*",
    ]


ACCESSIBILITY = [
    "--filter",
    "--sloppy-names",
    f"--call={REGISTRY}=org.a11y.atspi.Socket.Embed@{ROOT}",
    f"--call={REGISTRY}=org.a11y.atspi.Socket.Unembed@{ROOT}",
    f"--call={REGISTRY}=org.a11y.atspi.Registry.GetRegisteredEvents@/org/a11y/atspi/registry",
    f"--call={REGISTRY}=org.a11y.atspi.DeviceEventController.*@{CONTROLLER}",
]


def call(to: str, path: str, interface: str, member: str) -> tuple[Any, ...]:
    return ("talk", CLIENT, to, path, interface, member)


def signal(who: str, to: str | None, path: str, interface: str, member: str) -> tuple[Any, ...]:
    return ("send", who, wire.SIGNAL, to, path, interface, member)


# The portals are S's, what the app may talk to is T's, and what it does not see is W's.
SESSION: list[tuple[tuple[Any, ...], Any]] = [
    (("own", "S", PORTAL), None),
    (("own", "S", OTHER_PORTAL), None),
    (("own", "T", "org.freedesktop.secrets"), None),
    (("own", "T", "org.gtk.vfs.Daemon"), None),
    (("own", "W", "org.freedesktop.systemd1"), None),
    (("own", "W", BACKEND), None),
    # Portals: any call, and what comes back.
    (call(PORTAL, DESKTOP, "org.freedesktop.portal.FileChooser", "OpenFile"), "S"),
    (call(PORTAL, DESKTOP, "org.freedesktop.DBus.Properties", "GetAll"), "S"),
    (call(OTHER_PORTAL, "/org/freedesktop/portal/documents", "org.example.Any", "Any"), "S"),
    (signal("S", "@C", f"{DESKTOP}/request/1", "org.freedesktop.portal.Request", "Response"), True),
    (signal("S", None, DESKTOP, "org.freedesktop.portal.Settings", "SettingChanged"), True),
    (signal("S", None, "/org/freedesktop/portal", "org.example.Any", "Any"), True),
    (signal("S", None, "/org/freedesktop/portals", "org.example.Any", "Any"), False),
    (signal("S", None, "/", "org.example.Any", "Any"), False),
    # A portal's backend is not a portal, and nor is anybody else.
    (call(BACKEND, DESKTOP, "org.freedesktop.impl.portal.Access", "AccessDialog"), UNKNOWN),
    (call("org.freedesktop.systemd1", "/", "org.example.Any", "StartTransientUnit"), UNKNOWN),
    (signal("W", None, DESKTOP, "org.freedesktop.portal.Settings", "SettingChanged"), False),
    # --talk-name
    (call("org.freedesktop.secrets", "/", "org.freedesktop.Secret.Service", "OpenSession"), "T"),
    (call("org.gtk.vfs.Daemon", "/", "org.gtk.vfs.Daemon", "ListMonitorImplementations"), "T"),
    (call("org.gtk.vfs", "/", "org.gtk.vfs.Daemon", "Any"), UNKNOWN),
    (call("org.gtk.vfsd", "/", "org.gtk.vfs.Daemon", "Any"), UNKNOWN),
    (signal("T", None, "/org/freedesktop/secrets", "org.example.Any", "Changed"), True),
    # --own-name, and the app's own
    (("own", CLIENT, APP), 1),
    (("own", CLIENT, f"{APP}.Window1"), 1),
    (("own", CLIENT, "org.example.Helpers"), 1),
    (("own", CLIENT, "org.example.Helpers.One"), 1),
    (("own", CLIENT, f"org.mpris.MediaPlayer2.{APP}"), 1),
    (("own", CLIENT, "org.example.HelpersToo"), UNKNOWN),
    (("own", CLIENT, "org.example"), UNKNOWN),
    (("own", CLIENT, "org.freedesktop.secrets"), DENIED),
    (("own", CLIENT, f"{PORTAL}.Mine"), DENIED),
]

BUS: list[tuple[tuple[Any, ...], Any]] = [
    (("own", "S", REGISTRY), None),
    (call(REGISTRY, ROOT, "org.a11y.atspi.Socket", "Embed"), "S"),
    (call(REGISTRY, ROOT, "org.a11y.atspi.Socket", "Others"), DENIED),
    (call(REGISTRY, "/org/a11y/atspi/null", "org.a11y.atspi.Socket", "Embed"), DENIED),
    (
        call(
            REGISTRY, CONTROLLER, "org.a11y.atspi.DeviceEventController", "GetKeystrokeListeners"
        ),
        "S",
    ),
    (call(REGISTRY, ROOT, "org.freedesktop.DBus.Properties", "GetAll"), DENIED),
    (("own", CLIENT, REGISTRY), DENIED),
    (("own", CLIENT, APP), UNKNOWN),
]  # fmt: skip


def outcome(step: tuple[Any, ...], got: dict[str, list[Any]]) -> Any:
    """What has come of it for the app: who answered, the error, or whether a signal arrived."""
    kind, who, *_ = step
    if kind == "own" and who != CLIENT:
        return None
    if kind == "send":
        member = step[-1]
        return any(entry[0] == wire.SIGNAL and entry[4] == member for entry in got[CLIENT])
    (reply,) = [entry for entry in got[CLIENT] if entry[0] in (wire.RETURN, wire.ERROR)]
    if reply[0] == wire.ERROR:
        return reply[5].rpartition(".")[2]
    return reply[6][0]


@pytest.mark.parametrize(
    ("words", "script"),
    [(session_words(MANIFEST), SESSION), (ACCESSIBILITY, BUS)],
    ids=["session", "accessibility"],
)
def test_a_manifest(words: list[str], script: list[tuple[tuple[Any, ...], Any]]) -> None:
    played = []
    for ours in (True, False):
        if not ours and (PROXY is None or buses.REFERENCE is None):
            continue
        with world(ours, words) as made:
            got = []
            for step, want in script:
                method, *arguments = step
                came = getattr(made, method)(*arguments)
                assert outcome(step, came) == want, (ours, step, came[CLIENT])
                got.append(came)
            played.append(got)
    for one, other in zip(played[0], played[-1], strict=True):
        assert one == other
