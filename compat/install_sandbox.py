"""The sandbox of the system bus's unit: what is in it, and where it cannot be had.

Invariant: a bus in this sandbox does all that a bus does but one thing: it cannot start services
itself. What systemd takes from a unit it takes from all that the unit starts, and the set-uid
helper is not root any more (NoNewPrivileges=). So the unit has it where every service of the system
bus is started by systemd (SystemdService=), as nearly all are, and says why not elsewhere.

The bus is never root in it: it starts as the configuration's `<user>`, with no capability, but
where a security module mediates with the one for the audit log.
"""

from __future__ import annotations

import re

from .install_changes import Tree

CONFIGURATIONS = (
    "/usr/share/dbus-1/system.conf",
    "/etc/dbus-1/system.conf",
    "/etc/dbus-1/system-local.conf",
)
SERVICES = tuple(
    f"{folder}/dbus-1/system-services"
    for folder in ("/etc", "/run", "/usr/local/share", "/usr/share", "/lib")
)

# Each with a reason where it is not plain.
_LINES = """\
User={user}
CapabilityBoundingSet=
NoNewPrivileges=yes
UMask=0077
ProtectSystem=strict
ProtectHome={home}
PrivateTmp=yes
PrivateDevices=yes
PrivateIPC=yes
PrivateMounts=yes
# Unix sockets in the file system are all that it has; user databases are asked through them.
PrivateNetwork=yes
IPAddressDeny=any
RestrictAddressFamilies=AF_UNIX
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
# Not ProtectProc=: what programs the log is about stands in /proc.
ProcSubset=pid
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
# More descriptors than it was started with, and fewer for those it starts.
SystemCallFilter=prlimit64 setrlimit
SystemCallErrorNumber=EPERM
"""

_MEDIATED = """\
# Security modules are asked by writing to their files, and told of in the audit log.
CapabilityBoundingSet=CAP_AUDIT_WRITE
AmbientCapabilities=CAP_AUDIT_WRITE
RestrictAddressFamilies=AF_NETLINK
ReadWritePaths={paths}
"""
MODULES = {
    "/etc/selinux/config": "/sys/fs/selinux",
    "/etc/apparmor.d": "/sys/kernel/security/apparmor",
}
"""By what a machine is known that has one, and where its files are. Whether AppArmor mediates D-Bus
is the kernel's affair, and the next one may where this one does not."""

_NOTE = """\
# Not sandboxed: {why}."""

_USER = re.compile(rb"<user>\s*([A-Za-z_][A-Za-z0-9_.-]*)\s*</user>")
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_NOTHING = ("/bin/false", "/usr/bin/false")


def lines(tree: Tree, daemon: str) -> str:
    """What the unit of the system bus has of it on this machine."""
    user = _user(tree)
    why = "no <user> in " + CONFIGURATIONS[0] if user is None else ""
    for service in started_by_the_bus(tree):
        why = f"{service} has no SystemdService="
    if why:
        return _NOTE.format(why=why)
    home = "read-only" if daemon.startswith(("/home/", "/root/", "/run/user/")) else "yes"
    paths = " ".join(f"-{files}" for sign, files in MODULES.items() if tree.exists(sign))
    mediated = _MEDIATED.format(paths=paths) if paths else ""
    return (_LINES.format(user=user, home=home) + mediated).rstrip()


def started_by_the_bus(tree: Tree) -> list[str]:
    """Service files whose programs systemd does not start; those that start nothing are none."""
    found = []
    for folder in SERVICES:
        for name in tree.names(folder):
            data = (tree.data(f"{folder}/{name}") or b"") if name.endswith(".service") else b""
            given = dict(
                line.strip().split("=", 1) for line in data.decode(errors="replace").splitlines()
                if "=" in line and not line.startswith("#")
            )  # fmt: skip
            runs = given.get("Exec", "").split(" ")[0]
            if runs and runs not in _NOTHING and "SystemdService" not in given:
                found.append(f"{folder}/{name}")
    return found


def _user(tree: Tree) -> str | None:
    """Whom the system bus becomes: the last word counts."""
    found = None
    for file in CONFIGURATIONS:
        for name in _USER.findall(_COMMENT.sub(b"", tree.data(file) or b"")):
            found = name.decode()
    return found
