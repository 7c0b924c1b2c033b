"""Which names can be started: directories, their files, and changes in both."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jitney.compat.activation import directories, watch
from jitney.compat.activation.directories import Services
from jitney.compat.activation.watch import DirectoryWatch
from jitney.compat.config.model import ServiceDir as ConfiguredDir

DATA = Path("/usr/lib/dbus-1.0/installed-tests/dbus/data/valid-service-files")


@dataclass(frozen=True)
class Place:
    path: str
    strict: bool = False
    watched: bool = True


class Log(list[tuple[str, str]]):
    def __call__(self, severity: str, text: str) -> None:
        self.append((severity, text))


@pytest.fixture
def log() -> Log:
    return Log()


def write(directory: Path, file: str, name: str, exec: str = "/bin/a") -> Path:
    path = directory / f"{file}.service"
    path.write_text(f"[D-BUS Service]\nName={name}\nExec={exec}\n")
    return path


def age(directory: Path) -> None:
    """Makes a directory look as if nothing had happened in it for a while."""
    long_ago = time.time_ns() - 10 * directories.SETTLED_NS
    os.utime(directory, ns=(long_ago, long_ago))


def command(services: Services, name: str) -> str | None:
    service = services.find(name.encode())
    return service.file.exec if service else None


def test_finds_what_the_files_provide(tmp_path: Path, log: Log) -> None:
    write(tmp_path, "a", "org.example.A")
    write(tmp_path, "org.example.B", "org.example.B")
    (tmp_path / "c.txt").write_text("[D-BUS Service]\nName=org.example.C\nExec=/bin/c\n")
    services = Services([Place(str(tmp_path))], log)
    assert sorted(services.names) == [b"org.example.A", b"org.example.B"]
    found = services.find(b"org.example.A")
    assert found is not None
    assert found.path == str(tmp_path / "a.service")
    assert services.find(b"org.example.C") is None
    assert log == []


def test_takes_configured_directories(tmp_path: Path, log: Log) -> None:
    write(tmp_path, "other", "org.example.A")
    place = ConfiguredDir(path=str(tmp_path), strict=True, file="session.conf", line=1)
    assert Services([place], log).names == {}
    assert log[0][0] == "warning"


@pytest.mark.skipif(not DATA.is_dir(), reason="dbus-tests is not installed")
def test_dbus_own_files(log: Log) -> None:
    services = Services([Place(str(DATA), strict=True)], log)
    assert {name.decode() + ".service" for name in services.names} == set(os.listdir(DATA))
    assert log == []


def test_first_directory_wins(tmp_path: Path, log: Log) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    first = write(one, "a", "org.example.A", "/bin/one")
    write(two, "org.example.A", "org.example.A", "/bin/two")
    services = Services([Place(str(one)), Place(str(tmp_path / "none")), Place(str(two))], log)
    assert command(services, "org.example.A") == "/bin/one"
    first.unlink()
    assert command(services, "org.example.A") == "/bin/two"


def test_file_called_after_its_name_wins(tmp_path: Path, log: Log) -> None:
    write(tmp_path, "a", "org.example.A", "/bin/other")
    write(tmp_path, "org.example.A", "org.example.A", "/bin/right")
    write(tmp_path, "z", "org.example.A", "/bin/last")
    assert command(Services([Place(str(tmp_path))], log), "org.example.A") == "/bin/right"


def test_strict_directory(tmp_path: Path, log: Log) -> None:
    path = write(tmp_path, "a", "org.example.A")
    write(tmp_path, "org.example.B", "org.example.B")
    services = Services([Place(str(tmp_path), strict=True)], log)
    assert list(services.names) == [b"org.example.B"]
    services.refresh()
    assert log == [
        (
            "warning",
            f'Service file "{path}" should have been named "org.example.A.service": not loading it',
        )
    ]


def test_helper_warns_of_other_names(tmp_path: Path, log: Log) -> None:
    path = write(tmp_path, "a", "org.example.A")
    services = Services([Place(str(tmp_path))], log, helper=True)
    assert list(services.names) == [b"org.example.A"]
    assert log == [
        (
            "warning",
            (
                f'Service file "{path}" should have been named "org.example.A.service" '
                "and will not work with system bus activation"
            ),
        )
    ]


def test_bad_files_are_named_once(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "a.service"
    path.write_text("nonsense")
    (tmp_path / "b.service").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c.service").mkdir()
    write(tmp_path, "d", "org.example.D")
    services = Services([Place(str(tmp_path))], log)
    services.refresh()
    assert list(services.names) == [b"org.example.D"]
    assert [text for _, text in log] == [
        f'Ignoring service file "{path}": invalid service file: key=value before [Section]',
        (
            f'Ignoring service file "{tmp_path / "c.service"}": '
            f'"{tmp_path / "c.service"}" is not a regular file'
        ),
    ]


def test_undecodable_file_name(tmp_path: Path, log: Log) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.service", "w") as file:
        file.write("[D-BUS Service]\nName=org.example.A\nExec=/bin/a\n")
    services = Services([Place(str(tmp_path))], log, helper=True)
    assert command(services, "org.example.A") == "/bin/a"
    log[0][1].encode()


@pytest.fixture
def idle_watch(log: Log) -> Iterator[DirectoryWatch]:
    """A watch whose loop never comes to report anything."""
    loop = asyncio.new_event_loop()
    watching = DirectoryWatch(loop, pytest.fail, log)
    yield watching
    watching.close()
    loop.close()


@pytest.mark.parametrize("watched", [False, True])
class TestChange:
    """A file appears, changes or vanishes behind our back, and is asked for at once."""

    @pytest.fixture
    def services(
        self, tmp_path: Path, log: Log, watched: bool, idle_watch: DirectoryWatch
    ) -> Services:
        write(tmp_path, "a", "org.example.A")
        age(tmp_path)
        if watched:
            idle_watch.watch([str(tmp_path)])
        return Services([Place(str(tmp_path))], log, watch=idle_watch)

    def test_appears(self, services: Services, tmp_path: Path) -> None:
        assert command(services, "org.example.B") is None
        write(tmp_path, "b", "org.example.B")
        assert command(services, "org.example.B") == "/bin/a"

    def test_vanishes(self, services: Services, tmp_path: Path) -> None:
        (tmp_path / "a.service").unlink()
        assert command(services, "org.example.A") is None
        assert services.names == {}

    def test_changes(self, services: Services, tmp_path: Path) -> None:
        write(tmp_path, "a", "org.example.A", "/bin/changed")
        assert command(services, "org.example.A") == "/bin/changed"

    def test_provides_another_name(self, services: Services, tmp_path: Path) -> None:
        write(tmp_path, "a", "org.example.Other")
        assert command(services, "org.example.A") is None
        assert command(services, "org.example.Other") == "/bin/a"

    def test_is_broken_and_mended(self, services: Services, tmp_path: Path) -> None:
        (tmp_path / "a.service").write_text("")
        assert command(services, "org.example.A") is None
        write(tmp_path, "a", "org.example.A", "/bin/mended")
        assert command(services, "org.example.A") == "/bin/mended"

    def test_is_replaced_by_one_of_another_name(self, services: Services, tmp_path: Path) -> None:
        (tmp_path / "a.service").rename(tmp_path / "b.service")
        write(tmp_path, "b", "org.example.B")
        assert command(services, "org.example.A") is None
        assert command(services, "org.example.B") == "/bin/a"

    def test_directory_vanishes_and_comes_back(self, services: Services, tmp_path: Path) -> None:
        aside = tmp_path.with_name(tmp_path.name + "-aside")
        tmp_path.rename(aside)
        assert command(services, "org.example.A") is None
        aside.rename(tmp_path)
        assert command(services, "org.example.A") == "/bin/a"


def test_watched_directory_is_not_read_for_every_unknown_name(
    tmp_path: Path, log: Log, idle_watch: DirectoryWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        reads.append(path)
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    age(tmp_path)
    services = Services([Place(str(tmp_path))], log, watch=idle_watch)
    services.find(b"org.example.A")
    assert len(reads) == 2
    idle_watch.watch([str(tmp_path)])
    services.find(b"org.example.A")
    assert len(reads) == 2
    (tmp_path / "news").touch()
    services.find(b"org.example.A")
    assert len(reads) == 3


def test_recent_change_is_not_trusted(tmp_path: Path, log: Log) -> None:
    """A file made in the same clock tick as the last look at its directory is found, even where
    inotify says nothing, as on a network file system."""

    class Deaf:
        watched = (str(tmp_path),)

        def pending(self) -> bool:
            return False

    (tmp_path / "news").touch()
    services = Services([Place(str(tmp_path))], log, watch=Deaf())
    info = os.stat(tmp_path)
    write(tmp_path, "a", "org.example.A")
    os.utime(tmp_path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert command(services, "org.example.A") == "/bin/a"


# ---- watch


async def until(condition: asyncio.Event) -> None:
    await asyncio.wait_for(condition.wait(), 20)
    condition.clear()


class Changes:
    def __init__(self) -> None:
        self.count = 0
        self.event = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.event.set()


async def test_watch_reports_files(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "QUIET", 0)
    changes = Changes()
    watching = DirectoryWatch(asyncio.get_running_loop(), changes, log)
    watching.watch([str(tmp_path), str(tmp_path / "none")])
    assert list(watching.watched) == [str(tmp_path)]
    path = write(tmp_path, "a", "org.example.A")
    await until(changes.event)
    path.rename(tmp_path / "b")
    await until(changes.event)
    (tmp_path / "b").unlink()
    await until(changes.event)
    assert log == []
    watching.close()
    watching.close()


async def test_watch_gathers_a_burst(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "QUIET", 0.05)
    changes = Changes()
    watching = DirectoryWatch(asyncio.get_running_loop(), changes, log)
    watching.watch([str(tmp_path)])
    for number in range(50):
        write(tmp_path, str(number), "org.example.A")
    await until(changes.event)
    assert changes.count == 1
    # Whatever happens now is told in one go, later.
    for number in range(50):
        write(tmp_path, str(number), "org.example.A")
    await until(changes.event)
    assert changes.count == 2
    watching.close()


async def test_watch_follows_its_list(tmp_path: Path, log: Log) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    changes = Changes()
    watching = DirectoryWatch(asyncio.get_running_loop(), changes, log)
    watching.watch([str(one)])
    watching.watch([str(two), f"{two}/"])
    assert list(watching.watched) == [str(two), f"{two}/"]
    watching.watch([str(two)])
    two.rename(tmp_path / "old")
    two.mkdir()
    watching.watch([str(two)])
    # Neither of these is ours any more, and ends of watches are no news.
    write(one, "a", "org.example.A")
    write(tmp_path / "old", "a", "org.example.A")
    await asyncio.sleep(0.05)
    assert changes.count == 0
    write(two, "a", "org.example.A")
    await until(changes.event)
    watching.close()


async def test_watch_of_a_file_is_a_warning(tmp_path: Path, log: Log) -> None:
    loop_of_links = tmp_path / "loop"
    loop_of_links.symlink_to(loop_of_links)
    watching = DirectoryWatch(asyncio.get_running_loop(), Changes(), log)
    watching.watch([str(loop_of_links), str(tmp_path)])
    assert list(watching.watched) == [str(tmp_path)]
    reason = os.strerror(40)
    assert log == [("warning", f"Cannot setup inotify for '{loop_of_links}'; error '{reason}'")]
    watching.close()


async def test_no_inotify_is_a_warning(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = DirectoryWatch(asyncio.get_running_loop(), Changes(), log)

    class OldKernel:
        def inotify_init1(self, flags: int) -> int:
            return -1

    monkeypatch.setattr(watching, "_libc", OldKernel())
    watching.watch([str(tmp_path)])
    assert watching.watched == {}
    assert log[0][0] == "warning"
    assert log[0][1].startswith("Cannot initialize inotify: ")
    watching.close()
