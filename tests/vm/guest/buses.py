"""What a machine and its user do with their buses, whichever these are.

Invariant: nothing here depends on what ran before in the same boot, so that all of it can be asked
again after the buses have been upgraded.
"""

from __future__ import annotations

import os

from helpers import (
    BUS,
    UID,
    USER,
    ask,
    command_line,
    ended,
    main_pid,
    processes_of,
    refused,
    run,
    session,
    status_of,
    user_of,
)  # fmt: skip

DBUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
AUDIT_WRITE = 1 << 29
"""The machine has SELinux's configuration, so that the sandbox leaves that to the bus."""
OTHER = {"jitney-daemon": "dbus-daemon", "dbus-daemon": "jitney-daemon"}[BUS]


def check_default_target() -> str:
    state = run("systemctl", "is-system-running", "--wait", status=None)
    failed = run("systemctl", "list-units", "--failed", "--plain", "--no-legend")
    assert not failed, failed
    assert state == "running", state + run("systemctl", "list-jobs")
    return run("systemctl", "is-active", "multi-user.target")


def check_login() -> str:
    """A session of a user without privileges, made by PAM on a serial line."""
    session()
    listed = run("loginctl", "list-sessions", "--no-legend")
    assert USER in listed, listed
    assert "ttyS2" in listed, listed
    own = ask("loginctl", "show-session", ask("printenv", "XDG_SESSION_ID"))
    shown = dict(line.split("=", 1) for line in own.splitlines())
    for name, value in (
        ("Name", USER), ("Service", "login"), ("Type", "tty"), ("TTY", "ttyS2"), ("Active", "yes"),
        ("Remote", "no"), ("Class", "user"),
    ):  # fmt: skip
        assert shown[name] == value, (name, shown)
    ask("loginctl", "user-status", USER)
    return listed


def check_system_bus_is() -> str:
    """The bus that was wanted, and no other beside it."""
    pid = main_pid()
    line = command_line(pid)
    assert BUS in line, line
    found = {pid: line for pid, line in processes_of(OTHER).items() if "jitney_" not in line}
    assert not found, found
    unit = run("systemctl", "show", "--value", "-P", "Id", "dbus.service")
    assert unit == ("jitney.service" if BUS == "jitney-daemon" else "dbus.service"), unit
    assert user_of(pid) == "messagebus"
    return f"{run('busctl', 'status')}\n{unit}: {pid} {line}"


def check_names() -> str:
    listed = run("busctl", "list", "--no-legend")
    for name in ("systemd1", "login1", "network1", "PolicyKit1", "timesync1", "hostname1"):
        assert f"org.freedesktop.{name} " in listed, (name, listed)
    assert "org.freedesktop.systemd1" in ask("busctl", "list")
    return listed


def check_sandbox() -> str:
    """What jitney's unit takes from it is gone, under systemd itself."""
    if BUS != "jitney-daemon":
        return "not dbus-daemon's"
    status = status_of(main_pid())
    for name, value in (("NoNewPrivs", "1"), ("Seccomp", "2")):
        assert status[name] == value, (name, status[name])
    for name in ("CapBnd", "CapPrm", "CapEff"):
        assert int(status[name], 16) == AUDIT_WRITE, (name, status[name])
    # What the bus starts gets nothing.
    assert int(status["CapAmb"], 16) == 0, status["CapAmb"]
    return run("systemd-analyze", "security", "--no-pager", "jitney.service").splitlines()[-1]


def check_user_bus_is() -> str:
    address = ask("printenv", "DBUS_SESSION_BUS_ADDRESS")
    assert address == f"unix:path=/run/user/{UID}/bus", address
    # It is started by whoever calls first.
    names = ask("busctl", "--user", "list", "--no-legend")
    assert "org.freedesktop.systemd1 " in names, names
    pid = main_pid("--user")
    line = command_line(pid)
    assert BUS in line, line
    assert user_of(pid) == USER, line
    state = ask("systemctl", "--user", "is-system-running", "--wait")
    assert state == "running", state
    return f"{pid} {line}"


def check_systemd_run_user() -> str:
    return equals(
        ask("systemd-run", "--user", "--wait", "--pipe", "--quiet", "id", "-un"), USER
    )  # the command's output comes by descriptors that the bus passed


def check_systemd_run_system() -> str:
    return equals(run("systemd-run", "--wait", "--pipe", "--quiet", "id", "-un"), "root")


def check_systemd_run_with_pam() -> str:
    """Another session for the user, which logind makes for a service."""
    said = run(
        "systemd-run", "--wait", "--pipe", "--quiet", f"--uid={USER}", "-p", "PAMName=login",
        "busctl", "--user", "call", *DBUS, "GetNameOwner", "s", "org.freedesktop.systemd1",
    )  # fmt: skip
    assert said.startswith('s ":1.'), said
    return said


def check_networkctl() -> str:
    assert "lo" in run("networkctl", "list", "--no-legend").split()
    assert "State: " in run("networkctl", "status", "lo")
    assert '"Interfaces"' in ask(
        "busctl", "call", "org.freedesktop.network1", "/org/freedesktop/network1",
        "org.freedesktop.network1.Manager", "Describe",
    ).replace("\\", "")  # fmt: skip
    return run("networkctl", "list")


def check_activation() -> str:
    """Services that systemd starts because somebody calls them, and that end when idle."""
    seen = []
    for unit, command in (
        ("systemd-hostnamed", ("hostnamectl", "status")),
        ("systemd-timedated", ("timedatectl", "show")),
        ("systemd-localed", ("localectl", "status")),
    ):
        run("systemctl", "stop", unit)
        assert run("systemctl", "is-active", unit, status=None) == "inactive"
        said = ask(*command)
        assert run("systemctl", "is-active", unit) == "active", said
        seen.append(said.splitlines()[0])
    return "; ".join(seen)


def check_unknown_service() -> str:
    """A name that nobody has and nobody can start, in the words that all know."""
    call = ("busctl", "call", "org.example.Nobody", "/", "org.example", "A")
    said = refused(ask, *call)
    assert "not provided by any .service files" in said, said
    return said


def check_polkit_by_itself() -> str:
    actions = run("pkaction").split()
    assert "org.freedesktop.login1.reboot" in actions, actions
    pid = ask("sh", "-c", "echo $PPID")
    for action, status in (
        ("org.freedesktop.timedate1.set-timezone", 0),
        ("org.freedesktop.hostname1.set-static-hostname", 1),
        ("org.freedesktop.timedate1.set-ntp", 2),  # would have to say who they are
    ):
        found = ended(ask, "pkcheck", "--action-id", action, "--process", pid)
        assert found[0] == status, (action, found)
    return f"{len(actions)} actions"


def check_polkit_allows() -> str:
    before = os.path.realpath("/etc/localtime")
    zone = "Europe/Oslo" if "Oslo" not in before else "Europe/Lisbon"
    ask("timedatectl", "set-timezone", zone)
    assert os.path.realpath("/etc/localtime").endswith(zone)
    return f"{before} -> {zone}"


def check_polkit_denies() -> str:
    name = run("hostnamectl", "hostname")
    said = refused(ask, "hostnamectl", "set-hostname", "elsewhere")
    assert "Access denied" in said or "denied" in said, said
    assert run("hostnamectl", "hostname") == name
    return said


def check_policy_denies_call() -> str:
    """What systemd's own policy file keeps from users."""
    said = refused(
        ask, "busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
        "org.freedesktop.systemd1.Manager", "SetExitCode", "y", "3",
    )  # fmt: skip
    assert "Access denied" in said or "Rejected send message" in said, said
    return said


def check_policy_denies_name() -> str:
    said = refused(ask, "busctl", "call", *DBUS, "RequestName", "su", "org.freedesktop.login1", "0")
    assert "is not allowed to own the service" in said or "Access denied" in said, said
    return said


def check_inhibit() -> str:
    """logind passes a descriptor to the user, and notices that it is closed."""
    said = ask("systemd-inhibit", "--what=idle", "--who=vm", "--why=x", "systemd-inhibit", "--list")
    assert "vm" in said, said
    assert "vm" not in run("systemd-inhibit", "--list", "--no-legend").split()
    return said


def check_other_clients() -> str:
    """GLib's and libdbus's, on both buses."""
    for bus in ("--system", "--session"):
        said = ask(
            "gdbus", "call", bus, "--dest", DBUS[0], "--object-path", DBUS[1],
            "--method", "org.freedesktop.DBus.GetId",
        )  # fmt: skip
        assert said.startswith("('"), said
        said = ask("dbus-send", bus, "--print-reply", f"--dest={DBUS[0]}", DBUS[1],
                   "org.freedesktop.DBus.ListActivatableNames")  # fmt: skip
        assert "org.freedesktop.systemd1" in said, said
    return said


def equals(found: str, wanted: str) -> str:
    assert found == wanted, found
    return found
