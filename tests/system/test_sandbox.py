"""The sandbox of the system bus's unit: how tight it is, and that the bus does its work in it.

Without a service manager its parts are looked at one by one: systemd-analyze(1) reads the unit,
setpriv(1) and prctl(2) take away what the unit takes away, strace(1) tells which system calls the
bus makes, and systemd's own lists whether the unit's filter has them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import buses
import faulttraffic
import pytest
import realbus
from rawclient import RawClient
from waiting import until

from jitney.compat import install_sandbox, install_units
from jitney.compat.install_changes import Tree

CEILING = 6
"""Tenths of systemd-analyze's measure: 100 is an ordinary service, below 20 it calls "safe"."""
DAEMON = "/opt/jitney/bin/jitney-daemon"
SERVICE = "[D-BUS Service]\nName=a.b\nExec={}\nUser=root\n"

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
needs_system_bus = pytest.mark.skipif(bool(realbus.missing()), reason=realbus.missing())
needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv")

# What MemoryDenyWriteExecute= forbids, forbidden by the kernel itself (Linux 6.3).
PR_SET_MDWE = 65
STARTER = f"""import ctypes, os, sys
libc = ctypes.CDLL(None)
denied = libc.prctl({PR_SET_MDWE}, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Files of a machine with a system bus and two services that systemd starts, or nobody."""
    share = tmp_path / "usr/share/dbus-1"
    (share / "system-services").mkdir(parents=True)
    (share / "system.conf").write_text(
        "<busconfig><!-- <user>root</user> --><user>messagebus</user></busconfig>"
    )
    (share / "system-services/a.service").write_text(
        SERVICE.format("/usr/sbin/a") + "SystemdService=a.service\n"
    )
    (share / "system-services/b.service").write_text(SERVICE.format("/bin/false"))
    return tmp_path


def unit(machine: Path, daemon: str = DAEMON) -> str:
    sandbox = install_sandbox.lines(Tree(str(machine)), daemon)
    return install_units.text("system", daemon, [], sandbox)


def values(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def test_what_is_in_it(machine: Path) -> None:
    text = unit(machine)
    assert values(text, "User") == ["messagebus"]
    assert values(text, "CapabilityBoundingSet") == [""]
    assert values(text, "ExecReload")[0].startswith("+")
    assert values(text, "ProtectHome") == ["yes"]
    assert values(unit(machine, "/home/u/venv/bin/jitney-daemon"), "ProtectHome") == ["read-only"]


def test_what_a_security_module_needs(machine: Path) -> None:
    """It is asked by writing, and what it denied goes to the audit log."""
    (machine / "etc/selinux").mkdir(parents=True)
    (machine / "etc/selinux/config").touch()
    text = unit(machine)
    # Lists: what comes later is added.
    assert values(text, "CapabilityBoundingSet") == ["", "CAP_AUDIT_WRITE"]
    assert values(text, "AmbientCapabilities") == ["CAP_AUDIT_WRITE"]
    assert values(text, "RestrictAddressFamilies") == ["AF_UNIX", "AF_NETLINK"]
    assert values(text, "ReadWritePaths") == ["-/sys/fs/selinux"]
    # Whatever this kernel does: a later one may have the bus ask.
    (machine / "etc/apparmor.d").mkdir()
    text = unit(machine)
    assert values(text, "ReadWritePaths") == ["-/sys/fs/selinux -/sys/kernel/security/apparmor"]


def test_not_where_the_bus_starts_services(machine: Path) -> None:
    """It would keep the helper from becoming root, and the services in the sandbox."""
    folder = machine / "usr/share/dbus-1/system-services"
    (folder / "c.service").write_text(SERVICE.format("/usr/sbin/c"))
    text = unit(machine)
    assert "NoNewPrivileges" not in text
    assert "# Not sandboxed: /usr/share/dbus-1/system-services/c.service has no Sys" in text
    (folder / "c.service").unlink()
    assert "NoNewPrivileges" in unit(machine)
    (machine / "usr/share/dbus-1/system.conf").write_text("<busconfig/>")
    assert "# Not sandboxed: no <user>" in unit(machine)


def test_a_users_bus_has_none() -> None:
    assert "NoNewPrivileges" not in install_units.text("user", DAEMON, [])


@needs_analyze
def test_exposure(machine: Path) -> None:
    file = machine / "jitney.service"
    file.write_text(unit(machine))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={CEILING}", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "offline" in done.stderr:
        pytest.skip("this systemd-analyze cannot read a unit that is not loaded")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def work(address: str) -> None:
    """What a system bus does all day, and a reload."""
    faulttraffic.ride(address)
    for member in (b"ReloadConfig", b"ListActivatableNames", b"GetId"):
        with RawClient(address) as client:
            client.hello()
            assert not client.reply_to(client.driver(member)).error_name, member


OPEN = """<policy context="default"><allow own="*"/><allow send_destination="*"/>
<allow receive_sender="*"/></policy></busconfig>"""


def config(folder: Path) -> Path:
    file = realbus.copy(folder)
    file.write_text(file.read_text().replace("</busconfig>", OPEN))
    return file


@needs_system_bus
@needs_setpriv
def test_work_without_any_privilege() -> None:
    with realbus.directory() as folder:
        messagebus = str((folder / "run").stat().st_uid)
        group = str((folder / "run").stat().st_gid)
        command = [
            "setpriv", f"--reuid={messagebus}", f"--regid={group}", "--clear-groups",
            "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs",
            sys.executable, "-c", STARTER, *buses.jitney_command(),
        ]  # fmt: skip
        with realbus.running(command, config(folder)) as bus:
            lines = Path(f"/proc/{bus.pid}/status").read_text().splitlines()
            facts = {key: value.strip() for key, _, value in (x.partition(":") for x in lines)}
            assert facts["Uid"].split() == [messagebus] * 4
            assert facts["NoNewPrivs"] == "1"
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(facts[name], 16) == 0, name
            work(bus.address)


def sets() -> dict[str, list[str]]:
    """systemd's groups of system calls, as systemd-analyze lists them."""
    text = subprocess.run(
        ["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("@"):
            name = line.split()[0]
            found[name] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            found[name].append(line.strip())
    return found


def members(name: str, known: dict[str, list[str]]) -> set[str]:
    if not name.startswith("@"):
        return {name}
    return {call for entry in known[name] for call in members(entry, known)}


@needs_analyze
@needs_system_bus
@needs_setpriv
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_filter_has_what_the_bus_calls(machine: Path) -> None:
    known = sets()
    allowed: set[str] = set(members("@default", known))
    for value in values(unit(machine), "SystemCallFilter"):
        for word in value.removeprefix("~").split():
            calls = members(word, known)
            allowed = allowed - calls if value.startswith("~") else allowed | calls
    with realbus.directory() as folder:
        info = (folder / "run").stat()
        trace = folder / "trace"
        command = [
            "strace", "-f", "-qq", "-o", str(trace),
            "setpriv", f"--reuid={info.st_uid}", f"--regid={info.st_gid}", "--clear-groups",
            *buses.jitney_command(),
        ]  # fmt: skip
        try:
            with realbus.running(command, config(folder)) as bus:
                work(bus.address)
                # strace, when it is ended, leaves the bus to itself; and it ends with the bus.
                for pid in children(bus.pid):
                    os.kill(pid, signal.SIGTERM)
                until(lambda: not children(bus.pid), "it is left to itself")
        except RuntimeError as error:
            pytest.skip(f"strace may not trace here: {error}")
        text = trace.read_text(errors="replace")
    # From where the daemon's program begins.
    begins = [found.end() for found in re.finditer(r"execve\(.*\) = 0\n", text)][-1]
    called = set(re.findall(r"^\d+ +(\w+)\(", text[begins:], re.MULTILINE))
    assert len(called) > 30
    assert not called - allowed


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def test_mdwe_is_what_it_says() -> None:
    """Or the test above would show nothing on a kernel that has it."""
    program = STARTER.replace(
        "os.execvp(sys.argv[1], sys.argv[1:])",
        "import mmap; print(denied)\n"
        "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)",
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    if done.stdout.strip() == "-1":
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert "PermissionError" in done.stderr
