"""The machine's system bus at its own place: Debian's /etc/init.d/dbus starts jitney-daemon, and
programs find it where they always look; it starts a real service through the set-uid helper.

All of it in namespaces of its own: the machine's /run and /etc/default stay untouched, and what was
started has gone when the script's shell ends.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
from pathlib import Path

import buses
import pytest
import realbus

INIT = Path("/etc/init.d/dbus")
HELPER = Path("/usr/lib/dbus-1.0/dbus-daemon-launch-helper")
POLKITD = Path("/usr/lib/polkit-1/polkitd")
UNSHARE = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]

SCRIPT = r"""
mount -t proc proc /proc
mount -t tmpfs -o mode=755 none /run
mount -t tmpfs -o mode=755 none /etc/default
echo DAEMON=$1 >/etc/default/dbus
/etc/init.d/dbus start
pid=$(cat /run/dbus/pid)
ask() { gdbus call --system -d "$1" -o "$2" -m org.freedesktop.DBus.Properties.Get "$3" "$4"; }
echo "uid $(stat -c %u /proc/$pid)"
send() { dbus-send --system --print-reply --dest=$bus / $bus.$1; }
bus=org.freedesktop.DBus
echo "id $(send GetId | wc -l)"
polkit=org.freedesktop.PolicyKit1
echo "polkit $(ask $polkit /org/freedesktop/PolicyKit1/Authority $polkit.Authority BackendName)"
echo "as $(stat -c %U /proc/$(pgrep -x polkitd))"
send ReloadConfig
/etc/init.d/dbus status
/etc/init.d/dbus stop
echo "left $(ls /run/dbus)"
"""

WORDS = ("uid", "id", "polkit", "as", "left")
"""What the lines begin with that the script itself writes."""


def missing() -> str:
    reason = realbus.missing()
    if reason:
        return reason
    absent = [str(path) for path in (INIT, HELPER, POLKITD) if not path.exists()]
    absent += [name for name in ("gdbus", "dbus-send", "unshare") if shutil.which(name) is None]
    if absent:
        return f"not installed: {' '.join(absent)}"
    if subprocess.run([*UNSHARE, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        return "this container lets nobody make namespaces"
    return ""


def test_as_the_machines_bus() -> None:
    if reason := missing():
        pytest.skip(reason)
    with realbus.directory() as folder:
        daemon = folder / "jitney-daemon"
        path = shlex.quote(os.environ.get("PYTHONPATH", ""))
        command = shlex.join(buses.jitney_command())
        daemon.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {command} "$@"\n')
        daemon.chmod(0o755)
        done = subprocess.run(
            [*UNSHARE, "sh", "-e", "-c", SCRIPT, "sh", str(daemon)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dbus is running." in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.split(" ")[0] in WORDS]
    assert lines == [
        f"uid {pwd.getpwnam(realbus.USER).pw_uid}",
        "id 2",
        "polkit (<'js'>,)",
        "as polkitd",
        "left ",
    ]
