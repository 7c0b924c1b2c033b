"""The shim: programs of kdbus's kind on `jitney sockets`; what they do is in `shimclient.py`.

Invariant: each has a server of its own, so that one that goes wrong spoils no other.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kdbusshim
import kernel
import pytest
from foreground import RUN

from jitney.kdbus import preload

CLIENT = Path(__file__).with_name("shimclient.py")

pytestmark = pytest.mark.skipif(
    bool(kdbusshim.why_not()), reason=f"the shim: {kdbusshim.why_not()}"
)


def start(what: str, root: Path, environment: dict[str, str], **more: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, str(CLIENT), what, str(root)],
        env={**environment, "PYTHONPATH": paths, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(what: str, root: Path, environment: dict[str, str], **more: str) -> None:
    process = start(what, root, environment, **more)
    try:
        said, _ = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        pytest.fail(f"{what} hangs\n{said}")
    assert process.returncode == 0, said


@pytest.mark.parametrize(
    "what",
    [
        "payloads", "frees", "negotiation",
        "fds", "fds_in_an_answer", "no_room_for_fds",
        pytest.param("memfds", marks=kernel.needs_memfd),
        "poll", "closes", "forks", "executes", "threads", "signals",
        "faults", "maps", "leaves_nothing", "survives", "modest", "bystander",
    ],
)  # fmt: skip
def test_program(what: str, tmp_path: Path) -> None:
    with kdbusshim.served(tmp_path / "kdbus") as (root, environment):
        run(what, root, environment)


def test_fixed_path(tmp_path: Path) -> None:
    with kdbusshim.served(tmp_path / "kdbus") as (root, environment):
        run("mapped_path", root, environment, **{preload.PLACE: str(root)})
        run("bystander", root, environment, **{preload.PLACE: str(root)})


def test_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 60) / ("y" * 60)
    folder.mkdir(parents=True)
    with kdbusshim.served(folder / "kdbus") as (root, environment):
        run("long_path", root, environment)


def test_the_bus_ends(tmp_path: Path) -> None:
    with kdbusshim.served(tmp_path / "kdbus") as (root, environment):
        process = start("over", root, environment)
        assert process.stdout is not None
        first = process.stdout.readline()
        if first != "ready\n":
            pytest.fail(first + process.communicate(timeout=30)[0])
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said


def test_command(tmp_path: Path) -> None:
    """`jitney preload` says where the library is, and runs a program with it."""
    jitney = [sys.executable, "-c", RUN, "preload"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    said = subprocess.run(
        [*jitney, "--print"], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout == f"{preload.library()}\n"
    with kdbusshim.served(tmp_path / "kdbus") as (root, _):
        words = [sys.executable, str(CLIENT), "mapped_path", str(root)]
        subprocess.run([*jitney, "--root", str(root), *words], env=environment, check=True)
    done = subprocess.run(
        [*jitney, "/nowhere/program"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 127
    assert done.stderr == "jitney preload: /nowhere/program: No such file or directory\n"
