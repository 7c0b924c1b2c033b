"""jitney-daemon as a system bus: started as root with Debian's own system.conf, as it is used.

What a container cannot show is a boot; everything up to that is looked at here from outside.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import buses
import kernel
import pytest
import realbus
from rawclient import RawClient
from waiting import comes

pytestmark = pytest.mark.skipif(bool(realbus.missing()), reason=realbus.missing())

AUDIT_WRITE = 1 << 29
NOBODY = 65534
MONITORING = b"org.freedesktop.DBus.Monitoring"
STATS = b"org.freedesktop.DBus.Debug.Stats"
DENIED = "org.freedesktop.DBus.Error.AccessDenied"


@pytest.fixture
def folder() -> Iterator[Path]:
    with realbus.directory() as path:
        yield path


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def is_privileged(facts: dict[str, str]) -> bool:
    """Whether a process can do more than write to the audit log."""
    kept = int(facts["CapEff"], 16) | int(facts["CapPrm"], 16)
    passed_on = int(facts["CapInh"], 16) | int(facts["CapAmb"], 16)
    return bool(kept & ~AUDIT_WRITE or passed_on)


def only_messagebus(pid: int) -> None:
    """A process is messagebus and nothing else, as dbus-daemon is."""
    facts = status(pid)
    entry = pwd.getpwnam(realbus.USER)
    assert facts["Uid"].split() == [str(entry.pw_uid)] * 4
    assert facts["Gid"].split() == [str(entry.pw_gid)] * 4
    assert facts["Groups"] == ""
    assert not is_privileged(facts)
    had = int(status(os.getpid())["CapPrm"], 16) & AUDIT_WRITE
    assert int(facts["CapEff"], 16) == had


def test_from_root_to_messagebus(folder: Path) -> None:
    """As an init script starts it: it forks, writes its pid, and is nobody special any more."""
    config = realbus.copy(folder, servicehelper="/bin/false")
    command = [*buses.jitney_command(), f"--config-file={config}"]
    old = os.umask(0o077)
    try:
        done = subprocess.run(
            [*command, "--print-address=1", "--print-pid=1"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    finally:
        os.umask(old)
    address, number = done.stdout.split()
    pid = int(number)
    try:
        assert (folder / "run/pid").read_text() == f"{pid}\n"
        only_messagebus(pid)
        assert status(pid)["Umask"] == "0022"
        assert os.getsid(pid) == pid
        assert (folder / "run/bus").stat().st_mode & 0o777 == 0o777
        limits = Path(f"/proc/{pid}/limits").read_text()
        found = re.search(r"^Max open files +(\d+) +(\d+)", limits, re.MULTILINE)
        assert found is not None
        assert found[1] == found[2]
        messagebus = pwd.getpwnam(realbus.USER).pw_uid
        for uid in (0, messagebus, NOBODY):
            with RawClient(address, uid=uid) as client:
                name = client.hello()
                reply = client.reply_to(client.driver(b"GetConnectionUnixUser", "s", name))
                assert reply.body == [uid]
        # A second one finds the first one's pid file, and leaves its socket alone.
        again = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert again.returncode == 1
        assert f'The pid file "{folder}/run/pid" exists' in again.stderr
        with RawClient(address) as client:
            client.hello()
    finally:
        os.kill(pid, signal.SIGTERM)
        ended = comes(lambda: not Path(f"/proc/{pid}").exists())
    assert ended
    assert os.listdir(folder / "run") == []


@pytest.mark.skipif(buses.REFERENCE is None, reason="no dbus-daemon to compare with")
@pytest.mark.parametrize("user", ["messagebus", "root", "nobody"])
def test_what_is_left_of_root(user: str) -> None:
    """Ids, groups and capabilities, beside dbus-daemon's."""
    assert buses.REFERENCE is not None
    found = []
    for command in ([buses.REFERENCE], buses.jitney_command()):
        with realbus.directory() as folder:
            config = realbus.copy(folder, user=user)
            with realbus.running(command, config) as bus, RawClient(bus.address) as client:
                client.hello()
                facts = status(bus.pid)
                found.append({
                    key: facts[key]
                    for key in (
                        "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
                        "NoNewPrivs", "Umask",
                    )
                })  # fmt: skip
    assert found[1] == found[0]


@pytest.mark.weakness("CVE-2014-8148")
def test_privileged_methods(folder: Path) -> None:
    """Nobody may not, wherever he asks; root may, but only at the bus's own path."""
    config = realbus.copy(folder, servicehelper="/bin/false")
    environment = ("a{ss}", {"LD_PRELOAD": "/tmp/x.so"})
    calls = [
        (b"UpdateActivationEnvironment", interface, path, environment)
        for interface in (b"org.freedesktop.DBus", None, STATS)
        for path in (b"/org/freedesktop/DBus", b"/", b"/anywhere")
    ]
    calls += [
        (member, interface, path, arguments)
        for member, interface, arguments in (
            (b"BecomeMonitor", MONITORING, ("asu", [], 0)),
            (b"BecomeMonitor", None, ("asu", [], 0)),
            (b"GetStats", STATS, ("",)),
            (b"GetAllMatchRules", STATS, ("",)),
            (b"ReloadConfig", b"org.freedesktop.DBus", ("",)),
            (b"EnableVerbose", b"org.freedesktop.DBus.Verbose", ("",)),
        )
        for path in (b"/org/freedesktop/DBus", b"/anywhere")
    ]
    with realbus.running(buses.jitney_command(), config) as bus:
        with RawClient(bus.address, uid=NOBODY) as nobody:
            nobody.hello()
            for member, interface, path, arguments in calls:
                reply = nobody.reply_to(
                    nobody.driver(member, *arguments, interface=interface, path=path)
                )
                assert reply.error_name == DENIED, (member, interface, path, reply)
        with RawClient(bus.address) as root:
            root.hello()
            reply = root.reply_to(root.driver(b"GetStats", interface=STATS))
            assert reply.signature == "a{sv}"
            reply = root.reply_to(root.driver(b"GetStats", interface=STATS, path=b"/anywhere"))
            assert reply.error_name == "org.freedesktop.DBus.Error.UnknownInterface"
            reply = root.reply_to(root.driver(b"BecomeMonitor", "asu", [], 0, interface=MONITORING))
            assert not reply.error_name


def test_who_may_make_the_bus_work() -> None:
    """With dbus-daemon, only a policy keeps somebody from the statistics of all others, and nothing
    from making the bus read its files. Here it takes root or the bus's own user whatever the
    policy says."""
    calls = (
        (b"GetStats", STATS, ""),
        (b"GetConnectionStats", STATS, "s"),
        (b"GetAllMatchRules", STATS, ""),
        (b"ReloadConfig", b"org.freedesktop.DBus", ""),
    )
    with (
        buses.running(buses.jitney_command()) as bus,
        RawClient(bus.address, uid=NOBODY) as nobody,
        RawClient(bus.address) as root,
    ):
        nobody.hello()
        root.hello()
        for member, interface, signature in calls:
            values = [root.unique_name] if signature else []
            for client in (nobody, root):
                serial = client.driver(member, signature, *values, interface=interface)
                reply = client.reply_to(serial)
                assert reply.error_name == (DENIED if client is nobody else None), member


def test_as_the_service_manager_starts_it(folder: Path) -> None:
    """Two sockets, a socket to report to, and --systemd-activation, as in Debian's dbus.service."""
    config = realbus.copy(folder)
    listening = []
    for name in ("first", "second"):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(folder / name))
        os.chmod(folder / name, 0o777)
        sock.listen()
        listening.append(sock)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(folder / "notify"))
    os.chmod(folder / "notify", 0o777)
    manager.settimeout(30)
    # Descriptors 3 and 4, for the very process that becomes the bus.
    shell = 'exec 7>&- 3<&"$1" 4<&"$2"; shift 2; LISTEN_PID=$$ exec "$@"'
    options = "--address=systemd: --nofork --nopidfile --systemd-activation --syslog-only"
    high = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, 20) for sock in listening]
    process = subprocess.Popen(
        [
            "bash", "-c", shell, "bash", *map(str, high),
            *buses.jitney_command(), f"--config-file={config}", *options.split(),
        ],
        env={
            **os.environ,
            "LISTEN_FDS": "2",
            "LISTEN_FDNAMES": "a:b",
            "NOTIFY_SOCKET": str(folder / "notify"),
        },
        pass_fds=high,
        stdin=subprocess.DEVNULL,
        stderr=(folder / "stderr").open("wb"),
    )  # fmt: skip
    for fd in high:
        os.close(fd)
    try:
        assert manager.recv(100) == b"READY=1", (folder / "stderr").read_text()
        only_messagebus(process.pid)
        for name in ("first", "second"):
            with RawClient(f"unix:path={folder}/{name}", uid=NOBODY) as client:
                client.hello()
                features = client.reply_to(
                    client.driver(
                        b"Get", "ss", "org.freedesktop.DBus", "Features",
                        interface=b"org.freedesktop.DBus.Properties",
                    )
                )  # fmt: skip
                assert "SystemdActivation" in features.body[0][1]
        # As ExecReload= does it, first with success, then without.
        good = config.read_text()
        with RawClient(f"unix:path={folder}/first") as root:
            root.hello()
            for text, error in ((good, None), ("<busconfig>", "org.freedesktop.DBus.Error.Failed")):
                config.write_text(text)
                reply = root.reply_to(root.driver(b"ReloadConfig", path=b"/"))
                assert reply.error_name == error
                assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", manager.recv(100))
                assert manager.recv(100) == b"READY=1"
        process.terminate()
        assert manager.recv(100) == b"STOPPING=1"
        assert process.wait(30) == 0
        # The sockets are the service manager's.
        assert (folder / "first").exists()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for sock in (*listening, manager):
            sock.close()


CHILD = """[D-BUS Service]
Name=org.example.Child
Exec=/bin/sh -c 'exec >{folder}/run/child.new; env; cat /proc/self/status /proc/self/limits; \
mv {folder}/run/child.new {folder}/run/child'
"""

BUS = """<busconfig>
<type>other</type>
<listen>unix:path={folder}/run/bus</listen>
<user>messagebus</user>
<servicedir>{folder}/services</servicedir>
<policy context="default"><allow user="*"/><allow send_destination="*"/></policy>
<policy context="default"><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
"""


def child_of(folder: Path, command: list[str]) -> tuple[dict[str, str], str, dict[str, str]]:
    """What a service, started by a bus with all that a service manager may have given it, is like:
    its bus's status, and its own environment and limits as one text, and status."""
    (folder / "services").mkdir()
    (folder / "services/child.service").write_text(CHILD.format(folder=folder))
    config = folder / "bus.conf"
    config.write_text(BUS.format(folder=folder))
    shell = 'ulimit -Sn 300; ulimit -Hn 500; LISTEN_PID=$$ exec "$@"'
    environ = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "NOTIFY_SOCKET": "@nobody-listens"}
    before = {key: os.environ.get(key) for key in environ}
    os.environ.update(environ)
    try:
        command = ["bash", "-c", shell, "bash", *command]
        with realbus.running(command, config) as bus, RawClient(bus.address) as client:
            client.hello()
            facts = status(bus.pid)
            client.driver(b"StartServiceByName", "su", "org.example.Child", 0)
            assert comes((folder / "run/child").exists), bus.log
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value
    text = (folder / "run/child").read_text()
    lines = [line.partition(":") for line in text.splitlines() if ":\t" in line]
    return facts, text, {key: value.strip() for key, _, value in lines}


@pytest.mark.parametrize("start", ["root", pytest.param("ambient", marks=kernel.needs_ambient)])
def test_what_a_service_does_not_inherit(folder: Path, start: str) -> None:
    wrapper: list[str] = []
    if start == "ambient":
        if not int(status(os.getpid())["CapPrm"], 16) & AUDIT_WRITE:
            pytest.skip("this container may not write to the audit log")
        # As with User= and AmbientCapabilities= in a unit.
        entry = pwd.getpwnam(realbus.USER)
        wrapper = [
            "setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups",
            "--inh-caps=+audit_write", "--ambient-caps=+audit_write",
        ]  # fmt: skip
    bus, text, child = child_of(folder, [*wrapper, *buses.jitney_command()])
    had = int(status(os.getpid())["CapPrm"], 16) & AUDIT_WRITE
    assert int(bus["CapEff"], 16) == had
    assert int(bus["CapAmb"], 16) == 0
    for name in ("CapPrm", "CapEff", "CapAmb"):
        assert int(child[name], 16) == 0, name
    assert child["Uid"] == bus["Uid"]
    assert int(child["SigBlk"], 16) == 0
    assert re.search(r"^Max open files +300 +500 ", text, re.MULTILINE)
    assert not re.search(r"^(LISTEN_|NOTIFY_)", text, re.MULTILINE)
    assert "DBUS_STARTER_ADDRESS=" in text


@pytest.mark.skipif(buses.REFERENCE is None, reason="no dbus-daemon to compare with")
def test_a_service_is_what_dbus_daemon_makes_it() -> None:
    assert buses.REFERENCE is not None
    found = []
    for command in ([buses.REFERENCE], buses.jitney_command()):
        with realbus.directory() as folder:
            _, text, child = child_of(folder, command)
            facts: dict[str, object] = {
                key: child[key]
                for key in (
                    "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
                    "SigBlk", "SigIgn", "SigCgt", "NoNewPrivs", "Umask",
                )
            }  # fmt: skip
            facts["variables"] = sorted(re.findall(r"^(\w+)=", text, re.MULTILINE))
            facts["limits"] = sorted(re.findall(r"^Max .*", text, re.MULTILINE))
            found.append(facts)
    assert found[1] == found[0]
