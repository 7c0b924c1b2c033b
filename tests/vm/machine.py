"""A machine under qemu, booted once for many checks.

The checks (the folder `guest`, and a plan of which of them are asked for) are on its second disk;
what came out of them arrives on its second serial line. The first is the console, on the third a
user logs in. Nothing else goes in or out, and what it writes to its disks is gone afterwards.

Invariant: qemu never outlives `boot()`, and no check counts as held that did not say so.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

GUEST = Path(__file__).resolve().parent / "guest"
QEMU = "qemu-system-x86_64"
ACCEL = os.environ.get("JITNEY_VM_ACCEL", "tcg,thread=multi")
"""Emulation runs everywhere; JITNEY_VM_ACCEL=kvm where that works."""
KERNEL = (
    # The timer is late on a busy machine, and then Linux gives up.
    "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off no_timer_check loglevel=4 "
    "systemd.show_status=no systemd.default_timeout_start_sec=1200 "
    "systemd.default_device_timeout_sec=1200"
)
LONG = 3600
"""Seconds: for a machine that hangs, not for a slow one."""

Plan = tuple[tuple[str, str], ...]
"""Rounds: what each is called, and the module of checks."""


def missing(kernel: str = "vmlinuz") -> str:
    """Why nothing can be booted here, or not that kernel; empty if it can."""
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed (Debian: qemu-system-x86)"
    image = os.environ.get("JITNEY_VM_IMAGE")
    if not image:
        return "JITNEY_VM_IMAGE is not set: `make vm` makes a machine and boots it"
    if not (Path(image) / "root.img").exists():
        return f"no machine in {image}: make vm-image"
    if not (Path(image) / kernel).exists():
        return f"no {kernel} in {image}: make vm-image says why"
    return ""


@dataclass
class Outcome:
    """What came of a boot."""

    results: dict[tuple[str, str], dict[str, object]] = field(default_factory=dict)
    ended: bool = False
    """All rounds were done."""
    powered_off: bool = False
    """The machine was shut down by what runs in it, and not by us."""
    console: str = ""
    login: str = ""

    def holds(self, title: str, check: str) -> None:
        """Raises unless that check was made and held."""
        result = self.results.get((title, check))
        if result is None:
            raise AssertionError(f"{title}: {check} was not reached.\n{self.console[-3000:]}")
        assert result["holds"], result["seen"]


def checks(plan: Plan) -> list[tuple[str, str]]:
    """The checks of a plan, each with its round."""
    return [
        (title, name)
        for title, module in plan
        for name in re.findall(
            r"^def check_(\w+)", (GUEST / f"{module}.py").read_text(), re.MULTILINE
        )
    ]


def cases(boots: Mapping[str, tuple[Any, ...]]) -> list[Any]:
    """Parameters of a test: each boot's checks, with their rounds."""
    return [
        pytest.param(name, title, check, id=f"{name}-{title}-{check}")
        for name, (plan, *_) in boots.items()
        for title, check in checks(plan)
    ]


@functools.cache
def boot(plan: Plan, words: str, kernel: str = "vmlinuz") -> Outcome:
    """Boots the machine with these words for the kernel; the same boot serves whoever asks."""
    image = Path(os.environ["JITNEY_VM_IMAGE"])
    folder = Path(tempfile.mkdtemp(prefix="jitney-vm-"))
    try:
        pack(folder / "checks.tar", plan)
        return watched(command(image, folder, words, kernel), folder)
    finally:
        keep = os.environ.get("JITNEY_VM_LOGS")
        if keep:
            name = re.sub(r"\W+", "-", f"{kernel} {words}").strip("-")
            shutil.copytree(folder, Path(keep) / name, dirs_exist_ok=True)
        shutil.rmtree(folder)


def pack(file: Path, plan: Plan) -> None:
    """A disk that is a tar archive."""
    lines = file.with_name("plan")
    lines.write_text("".join(f"{title} {module}\n" for title, module in plan))
    with tarfile.open(file, "w") as tar:
        tar.add(GUEST, "guest", filter=lambda info: None if "__pycache__" in info.name else info)
        tar.add(GUEST.parent.parent / "rawclient.py", "guest/rawclient.py")
        tar.add(lines, "guest/plan")


def command(image: Path, folder: Path, words: str, kernel: str) -> list[str]:
    """How qemu is started: two processors, 2 GB, two disks, three serial lines, no network."""
    options = {
        "accel": ACCEL, "cpu": "max", "smp": "2", "m": "2048", "nic": "none", "display": "none",
        "vga": "none", "monitor": "none", "kernel": str(image / kernel),
        "initrd": str(image / (kernel.replace("vmlinuz", "initrd") + ".img")),
        "append": f"{KERNEL} {words}",
    }  # fmt: skip
    line = ["nice", "-n", "5", QEMU, "-no-reboot", "-snapshot"]
    for option, value in options.items():
        line += [f"-{option}", value]
    for disk in (image / "root.img", folder / "checks.tar"):
        line += ["-drive", f"file={disk},if=virtio,format=raw"]
    for name in ("console", "results", "login"):
        line += ["-serial", f"file:{folder / name}"]
    return line


def watched(line: list[str], folder: Path) -> Outcome:
    """Runs qemu to its end, and reads what was written meanwhile."""
    outcome = Outcome()
    log = folder / "qemu"
    with log.open("wb") as output:
        machine = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        outcome.powered_off = machine.wait(LONG) == 0
    except subprocess.TimeoutExpired:
        pass
    finally:
        machine.kill()
        machine.wait()
    outcome.console = read(folder / "console") + read(log)
    outcome.login = read(folder / "login")
    for text in read(folder / "results").splitlines():
        if text.startswith("{"):
            result = json.loads(text)
            if "end" in result:
                outcome.ended = True
            else:
                outcome.results[result["round"], result["check"]] = result
    return outcome


def read(file: Path) -> str:
    return file.read_bytes().decode(errors="replace") if file.exists() else ""
