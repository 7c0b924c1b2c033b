"""Lines that make jitney the bus on machines without systemd, to be read and then typed.

Invariant: printing them changes nothing; each set holds the way back, and the quoted words of a
command are what a shell makes the same words of again.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

KINDS = ("openrc", "runit", "s6", "container")

_SIGNS = {
    "openrc": ("/sbin/openrc-run", "/usr/sbin/openrc-run", "/usr/bin/openrc-run"),
    "runit": ("/sbin/runsvdir", "/usr/bin/runsvdir", "/usr/sbin/runsvdir"),
    "s6": ("/bin/s6-svscan", "/usr/bin/s6-svscan", "/usr/sbin/s6-svscan"),
}

SOCKET = "/run/dbus/system_bus_socket"

_OPENRC = """\
# As root. The service keeps its name, dbus, since others need it by that.
mkdir -p /etc/jitney
mv /etc/init.d/dbus /etc/jitney/openrc-dbus
cat > /etc/init.d/dbus <<'END'
#!/sbin/openrc-run
description="D-Bus System Message Bus (jitney)"
extra_started_commands="reload"
command={daemon}
command_args="--system --nofork --nopidfile"
command_background=yes
pidfile=/run/jitney.pid

depend() {{
    need localmount
    after bootmisc
}}

start_pre() {{
    mkdir -p /run/dbus
    rm -f {socket}
}}

start_post() {{
    tries=0
    until [ -S {socket} ] || [ "$tries" -ge 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
}}

# By the pid alone: Debian's start-stop-daemon does not know a script by --exec.
stop() {{
    if [ "$supervisor" = supervise-daemon ]; then
        default_stop
        return
    fi
    ebegin "Stopping the bus"
    start-stop-daemon --stop --oknodo --retry 15 --pidfile "$pidfile"
    eend $?
}}

reload() {{
    ebegin "Reloading the configuration of the bus"
    if [ "$supervisor" = supervise-daemon ]; then
        supervise-daemon "$RC_SVCNAME" --signal HUP --pidfile "$pidfile"
    else
        kill -HUP "$(cat "$pidfile")"
    fi
    eend $?
}}
END
chmod 755 /etc/init.d/dbus
reboot

# The way back, as root:
#   mv /etc/jitney/openrc-dbus /etc/init.d/dbus
#   rmdir /etc/jitney
#   reboot
"""

_RUN = """\
#!/bin/sh
exec 2>&1
mkdir -p /run/dbus
rm -f {socket}
exec {daemon} --system --nofork --nopidfile --nosyslog{more}
"""

_RUNIT = """\
# As root. The service keeps its name, dbus, since others ask `sv check dbus`.
services=/var/service    # /etc/service on Debian, /run/runit/service on Artix
mkdir -p /etc/sv/jitney
cat > /etc/sv/jitney/run <<'END'
{run}END
cat > /etc/sv/jitney/check <<'END'
#!/bin/sh
exec test -S {socket}
END
chmod 755 /etc/sv/jitney/run /etc/sv/jitney/check
readlink "$services/dbus"    # where it leads now, for the way back: /etc/sv/dbus
# runsvdir ends the running bus, and with it most of what runs, within five seconds.
ln -sfn /etc/sv/jitney "$services/dbus" && reboot

# The way back, as root:
#   ln -sfn /etc/sv/dbus "$services/dbus" && reboot
#   rm -r /etc/sv/jitney
"""

_S6 = """\
# As root. A source directory for s6-rc, and just as well a service directory for s6-svscan.
source=/etc/s6/sv    # where yours are
name=dbus            # dbus-srv on Artix
mkdir -p /etc/jitney
mv "$source/$name" /etc/jitney/s6-dbus
mkdir "$source/$name"
echo longrun > "$source/$name/type"
echo 3 > "$source/$name/notification-fd"
cat > "$source/$name/run" <<'END'
{run}END
chmod 755 "$source/$name/run"
# Then compile the database as your distribution does, and reboot.

# The way back, as root:
#   rm -r "$source/$name"
#   mv /etc/jitney/s6-dbus "$source/$name"
#   rmdir /etc/jitney
# Then compile again, and reboot.
"""

_CONTAINER_SYSTEM = """\
# An entry point, run as root, for a container whose programs want a system bus.
cat > /entrypoint.sh <<'END'
#!/bin/sh
set -e
mkdir -p /run/dbus
rm -f /run/dbus/pid {socket}
{daemon} --system --fork --nopidfile
exec "$@"
END
chmod 755 /entrypoint.sh
# In the Dockerfile:
#   ENTRYPOINT ["/entrypoint.sh"]

# The way back: take both out again.
"""

_CONTAINER_SESSION = """\
# An entry point that gives a container's program a session bus, as long as it runs.
cat > /entrypoint.sh <<'END'
#!/bin/sh
exec {run_session} -- "$@"
END
chmod 755 /entrypoint.sh
# In the Dockerfile:
#   ENTRYPOINT ["/entrypoint.sh"]

# The way back: take both out again.
"""

_SESSION = """\
# A session bus lives as long as the session. In ~/.xsession, ~/.xinitrc, or wherever yours is
# started, put before its command (startxfce4, sway ...):
exec dbus-run-session --dbus-daemon={daemon} -- startxfce4
# or, where there is no dbus-run-session:
exec {run_session} -- startxfce4

# The way back: take that out again.
"""


def guess(exists: Sequence[str]) -> str:
    """The kind of machine on which these of `signs()` exist."""
    return next((kind for kind, files in _SIGNS.items() if set(files) & set(exists)), "container")


def signs() -> list[str]:
    """Files by which `guess` tells machines apart."""
    return [file for files in _SIGNS.values() for file in files]


def lines(kind: str, scope: str, daemon: str) -> str:
    """What to type for the "system" bus or a "user"'s on a machine of that kind.

    `daemon`: the path of jitney-daemon; the interpreter it is installed with is beside it."""
    python = os.path.join(os.path.dirname(daemon), "python")
    words = {
        "daemon": shlex.quote(daemon),
        "run_session": f"{shlex.quote(python)} -m jitney.compat.run_session",
        "socket": SOCKET,
    }
    if scope == "user":
        return (_CONTAINER_SESSION if kind == "container" else _SESSION).format(**words)
    if kind == "openrc":
        return _OPENRC.format(**words)
    if kind == "container":
        return _CONTAINER_SYSTEM.format(**words)
    # s6 takes the first line on that descriptor for readiness.
    run = _RUN.format(more=" --print-address=3" if kind == "s6" else "", **words)
    return (_S6 if kind == "s6" else _RUNIT).format(run=run, **words)
