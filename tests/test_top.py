"""`jitney top`: as plain tables, and on a screen, which tmux gives it and reads off again."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import buses
import pytest
from rawclient import RawClient, connected
from waiting import comes, until

from jitney.compat import command, ways, wire

COMMAND = [
    sys.executable, "-c", "from jitney.compat.command import main_entry; main_entry()", "top",
]  # fmt: skip
needs_screen = pytest.mark.skipif(
    shutil.which("tmux") is None or importlib.util.find_spec("textual") is None,
    reason="no tmux or no textual here",
)


@contextlib.contextmanager
def busy(bus: buses.Daemon) -> Iterator[RawClient]:
    """Somebody who calls a.busy, which answers, and an a.idle that does nothing."""
    end = threading.Event()

    with (
        connected(bus.address, "a.busy") as service,
        connected(bus.address) as caller,
        connected(bus.address, "a.idle") as idle,
    ):

        def work() -> None:
            while not end.is_set():
                serial = caller.message(
                    destination=b"a.busy", path=b"/", interface=b"a.i", member=b"M"
                )
                while (message := service.receive()) is None or message.member != "M":
                    pass
                service.message(
                    wire.RETURN, destination=caller.unique_name.encode(), reply_serial=serial
                )
                caller.reply_to(serial)
                time.sleep(0.001)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield idle
        finally:
            end.set()
            thread.join()


@pytest.fixture
def bus() -> Iterator[buses.Daemon]:
    with buses.running(buses.jitney_command()) as running:
        yield running


def test_tables(bus: buses.Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["top", "--address", bus.address, "--batch", "--count", "1", "--delay", "0.3"]
    with busy(bus):
        lines: list[str] = []

        def has_been_busy() -> bool:
            """In the moment that it was looked at for; a busy machine may have let it wait."""
            assert command.main(words) == 0
            lines[:] = capsys.readouterr().out.splitlines()
            (first,) = [line for line in lines if "a.busy" in line]
            replied = first.split()[-1] in ("us", "ms", "s")
            return replied and lines.index(first) in (3, 4)

        until(has_been_busy)
        assert lines[0].startswith("4 peers, 2 names")
        head = lines[2].split()
        assert head == [
            "PEER", "NAME", "USER", "CGROUP", "MSG/S", "BYTES/S", "QUEUED", "OLDEST", "HOLDS",
            "CALLS", "OWES", "P50", "P99",
        ]  # fmt: skip
        assert command.main([*words, "--filter", "a.IDLE"]) == 0
        assert len(capsys.readouterr().out.strip().splitlines()) == 4


class Tmux:
    """A terminal of its own, of 140 by 30."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.socket = str(folder / "tmux")
        environment = {"TERM": "xterm-256color", "HOME": str(folder)}
        keep = [f"{key}={os.environ[key]}" for key in ("PATH", "PYTHONPATH") if key in os.environ]
        line = shlex.join(["env", *keep, *words]) + "; echo ENDED $?; sleep 60"
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", "140", "-y", "30", line,
                  env=os.environ | environment)  # fmt: skip

    def tmux(self, *words: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            ["tmux", "-S", self.socket, *words],
            capture_output=True,
            env=env,
            timeout=30,
            check=False,
        )
        return done.stdout.decode(errors="replace")

    def shown(self) -> str:
        return self.tmux("capture-pane", "-p")

    def keys(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def until(self, true: Callable[[str], bool], what: str) -> str:
        """What is shown when that is so."""
        shown = [""]

        def is_shown() -> bool:
            shown[0] = self.shown()
            return true(shown[0])

        if not comes(is_shown, pause=0.1):
            raise AssertionError(f"{what} does not come; there is\n{shown[0]}")
        return shown[0]

    def end(self) -> None:
        self.tmux("kill-server")


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Callable[[list[str]], Tmux]]:
    started: list[Tmux] = []

    def start(words: list[str]) -> Tmux:
        started.append(Tmux(tmp_path, words))
        return started[-1]

    yield start
    for terminal in started:
        terminal.end()


def rows(shown: str) -> list[str]:
    return [line.split()[0] for line in shown.splitlines() if line.strip().startswith(":1.")]


@needs_screen
def test_the_screen(bus: buses.Daemon, screen: Callable[[list[str]], Tmux]) -> None:
    with busy(bus) as idle:
        terminal = screen([*COMMAND, "--address", bus.address, "--delay", "0.5"])
        shown = terminal.until(lambda text: "a.busy" in text and "MSG/Sv" in text, "the table")
        assert len(rows(shown)) == 4
        terminal.until(
            lambda text: any("a.busy" in line and " us" in line + " us" and "KiB" in line
                             for line in text.splitlines()), "a rate",
        )  # fmt: skip
        # Sorted by something else, and the other way.
        terminal.keys("S", "S", "S", "S")
        shown = terminal.until(lambda text: "PEER^" in text or "PEERv" in text, "PEER as the order")
        numbers = [int(name.rpartition(".")[2]) for name in rows(shown)]
        assert numbers == sorted(numbers)
        terminal.keys("r")
        terminal.until(lambda text: rows(text) == list(reversed(rows(shown))), "the reverse")
        # A filter, as it is typed.
        terminal.keys("/")
        terminal.until(lambda text: "name, user, command" in text, "the field")
        terminal.keys("a.idle")
        shown = terminal.until(lambda text: len(rows(text)) == 1, "a single row")
        assert rows(shown) == [idle.unique_name]
        terminal.keys("Enter")
        terminal.until(lambda text: text.count("a.idle") == 1, "the field gone")
        # Closer, and back.
        terminal.keys("Enter")
        shown = terminal.until(lambda text: "here for" in text, "the peer")
        assert idle.unique_name in shown
        assert f"process   {os.getpid() if ways.PEER_PIDS else '?'}" in shown
        terminal.keys("Escape")
        terminal.until(lambda text: len(rows(text)) == 1, "the table again")
        terminal.keys("Escape")
        terminal.until(lambda text: len(rows(text)) == 4, "all of it")
        # Somebody comes.
        with RawClient(bus.address) as another:
            name = another.hello()
            terminal.until(lambda text: name in rows(text), "who came")
        terminal.until(lambda text: name not in rows(text), "that he is gone")
        terminal.keys("q")
        terminal.until(lambda text: "ENDED 0" in text, "the end")


@needs_screen
def test_the_bus_goes(tmp_path: Path, screen: Callable[[list[str]], Tmux]) -> None:
    with buses.running(buses.jitney_command()) as bus:
        terminal = screen([*COMMAND, "--address", bus.address, "--delay", "0.2"])
        terminal.until(lambda text: len(rows(text)) == 1, "the table")
    terminal.until(lambda text: "bus" in text.splitlines()[0], "a word about it")
    terminal.keys("q")
    terminal.until(lambda text: "ENDED 0" in text, "the end")


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["top", "--batch", "--address", "unix:path=/nonexistent/bus"]) == 2
    assert "jitney top: " in capsys.readouterr().err


def test_without_textual(
    bus: buses.Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.setitem(sys.modules, "rich.text", None)
    monkeypatch.delitem(sys.modules, "jitney.compat.look.screen", raising=False)
    assert command.main(["top", "--address", bus.address]) == 2
    assert "jitney[top]" in capsys.readouterr().err
