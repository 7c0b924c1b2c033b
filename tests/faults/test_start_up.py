"""A daemon that starts while a call fails: it runs, or it says why not and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import buses
import faultlayer
import pytest
from faultlayer import ANY, CALLS, Plan
from rawclient import RawClient

from jitney.compat import ways

pytestmark = pytest.mark.skipif(
    isinstance(faultlayer.library(), str), reason=str(faultlayer.library())
)
ALL = bool(os.environ.get("JITNEY_FAULTS_ALL"))
STARTING = (
    "socket", "bind", "listen", "pipe2", "fork", "socketpair",
    *(("epoll_create1", "epoll_ctl", "inotify_init1", "inotify_add_watch") if ways.LINUX else ()),
)  # fmt: skip


@pytest.fixture
def plan() -> Iterator[Plan]:
    made = Plan()
    yield made
    made.close()


@pytest.mark.parametrize("call", STARTING)
def test_start_up(plan: Plan, tmp_path: Path, call: str) -> None:
    (tmp_path / "services").mkdir()
    n = 0
    while True:
        for code in CALLS[call] if ALL else CALLS[call][n % len(CALLS[call]) :][:1]:
            with plan.armed({call: (code,)}, first=n):
                start(plan, tmp_path)
        if not plan.hit():
            break
        n += 1
    with plan.armed({call: CALLS[call]}, first=ANY):
        start(plan, tmp_path)
    assert plan.seen()[call] == n > 0


def start(plan: Plan, folder: Path) -> None:
    config = folder / "bus.conf"
    config.write_text(buses.CONFIG.format(type="session", directory=folder, extra=""))
    before = set(os.listdir(folder))
    process = subprocess.Popen(
        [*buses.jitney_command(), f"--config-file={config}", "--nofork", "--print-address=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=plan.environ,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().decode().strip()
        lives = False
        # It may fail after it has said where it listens; or the call fails for us as its client.
        while address and not lives and process.poll() is None:
            try:
                with RawClient(address) as client:
                    client.hello()
                lives = True
            except (ConnectionError, FileNotFoundError):
                time.sleep(0.05)
        if lives:
            process.terminate()
    finally:
        _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors.decode()
    assert process.returncode == (0 if lives else 1)
    if not lives:
        assert errors.decode().count("Failed to start message bus") == 1
    assert set(os.listdir(folder)) == before
