"""What we ship for a bus that is confined itself compiles, where there is what compiles it."""

from __future__ import annotations

import importlib.resources
import shutil
import subprocess
from pathlib import Path

import pytest

DATA = Path(str(importlib.resources.files("jitney.compat") / "data"))
MAKEFILE = Path("/usr/share/selinux/devel/Makefile")


def test_selinux_module(tmp_path: Path) -> None:
    if not MAKEFILE.exists():
        pytest.skip("selinux-policy-dev is not installed")
    for file in (DATA / "selinux").iterdir():
        shutil.copy(file, tmp_path)
    done = subprocess.run(
        ["make", "-f", str(MAKEFILE), "jitney.pp"], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "jitney.pp").stat().st_size > 1000


def test_apparmor_profile() -> None:
    parser = shutil.which("apparmor_parser", path="/sbin:/usr/sbin:/usr/bin")
    if parser is None:
        pytest.skip("apparmor is not installed")
    done = subprocess.run(
        [parser, "-Q", "-K", str(DATA / "apparmor" / "jitney-system-bus")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_program_is_labelled() -> None:
    text = (DATA / "selinux" / "jitney.fc").read_text()
    assert "/usr/bin/jitney-daemon" in text
    for line in text.splitlines():
        assert line.endswith("gen_context(system_u:object_r:dbusd_exec_t,s0)")
