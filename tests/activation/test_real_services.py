"""Services that people have, started on demand on a machine without a display or systemd.

Each test is skipped, with the package's name, where what it needs is not installed; .ci/run
installs all of it. Every test holds on dbus-daemon as well.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import kernel
import pytest
from activation.living import Living
from activation.systembus import SystemBus, commands, impossible, system_bus
from rawclient import RawClient

Start = Callable[..., Living]

SESSION = """<busconfig>
  <type>session</type>
  <listen>unix:path={directory}/bus</listen>
  <standard_session_servicedirs/>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
  {extra}
</busconfig>
"""


def needs(*packages: tuple[str, str]) -> pytest.MarkDecorator:
    """Skips a test unless the named files are there; (file, Debian's package that has it)."""
    missing = [
        package
        for file, package in packages
        if not (os.path.exists(file) if file.startswith("/") else shutil.which(file))
    ]
    reason = f"not installed: {' '.join(missing)}"
    return pytest.mark.skipif(bool(missing), reason=reason)


@pytest.fixture
def session(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """Runs a program on a session bus with a home of its own; what it printed."""
    places = {
        "HOME": "home", "XDG_CONFIG_HOME": "home/.config", "XDG_CACHE_HOME": "home/.cache",
        "XDG_DATA_HOME": "home/.local/share", "XDG_RUNTIME_DIR": "run",
    }  # fmt: skip
    for name, place in places.items():
        (tmp_path / place).mkdir(parents=True, mode=0o700, exist_ok=True)
        monkeypatch.setenv(name, str(tmp_path / place))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "GNOME_KEYRING_CONTROL", "AT_SPI_BUS_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    bus = start(config=SESSION)
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus.daemon.address)

    def run(command: str, given: str = "", address: str = "") -> str:
        environment = dict(os.environ)
        if address:
            environment["DBUS_SESSION_BUS_ADDRESS"] = address
        done = subprocess.run(
            shlex.split(command), input=given, env=environment,
            capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{bus.log}"
        return done.stdout

    yield run
    for client in bus.clients:
        client.close()


def owned(run: Callable[..., str], name: str) -> bool:
    bus = "--dest org.freedesktop.DBus --object-path /org/freedesktop/DBus"
    method = "org.freedesktop.DBus.NameHasOwner"
    return "true" in run(f"gdbus call --session {bus} --method {method} {name}")


@needs(
    ("/usr/share/dbus-1/services/ca.desrt.dconf.service", "dconf-service"),
    ("gsettings", "libglib2.0-bin"),
    ("/usr/share/glib-2.0/schemas/gschemas.compiled", "gsettings-desktop-schemas"),
    ("dconf", "dconf-cli"),
)
def test_dconf(session: Callable[..., str], tmp_path: Path) -> None:
    """Written through gsettings, which starts dconf-service, and read back by others."""
    key = "org.gnome.desktop.interface clock-format"
    assert not owned(session, "ca.desrt.dconf")
    session(f"gsettings set {key} 12h")
    assert owned(session, "ca.desrt.dconf")
    assert session(f"gsettings get {key}") == "'12h'\n"
    assert session("dconf read /org/gnome/desktop/interface/clock-format") == "'12h'\n"
    assert (tmp_path / "home/.config/dconf/user").exists()
    session("dconf write /jitney/number 42")
    assert session("dconf read /jitney/number") == "42\n"


@needs(
    ("/usr/share/dbus-1/services/org.freedesktop.secrets.service", "gnome-keyring"),
    ("secret-tool", "libsecret-tools"),
)
@kernel.needs_random
def test_gnome_keyring(session: Callable[..., str]) -> None:
    """The collection `session` needs no password that somebody would have to be asked for."""
    assert not owned(session, "org.freedesktop.secrets")
    session("secret-tool store --collection=session --label=test jitney test", "it is a secret")
    assert owned(session, "org.freedesktop.secrets")
    assert session("secret-tool lookup jitney test") == "it is a secret"
    session("secret-tool clear jitney test")
    # Nothing found is exit status 1 of lookup, but not of search.
    assert "it is a secret" not in session("secret-tool search jitney test")


@needs(
    ("/usr/share/dbus-1/services/org.a11y.Bus.service", "at-spi2-core"),
    ("gdbus", "libglib2.0-bin"),
)
def test_at_spi(session: Callable[..., str]) -> None:
    """Its bus is started by the service, and on that bus the registry on demand once more."""
    bus = "--dest org.a11y.Bus --object-path /org/a11y/bus --method org.a11y.Bus.GetAddress"
    found = re.search(r"unix:[^']*", session(f"gdbus call --session {bus}"))
    assert found is not None
    assert owned(session, "org.a11y.Bus")
    registry = (
        "--dest org.a11y.atspi.Registry --object-path /org/a11y/atspi/registry "
        "--method org.a11y.atspi.Registry.GetRegisteredEvents"
    )
    assert session(f"gdbus call --session {registry}", address=found[0]).startswith("(")


# ---- system services, through the set-uid helper

WHY_NOT = impossible()


@pytest.fixture(params=commands(), ids=lambda param: param[0])
def system(request: pytest.FixtureRequest) -> Iterator[SystemBus]:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    with system_bus(request.param[1]) as bus:
        yield bus


def owner_uid(bus: SystemBus, name: str) -> int:
    with RawClient(bus.address) as client:
        client.hello()
        reply = client.reply_to(client.driver(b"GetConnectionUnixUser", "s", name))
        assert not reply.error_name, reply
        return int(reply.body[0])


@needs(
    ("/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service", "polkitd"),
    ("busctl", "systemd"),
)
def test_polkit(system: SystemBus) -> None:
    """It is started as root, as its file says, and goes on as a user of its own."""
    done = system.inside(
        "busctl", "call", "org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority",
        "org.freedesktop.PolicyKit1.Authority", "EnumerateActions", "s", "",
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}\n{system.log}"
    assert done.stdout.startswith("a(ssssssuuua{ss})")
    assert owner_uid(system, "org.freedesktop.PolicyKit1") != 0
    assert "(using servicehelper)" in system.log


@needs(
    ("/usr/share/dbus-1/system-services/org.freedesktop.Accounts.service", "accountsservice"),
    ("/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service", "polkitd"),
    ("busctl", "systemd"),
)
def test_accountsservice(system: SystemBus) -> None:
    """One service starts another: accounts-daemon asks polkit before it claims its name."""
    done = system.inside(
        "busctl", "call", "org.freedesktop.Accounts", "/org/freedesktop/Accounts",
        "org.freedesktop.Accounts", "FindUserByName", "s", "nobody",
    )  # fmt: skip
    # Some versions know no system users; that is an answer of the service, too.
    assert "/org/freedesktop/Accounts/User" in done.stdout or "no such user" in done.stderr.lower()
    assert owner_uid(system, "org.freedesktop.Accounts") == 0
    for name in ("Accounts", "PolicyKit1"):
        assert f"Successfully activated service 'org.freedesktop.{name}'" in system.log
