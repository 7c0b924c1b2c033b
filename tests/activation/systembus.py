"""The machine's own kind of system bus, in a corner of its own.

Invariant: nothing of the machine changes. The bus and all it starts live in a mount namespace in
which /run/dbus and /usr/local/share are empty, so that real services find it at the one address
they know; the test reaches it from outside through /proc/PID/root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import buses
from rawclient import RawClient
from waiting import until

SYSTEM_CONF = Path("/usr/share/dbus-1/system.conf")
HELPER = Path("/usr/lib/dbus-1.0/dbus-daemon-launch-helper")
SOCKET = "/run/dbus/system_bus_socket"
CONFIG = f"""<busconfig>
  <include>{SYSTEM_CONF}</include>
  <policy context="default">
    <allow own_prefix="jitney.test"/>
    <allow send_destination_prefix="jitney.test"/>
  </policy>
  {{extra}}
</busconfig>
"""


def impossible() -> str:
    """Why there can be no such bus here; empty if there can."""
    if os.geteuid() != 0:
        return "only root can start a system bus"
    if not SYSTEM_CONF.exists() or not HELPER.exists():
        return "the packages dbus-system-bus-common and dbus are not installed"
    if not HELPER.stat().st_mode & 0o4000:
        return f"{HELPER} is not set-uid"
    if shutil.which("unshare") is None:
        return "there is no unshare(1)"
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/run/dbus"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"no mount namespace: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass
class SystemBus:
    """A running system bus; `root`: its view of the file system."""

    pid: int
    directory: Path

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.pid}/root")

    @property
    def address(self) -> str:
        return f"unix:path={self.root}{SOCKET}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def file(self, name: str, exec: str, *lines: str, called: str = "") -> None:
        """A service file where an administrator's own go."""
        place = self.root / "usr/local/share/dbus-1/system-services"
        text = "\n".join(["[D-BUS Service]", f"Name={name}", f"Exec={exec}", *lines, ""])
        (place / f"{called or name}.service").write_text(text)

    def client(self) -> RawClient:
        client = RawClient(self.address, timeout=30)
        client.hello()
        return client

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a program where it finds this bus."""
        return subprocess.run(
            ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *command],
            capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip


@contextlib.contextmanager
def system_bus(command: list[str], extra: str = "") -> Iterator[SystemBus]:
    """The bus that `command` starts as root, as at boot; it goes on as messagebus."""
    directory = Path(tempfile.mkdtemp(prefix="jitney-test-"))
    os.chmod(directory, 0o755)
    (directory / "bus.conf").write_text(CONFIG.format(extra=extra))
    script = """
        mount -t tmpfs -o mode=755 none /run/dbus &&
        mount -t tmpfs -o mode=755 none /usr/local/share &&
        mkdir -p /usr/local/share/dbus-1/system-services &&
        exec "$@"
    """
    options = [f"--config-file={directory}/bus.conf", "--nofork", "--nopidfile", "--nosyslog"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, "sh",
             *command, *options, "--print-address=1"],
            stdout=subprocess.PIPE, stderr=log, cwd="/", process_group=0,
        )  # fmt: skip
    bus = SystemBus(process.pid, directory)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(f"{command[0]} printed no address: {bus.log[-2000:]}")
        # The address is said before the bus becomes another user.
        until(lambda: Path(f"/proc/{bus.pid}").stat().st_uid, "it is another user")
        yield bus
    finally:
        # What it started is in its process group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        shutil.rmtree(directory, ignore_errors=True)


def commands() -> list[tuple[str, list[str]]]:
    """Both buses that tests start this way: name and command."""
    return [("jitney", buses.jitney_command()), ("dbus-daemon", [buses.REFERENCE or "dbus-daemon"])]
