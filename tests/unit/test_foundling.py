"""Services that another process started, killed where there are no pidfds to signal them by."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from jitney.compat.activation.spawn import _place_of
from jitney.compat.upgrade.activations import Foundling

pytestmark = pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="there are no processes in /proc"
)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "there is no such system call")

    monkeypatch.setattr(signal, "pidfd_send_signal", missing, raising=False)
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_by_its_number(service: subprocess.Popen[bytes]) -> None:
    place = _place_of(service.pid)
    Foundling("a.b", service.pid, None, -1, place).kill()
    assert service.wait(20) == -signal.SIGKILL
    os.close(place)


def test_not_when_the_number_may_be_anothers(
    service: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _place_of(service.pid)
    service.kill()
    service.wait()
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
    Foundling("a.b", service.pid, None, -1, place).kill()
    Foundling("a.b", service.pid, None, -1, -1).kill()
    assert not killed
    os.close(place)
