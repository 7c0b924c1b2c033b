"""The machine's own system bus, built again in a directory: Debian's files, copied.

Invariant: what a bus here reads is what the machine's would read, but for where it listens, its
pid file and its log; nothing outside of the directory is written, and no process is left behind.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAIN = Path("/usr/share/dbus-1/system.conf")
SNIPPETS = {
    "system.d": Path("/usr/share/dbus-1/system.d"),
    "etc-system.d": Path("/etc/dbus-1/system.d"),
}
USER = "messagebus"


def missing() -> str:
    """Why there can be no such bus here, or nothing."""
    if os.geteuid() != 0:
        return "only root can start a system bus and be its users"
    if not MAIN.exists():
        return f"{MAIN} is not installed"
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return f"there is no user {USER}"
    return ""


@dataclass
class SystemBus:
    """A system bus that has printed its address."""

    address: str
    pid: int
    config: Path
    logfile: Path

    @property
    def log(self) -> str:
        return self.logfile.read_text(errors="replace")

    @property
    def environ(self) -> dict[str, str]:
        """For daemons that shall be on this bus."""
        kept = {key: os.environ[key] for key in ("PATH",) if key in os.environ}
        return {**kept, "LC_ALL": "C", "DBUS_SYSTEM_BUS_ADDRESS": self.address.split(",guid=")[0]}


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """One that the bus's user may enter, with a `run` that is that user's."""
    path = Path(tempfile.mkdtemp(prefix="jitney-system-"))
    path.chmod(0o755)
    (path / "run").mkdir()
    entry = pwd.getpwnam(USER)
    os.chown(path / "run", entry.pw_uid, entry.pw_gid)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def copy(folder: Path, **replaced: str) -> Path:
    """The machine's configuration in `folder`, with other paths for what it writes; its main file.

    `replaced`: more of the main file's elements, by name, and their new texts."""
    text = MAIN.read_text()
    elements = {
        "listen": ("unix:path=/run/dbus/system_bus_socket", f"unix:path={folder}/run/bus"),
        "pidfile": ("/run/dbus/pid", f"{folder}/run/pid"),
        "includedir": ("/etc/dbus-1/system.d", f"{folder}/etc-system.d"),
    }
    for name, value in replaced.items():
        old = text.split(f"<{name}>", 1)[1].split(f"</{name}>", 1)[0]
        elements[name] = (old, value)
    for name, (old, new) in elements.items():
        element = f"<{name}>{old}</{name}>"
        assert text.count(element) == 1, f"{MAIN} is another one than expected: no {element}"
        text = text.replace(element, f"<{name}>{new}</{name}>")
    main = folder / "system.conf"
    main.write_text(text)
    for name, source in SNIPPETS.items():
        (folder / name).mkdir()
        for file in sorted(source.glob("*.conf")):
            shutil.copyfile(file, folder / name / file.name)
    return main


def policy_files(folder: Path) -> list[Path]:
    """The packages' policy files in a copy."""
    return sorted(file for name in SNIPPETS for file in (folder / name).glob("*.conf"))


def packages(files: list[Path]) -> set[str]:
    """Debian's packages that these copies are from; where that cannot be told, one for each."""
    originals = {str(SNIPPETS[file.parent.name] / file.name) for file in files}
    try:
        found = subprocess.run(
            ["dpkg-query", "-S", *originals], capture_output=True, text=True, check=False
        ).stdout
    except FileNotFoundError:
        return originals
    return {line.partition(":")[0] for line in found.splitlines()}


@contextlib.contextmanager
def running(command: list[str], config: Path, *options: str) -> Iterator[SystemBus]:
    """The bus that `command` starts with this configuration, in the foreground."""
    log = config.with_suffix(".log")
    with log.open("ab") as stderr:
        process = subprocess.Popen(
            [*command, f"--config-file={config}", "--nofork", "--print-address=1", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().decode().strip()
        if not address:
            raise RuntimeError(f"{command[0]} printed no address: {log.read_text()[-2000:]}")
        yield SystemBus(address, process.pid, config, log)
    finally:
        end(process)
        process.stdout.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process of ours, as kindly as it lets us."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
