"""Real daemons on a system bus, and what different users get from them.

Invariant: daemons are started one after the other, each when the one before has its name, and have
been ended when `play()` is done; no call that is made here may change anything on the machine.
Where a daemon's answer depends on the machine's state, only its type is compared.

None of them needs an init system or hardware. Those that might touch the network get one of their
own, in which there is nothing but themselves.
"""

from __future__ import annotations

import grp
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import realbus
from differential.masks import masked
from rawclient import RawClient
from waiting import comes

from jitney.compat import ways, wire

NOBODY = 65534
PROPERTIES = "org.freedesktop.DBus.Properties"


@dataclass(frozen=True)
class Ask:
    """A call that is made by each of the users. `same`: the values of the answer are compared, too,
    not only their types. `only`: the users that make it."""

    path: str
    interface: str
    member: str
    signature: str = ""
    values: tuple[Any, ...] = ()
    same: bool = False
    only: tuple[str, ...] = ("root", "nobody", "member")


def prop(path: str, interface: str, name: str, *, same: bool = False) -> Ask:
    return Ask(path, PROPERTIES, "Get", "ss", (interface, name), same)


def introspect(path: str) -> Ask:
    return Ask(path, "org.freedesktop.DBus.Introspectable", "Introspect", same=True)


@dataclass(frozen=True)
class Program:
    """A daemon. `network`: it may look at the network, and gets one where there is none."""

    package: str
    name: str
    command: tuple[str, ...]
    asks: tuple[Ask, ...]
    network: bool = False


PROGRAMS = (
    Program(
        "polkitd",
        "org.freedesktop.PolicyKit1",
        ("/usr/lib/polkit-1/polkitd", "--no-debug"),
        (
            prop(
                "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority",
                "BackendName", same=True,
            ),
            Ask(
                "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority",
                "EnumerateActions", "s", ("en",),
            ),
            # Who asks is whom polkit asks the bus about.
            Ask(
                "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority",
                "CheckAuthorization", "(sa{sv})sa{ss}us",
                (("system-bus-name", {"name": ("s", "<me>")}),
                 "org.freedesktop.hostname1.set-hostname", {}, 0, ""),
                same=True,
            ),
            Ask(
                "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority",
                "AuthenticationAgentResponse2", "us(sa{sv})", (5, "x", ("unix-user", {})),
            ),
            introspect("/org/freedesktop/PolicyKit1/Authority"),
        ),
    ),
    Program(
        "systemd",
        "org.freedesktop.hostname1",
        ("/lib/systemd/systemd-hostnamed",),
        (
            prop("/org/freedesktop/hostname1", "org.freedesktop.hostname1", "Hostname", same=True),
            Ask(
                "/org/freedesktop/hostname1", PROPERTIES, "GetAll", "s",
                ("org.freedesktop.hostname1",),
            ),
            # Through polkit, which says no to everybody but root.
            Ask(
                "/org/freedesktop/hostname1", "org.freedesktop.hostname1", "SetStaticHostname",
                "sb", ("elsewhere", False), only=("nobody", "member"),
            ),
            Ask("/org/freedesktop/hostname1", "org.freedesktop.hostname1", "Nothing"),
            Ask("/nowhere", "org.freedesktop.hostname1", "Nothing"),
            introspect("/org/freedesktop/hostname1"),
        ),
    ),
    Program(
        "systemd",
        "org.freedesktop.timedate1",
        ("/lib/systemd/systemd-timedated",),
        (
            prop("/org/freedesktop/timedate1", "org.freedesktop.timedate1", "Timezone", same=True),
            Ask("/org/freedesktop/timedate1", "org.freedesktop.timedate1", "ListTimezones"),
            Ask(
                "/org/freedesktop/timedate1", "org.freedesktop.timedate1", "SetTimezone",
                "sb", ("Europe/Berlin", False), only=("nobody", "member"),
            ),
        ),
    ),
    Program(
        "systemd",
        "org.freedesktop.locale1",
        ("/lib/systemd/systemd-localed",),
        (
            Ask(
                "/org/freedesktop/locale1", PROPERTIES, "GetAll", "s",
                ("org.freedesktop.locale1",),
            ),
            Ask(
                "/org/freedesktop/locale1", "org.freedesktop.locale1", "SetLocale",
                "asb", (["LANG=C"], False), only=("nobody", "member"),
            ),
        ),
    ),
    Program(
        "accountsservice",
        "org.freedesktop.Accounts",
        ("/usr/libexec/accounts-daemon",),
        (
            prop(
                "/org/freedesktop/Accounts", "org.freedesktop.Accounts", "DaemonVersion",
                same=True,
            ),
            Ask("/org/freedesktop/Accounts", "org.freedesktop.Accounts", "ListCachedUsers"),
            Ask(
                "/org/freedesktop/Accounts", "org.freedesktop.Accounts", "FindUserByName",
                "s", ("no-such-user",), same=True,
            ),
            Ask(
                "/org/freedesktop/Accounts", "org.freedesktop.Accounts", "CreateUser",
                "ssi", ("mallory", "Mallory", 0), only=("nobody", "member"),
            ),
        ),
    ),
    Program(
        "avahi-daemon",
        "org.freedesktop.Avahi",
        ("/usr/sbin/avahi-daemon", "--no-drop-root", "--no-chroot", "--no-rlimits"),
        (
            Ask("/", "org.freedesktop.Avahi.Server", "GetVersionString", same=True),
            Ask("/", "org.freedesktop.Avahi.Server", "GetHostName", same=True),
            Ask("/", "org.freedesktop.Avahi.Server", "GetState"),
            # For the group netdev alone. It is the daemon's own idea of a name, not the machine's.
            Ask(
                "/", "org.freedesktop.Avahi.Server", "SetHostName", "s", ("not a name.",),
                only=("nobody", "member"),
            ),
            introspect("/"),
        ),
        network=True,
    ),
    Program(
        "upower",
        "org.freedesktop.UPower",
        ("/usr/libexec/upowerd",),
        (
            prop(
                "/org/freedesktop/UPower", "org.freedesktop.UPower", "DaemonVersion", same=True
            ),
            Ask("/org/freedesktop/UPower", "org.freedesktop.UPower", "EnumerateDevices"),
            Ask("/org/freedesktop/UPower", "org.freedesktop.UPower", "GetCriticalAction"),
            introspect("/org/freedesktop/UPower"),
        ),
    ),
    Program(
        "rtkit",
        "org.freedesktop.RealtimeKit1",
        ("/usr/libexec/rtkit-daemon",),
        (
            prop(
                "/org/freedesktop/RealtimeKit1", "org.freedesktop.RealtimeKit1",
                "MaxRealtimePriority", same=True,
            ),
            Ask("/org/freedesktop/RealtimeKit1", "org.freedesktop.RealtimeKit1", "ResetAll"),
        ),
    ),
    Program(
        "wpasupplicant",
        "fi.w1.wpa_supplicant1",
        ("/sbin/wpa_supplicant", "-u"),
        (
            prop("/fi/w1/wpa_supplicant1", "fi.w1.wpa_supplicant1", "Interfaces", same=True),
            Ask(
                "/fi/w1/wpa_supplicant1", "fi.w1.wpa_supplicant1", "GetInterface",
                "s", ("wlan0",), same=True,
            ),
            introspect("/fi/w1/wpa_supplicant1"),
        ),
        network=True,
    ),
    Program(
        "modemmanager",
        "org.freedesktop.ModemManager1",
        ("/usr/sbin/ModemManager",),
        (
            prop(
                "/org/freedesktop/ModemManager1", "org.freedesktop.ModemManager1", "Version",
                same=True,
            ),
            Ask(
                "/org/freedesktop/ModemManager1", "org.freedesktop.DBus.ObjectManager",
                "GetManagedObjects", same=True,
            ),
            Ask(
                "/org/freedesktop/ModemManager1", "org.freedesktop.ModemManager1", "SetLogging",
                "s", ("NONSENSE",),
            ),
            Ask("/org/freedesktop/ModemManager1", "org.freedesktop.ModemManager1", "ScanDevices"),
        ),
        network=True,
    ),
    Program(
        "network-manager",
        "org.freedesktop.NetworkManager",
        ("/usr/sbin/NetworkManager", "--no-daemon", "--config={config}"),
        (
            prop(
                "/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "Version",
                same=True,
            ),
            Ask("/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "GetDevices"),
            Ask(
                "/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager",
                "GetPermissions", same=True,
            ),
            Ask(
                "/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "SetLogging",
                "ss", ("NONSENSE", "NONSENSE"),
            ),
            Ask(
                "/org/freedesktop/NetworkManager/Settings",
                "org.freedesktop.NetworkManager.Settings", "ListConnections", same=True,
            ),
        ),
        network=True,
    ),
    Program(
        "dnsmasq-base",
        "uk.org.thekelleys.dnsmasq",
        (
            "/usr/sbin/dnsmasq", "--keep-in-foreground", "--enable-dbus", "--port=0",
            "--conf-file=/dev/null", "--user=root", "--pid-file=",
        ),
        (
            Ask(
                "/uk/org/thekelleys/dnsmasq", "uk.org.thekelleys.dnsmasq", "GetVersion", same=True
            ),
            introspect("/uk/org/thekelleys/dnsmasq"),
        ),
        network=True,
    ),
)  # fmt: skip

EVERYBODY = ("netdev", "bluetooth", "plugdev", "sudo")
"""The groups that the user "member" is in."""

CONFIG = "[main]\nplugins=keyfile\nno-auto-default=*\n[keyfile]\nunmanaged-devices=*\n"


def missing() -> str:
    """Which packages are not installed, as a sentence, or nothing."""
    absent = sorted({one.package for one in PROGRAMS if shutil.which(one.command[0]) is None})
    return f"not installed: {' '.join(absent)}" if absent else ""


def programs() -> list[Program]:
    """Those that can be run here: not every container lets its root make a network."""
    own = subprocess.run(["unshare", "--net", "true"], stderr=subprocess.DEVNULL, check=False)
    return [one for one in PROGRAMS if not one.network or own.returncode == 0]


def started(record: list[str]) -> list[str]:
    """The names that real daemons had."""
    return [line.removeprefix("started ") for line in record if line.startswith("started ")]


@contextmanager
def daemon(program: Program, bus: realbus.SystemBus, folder: Path) -> Iterator[None]:
    """A program that runs on the bus."""
    (folder / "config").write_text(CONFIG)
    command = [word.format(config=folder / "config") for word in program.command]
    if program.network:
        command = ["unshare", "--net", *command]
    with (folder / f"{program.name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=bus.environ, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield
    finally:
        realbus.end(process)


class Client:
    """A user of the bus, and what is not compared of what he gets."""

    def __init__(
        self, name: str, bus: realbus.SystemBus, uid: int, groups: tuple[int, ...]
    ) -> None:
        self.name = name
        self.raw = RawClient(bus.address, uid=uid, groups=groups, timeout=30)
        self.raw.hello()

    def has_owner(self, name: str) -> bool:
        reply = self.raw.reply_to(self.raw.driver(b"NameHasOwner", "s", name))
        return bool(reply.body[0])

    def ask(self, destination: str, ask: Ask) -> str:
        serial = self.raw.message(
            destination=destination.encode(),
            path=ask.path.encode(),
            interface=ask.interface.encode(),
            member=ask.member.encode(),
            signature=ask.signature,
            values=[self._mine(value) for value in ask.values],
        )
        reply = self.raw.reply_to(serial)
        reply.close_fds()
        if reply.type == wire.RETURN:
            return f"{reply.signature} {reply.body if ask.same else '...'}"
        return f"{reply.error_name} {masked(str(reply.body))}"

    def _mine(self, value: Any) -> Any:
        if value == "<me>":
            return self.raw.unique_name
        if isinstance(value, tuple):
            return tuple(self._mine(part) for part in value)
        if isinstance(value, dict):
            return {key: self._mine(part) for key, part in value.items()}
        return value


def play(bus: realbus.SystemBus) -> list[str]:
    """Starts them all on a bus and makes all calls; what came of it."""
    record: list[str] = []
    gids = tuple(grp.getgrnam(name).gr_gid for name in EVERYBODY)
    clients = [
        Client("root", bus, 0, (0,)),
        Client("nobody", bus, NOBODY, (NOBODY,)),
    ]
    if ways.LINUX:
        # Else ours takes a user's groups from the user database, as other systems do.
        clients.append(Client("member", bus, NOBODY, (NOBODY, *gids)))
    root = clients[0]
    wanted = programs()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jitney-daemons-")))
        for client in clients:
            stack.callback(client.raw.close)
        for program in wanted:
            stack.enter_context(daemon(program, bus, folder))
            if comes(lambda name=program.name: root.has_owner(name)):
                record.append(f"started {program.name}")
            else:
                log = (folder / f"{program.name}.log").read_text(errors="replace")
                record.append(f"did not start: {program.name}: {log[-1000:]}")
        for program in wanted:
            for ask in program.asks:
                for client in clients:
                    if client.name in ask.only:
                        came = client.ask(program.name, ask)
                        what = f"{program.name} {ask.path} {ask.interface}.{ask.member}"
                        record.append(f"{client.name} asks {what}{ask.values}: {came}")
    return record
