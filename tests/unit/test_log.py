"""The log: dbus-daemon's lines, and nothing that could stop or end the bus."""

from __future__ import annotations

import errno
import os
import re
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from jitney.compat import log
from jitney.compat.log import Log, prefix_for


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            pass


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "log"))
        sock.settimeout(30)
        yield sock


def to_syslog(tmp_path: Path) -> Log:
    return Log(stderr=False, syslog=True, syslog_path=str(tmp_path / "log"))


def test_standard_error(pipe: tuple[int, int]) -> None:
    logger = Log(prefix="[system] ", stderr_fd=pipe[1])
    logger.info("one")
    logger.warning("two\n")
    head = f"dbus-daemon[{os.getpid()}]: [system] "
    assert os.read(pipe[0], 1000).decode() == f"{head}one\n{head}two\n"


@pytest.mark.parametrize(
    ("severity", "priority"), [("info", 30), ("warning", 28), ("security", 37), ("error", 26)]
)
def test_syslog(tmp_path: Path, syslog: socket.socket, severity: str, priority: int) -> None:
    to_syslog(tmp_path).log(severity, "text \u00e9")
    line = syslog.recv(1000).decode()
    match = re.fullmatch(r"<(\d+)>\w{3} [ \d]\d \d\d:\d\d:\d\d dbus-daemon\[(\d+)\]: (.*)", line)
    assert match, line
    assert match.groups() == (str(priority), str(os.getpid()), "text \u00e9")


def test_both(tmp_path: Path, syslog: socket.socket, pipe: tuple[int, int]) -> None:
    logger = Log(syslog=True, syslog_path=str(tmp_path / "log"), stderr_fd=pipe[1])
    logger.security("x")
    assert syslog.recv(1000).endswith(b": x")
    assert os.read(pipe[0], 1000).endswith(b": x\n")


def test_methods_have_their_severity(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(Log, "log", lambda self, severity, text: seen.append((severity, text)))
    logger = Log()
    logger.info("a")
    logger.warning("b")
    logger.security("c")
    logger.error("d")
    assert seen == [("info", "a"), ("warning", "b"), ("security", "c"), ("error", "d")]


def test_no_syslog_at_all(tmp_path: Path) -> None:
    logger = to_syslog(tmp_path)
    logger.info("lost")
    assert logger.lost == 1


def test_syslog_comes_back(tmp_path: Path, syslog: socket.socket) -> None:
    logger = to_syslog(tmp_path)
    logger.info("one")
    assert syslog.recv(1000).endswith(b"one")
    syslog.close()
    os.unlink(tmp_path / "log")
    logger.info("two")
    assert logger.lost == 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "log"))
        again.settimeout(30)
        logger.info("three")
        assert again.recv(1000).endswith(b"three")
    assert logger.lost == 1


def test_full_syslog_is_not_waited_for(tmp_path: Path, syslog: socket.socket) -> None:
    logger = to_syslog(tmp_path)
    # Nobody reads: if it waited, this would have no end.
    for _ in range(5000):
        logger.info("x" * 100)
    assert logger.lost > 0


def test_stream_syslog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "log"))
        server.listen()
        server.settimeout(30)
        logger = to_syslog(tmp_path)
        logger.info("one")
        peer, _ = server.accept()
        with peer:
            peer.settimeout(30)
            assert peer.recv(1000).endswith(b"one\0")
            logger.close()
    assert logger.lost == 0


def test_full_standard_error_is_not_waited_for(pipe: tuple[int, int]) -> None:
    logger = Log(stderr_fd=pipe[1])
    for _ in range(200):
        logger.info("x" * 1000)
    assert logger.lost > 0
    assert os.get_blocking(pipe[1])  # it is not ours alone


def test_long_lines_fit_what_a_pipe_takes_at_once(pipe: tuple[int, int]) -> None:
    Log(stderr_fd=pipe[1]).info("x" * 100_000)
    line = os.read(pipe[0], 100_000)
    assert len(line) == select.PIPE_BUF
    assert line.endswith(b"x\n")


def test_broken_standard_error(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    logger = Log(stderr_fd=pipe[1])
    logger.info("nobody reads")
    os.close(pipe[1])
    logger.info("nothing is open")
    assert logger.lost == 2


@pytest.mark.parametrize("number", sorted(errno.errorcode))
@pytest.mark.weakness("dbus-broker#457")
def test_any_errno_only_loses_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    class Broken:
        type = socket.SOCK_DGRAM

        def send(self, data: bytes, flags: int) -> int:
            raise OSError(number, os.strerror(number))

        def close(self) -> None:
            pass

    monkeypatch.setattr(Log, "_connect", lambda self: Broken())
    logger = to_syslog(tmp_path)
    logger.info("x")
    assert logger.lost == 1


def test_odd_text(pipe: tuple[int, int]) -> None:
    Log(stderr_fd=pipe[1]).log("no such severity", "\udcff \0 \u20ac")
    assert os.read(pipe[0], 1000).endswith(b": \xff \0 \xe2\x82\xac\n")


def test_prefix() -> None:
    assert prefix_for("system") == "[system] "
    assert prefix_for("session") == f"[session uid={os.geteuid()} pid={os.getpid()}] "
    assert prefix_for("accessibility") == prefix_for(None) == ""
    assert log.TAG == "dbus-daemon"
