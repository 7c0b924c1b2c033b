"""`jitney install` and `jitney uninstall`, on trees of files that are compared byte by byte."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jitney.compat import command, install_lines, install_plan, install_policy, install_units
from jitney.compat.install_changes import Changes, Tree

DAEMON = "/opt/jitney/bin/jitney-daemon"
BROKER = "/lib/systemd/system/dbus-broker.service"
Shot = dict[str, tuple[int, bytes]]


def snapshot(root: Path) -> Shot:
    """Everything below a directory: kind and mode, and what is in it."""
    found: Shot = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                content = os.readlink(path).encode()
            else:
                content = path.read_bytes() if stat.S_ISREG(mode) else b""
            found[str(path.relative_to(root))] = (mode, content)
    return found


@dataclass
class Machine:
    """A made-up machine's files, and the words that say which bus is meant."""

    root: Path
    words: tuple[str, ...]
    folder: str

    def file(self, path: str, text: str = "", mode: int = 0o644) -> Path:
        real = self.root / path.lstrip("/")
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_text(text)
        real.chmod(mode)
        return real

    def link(self, path: str, to: str) -> None:
        real = self.root / path.lstrip("/")
        real.parent.mkdir(parents=True, exist_ok=True)
        real.symlink_to(to)

    def run(self, name: str, *more: str) -> int:
        daemon = ("--daemon", DAEMON) if name == "install" else ()
        return command.main([name, *self.words, "--root", str(self.root), *daemon, *more])

    @property
    def place(self) -> install_plan.Place:
        tree = Tree(str(self.root))
        if "--system" in self.words:
            return install_plan.system_place(tree)
        everybody = "--global" in self.words
        return install_plan.user_place(tree, None if everybody else "/home/me/.config")

    @property
    def alias(self) -> Path:
        return self.root / self.folder.lstrip("/") / "dbus.service"

    @property
    def unit(self) -> Path:
        return self.alias.with_name("jitney.service")


PLACES = {
    "system": (("--system",), "/etc/systemd/system"),
    "user": (("--user",), "/home/me/.config/systemd/user"),
    "global": (("--user", "--global"), "/etc/systemd/user"),
}


@pytest.fixture(params=PLACES)
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Machine:
    """With systemd, the socket units, and nothing of an administrator's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/me/.config")
    words, folder = PLACES[request.param]
    machine = Machine(tmp_path / "root", words, folder)
    machine.file("/usr/lib/systemd/systemd", mode=0o755)
    for scope in ("system", "user"):
        machine.file(f"/usr/lib/systemd/{scope}/dbus.socket")
        machine.file(f"/usr/lib/systemd/{scope}/dbus.service")
    machine.file(DAEMON, "#!/bin/sh\n", mode=0o755)
    (machine.root / "home/me").mkdir(parents=True)
    (machine.root / "etc").mkdir()
    return machine


def bare(machine: Machine) -> None:
    pass


def broker(machine: Machine) -> None:
    """dbus-broker is the bus, as Debian's package makes it."""
    machine.link(f"{machine.folder}/dbus.service", BROKER)
    machine.file(f"{machine.folder}/other.service", "[Unit]\n")


def part_of_the_way(machine: Machine) -> None:
    (machine.root / machine.folder.lstrip("/")).parent.mkdir(parents=True)


Befores = [bare, broker, part_of_the_way]


@pytest.fixture(params=Befores)
def before(request: pytest.FixtureRequest, machine: Machine) -> Shot:
    request.param(machine)
    return snapshot(machine.root)


# ---- there and back


def test_there_and_back(machine: Machine, before: Shot) -> None:
    assert machine.run("install") == 0
    there = snapshot(machine.root)
    assert os.readlink(machine.alias) == f"{machine.folder}/jitney.service"
    text = machine.unit.read_text()
    session = "--system" if machine.words == ("--system",) else "--session"
    assert f"\nExecStart={DAEMON} {session} --address=systemd: --nofork " in text
    assert "\nAlias=dbus.service\n" in text
    assert machine.unit.stat().st_mode & 0o777 == 0o644
    # All that was there still is, but for the link.
    changed = {path for path, what in before.items() if there.get(path) != what}
    assert changed <= {str(machine.alias.relative_to(machine.root))}
    assert machine.run("uninstall") == 0
    assert snapshot(machine.root) == before


def test_root_may_ask_the_system_bus(tmp_path: Path) -> None:
    """The file lets root, and nobody else, call our own interfaces under Debian's configuration."""
    folder = tmp_path / "system.d"
    folder.mkdir()
    (folder / "org.jitney.conf").write_text(install_policy.TEXT)
    file = tmp_path / "bus.conf"
    file.write_text(
        """<busconfig><listen>unix:tmpdir=/tmp</listen><policy context="default">
        <deny send_type="method_call"/></policy><includedir>system.d</includedir></busconfig>"""
    )
    words = ["explain", "--config", str(file), "--destination", "org.freedesktop.DBus"]
    for name in install_policy.INTERFACES:
        asked = [*words, "--interface", name, "--member", "Any"]
        assert command.main([*asked, "--sender-user", "root"]) == 0
        assert command.main([*asked, "--sender-user", "daemon"]) == 1
    other = [*words, "--interface", "org.example.Other", "--member", "Any"]
    assert command.main([*other, "--sender-user", "root"]) == 1
    assert command.main(["check-config", str(folder / "org.jitney.conf")]) == 0


def test_again_changes_nothing(
    machine: Machine, before: Shot, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.run("install")
    there = snapshot(machine.root)
    times = {path: path.lstat().st_mtime_ns for path in machine.root.rglob("*")}
    capsys.readouterr()
    assert machine.run("install") == 0
    assert capsys.readouterr().out.startswith("jitney is installed as the ")
    assert snapshot(machine.root) == there
    assert {path: path.lstat().st_mtime_ns for path in machine.root.rglob("*")} == times
    machine.run("uninstall")
    capsys.readouterr()
    assert machine.run("uninstall") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert snapshot(machine.root) == before


def test_dry_run(machine: Machine, before: Shot, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.run("install", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert snapshot(machine.root) == before
    assert f"\n+++ {machine.folder}/jitney.service\n" in shown
    assert f"\n+ExecStart={DAEMON} " in shown
    assert f"\nlink {machine.folder}/dbus.service -> {machine.folder}/jitney.service\n" in shown
    kept = f"keep {machine.folder}/dbus.service -> {BROKER} as " in shown
    assert kept == machine.alias.is_symlink()
    machine.run("install")
    there = snapshot(machine.root)
    assert machine.run("uninstall", "--dry-run") == 0
    assert f"remove {machine.folder}/jitney.service\n" in capsys.readouterr().out
    assert snapshot(machine.root) == there


def steps(changes: Changes) -> Iterator[Callable[[], None]]:
    for step in changes.steps:
        yield Changes(changes.tree, [step]).make


@pytest.mark.parametrize("direction", ["install", "uninstall"])
def test_interrupted_anywhere(machine: Machine, before: Shot, direction: str) -> None:
    """After each step there is a bus to start, and the rest can be done or taken back later."""

    def plan() -> Changes:
        if direction == "install":
            return install_plan.install(machine.place, DAEMON)
        return install_plan.uninstall(machine.place)

    if direction == "uninstall":
        machine.run("install")
    for number in range(len(plan().steps)):
        for done, step in enumerate(steps(plan())):
            if done > number:
                break
            step()
            link = os.readlink(machine.alias) if machine.alias.is_symlink() else BROKER
            assert link == BROKER or (machine.root / link.lstrip("/")).exists()
        assert machine.run("install") == 0
        assert machine.run("uninstall") == 0
        # What may be left are directories, made when that was not noted yet.
        left = snapshot(machine.root)
        assert all(stat.S_ISDIR(left[path][0]) for path in left.keys() - before.keys())
        assert {path: what for path, what in left.items() if path in before} == before
        if direction == "uninstall":
            machine.run("install")


def test_new_daemon_old_backup(machine: Machine) -> None:
    """Installed over itself with another path, what was there first still comes back."""
    broker(machine)
    before = snapshot(machine.root)
    machine.run("install")
    machine.file("/opt/new/bin/jitney-daemon", "#!/bin/sh\n", mode=0o755)
    with_new = snapshot(machine.root)
    assert machine.run("install", "--daemon", "/opt/new/bin/jitney-daemon") == 0
    assert "ExecStart=/opt/new/bin/jitney-daemon " in machine.unit.read_text()
    assert with_new.keys() == snapshot(machine.root).keys()
    machine.run("uninstall")
    shutil.rmtree(machine.root / "opt/new")
    assert snapshot(machine.root) == before


def test_somebody_chose_another_bus_since(machine: Machine) -> None:
    broker(machine)
    machine.run("install")
    machine.alias.unlink()
    machine.alias.symlink_to("/lib/systemd/system/third.service")
    assert machine.run("uninstall") == 0
    assert os.readlink(machine.alias) == "/lib/systemd/system/third.service"
    assert {path.name for path in machine.alias.parent.iterdir()} == {
        "dbus.service", "other.service"
    }  # fmt: skip
    # And if jitney is chosen once more, it is that one that comes back.
    before = snapshot(machine.root)
    machine.run("install")
    machine.run("uninstall")
    assert snapshot(machine.root) == before


def test_what_others_put_into_our_directories_stays(machine: Machine) -> None:
    machine.run("install")
    drop_in = machine.file(f"{machine.folder}/jitney.service.d/mine.conf", "[Service]\n")
    assert machine.run("uninstall") == 0
    assert drop_in.exists()
    assert not machine.unit.exists()


# ---- refusals


@pytest.mark.parametrize("name", ["dbus.service", "jitney.service"])
@pytest.mark.parametrize("direction", ["install", "uninstall"])
def test_file_of_others(
    machine: Machine, name: str, direction: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.file(f"{machine.folder}/{name}", "[Service]\nExecStart=/bin/mine\n")
    before = snapshot(machine.root)
    code = machine.run(direction)
    assert snapshot(machine.root) == before
    if direction == "uninstall" and name == "dbus.service":
        assert code == 0
    else:
        assert code == 1
        assert f"{machine.folder}/{name} was not written by" in capsys.readouterr().err


def test_masked(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.link(f"{machine.folder}/dbus.service", "/dev/null")
    before = snapshot(machine.root)
    assert machine.run("install") == 1
    assert "is masked" in capsys.readouterr().err
    assert snapshot(machine.root) == before


def test_drop_in_that_starts_something(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is added to dbus.service is added to ours, too; only another program is a conflict."""
    machine.file(f"{machine.folder}/dbus.service.d/memory.conf", "[Service]\nMemoryMax=1G\n")
    assert machine.run("install") == 0
    machine.run("uninstall")
    path = f"{machine.folder}/dbus.service.d/other.conf"
    machine.file(path, "[Service]\nExecStart=\nExecStart=/bin/other\n")
    before = snapshot(machine.root)
    assert machine.run("install") == 1
    assert f"{path} says what is started as dbus.service" in capsys.readouterr().err
    assert snapshot(machine.root) == before


def test_no_socket(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    for path in machine.root.rglob("dbus.socket"):
        path.unlink()
    assert machine.run("install") == 1
    assert "there is no dbus.socket" in capsys.readouterr().err


def test_no_daemon(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.run("install", "--daemon", "/opt/nowhere") == 1
    assert "/opt/nowhere does not exist" in capsys.readouterr().err
    for path in ("jitney-daemon", "/opt/a\nb", '/opt/"a"', "/opt/a\\b"):
        assert machine.run("install", "--daemon", path) == 1
        assert "a unit needs the whole path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "mode", "complaint"),
    [
        ("opt/jitney/bin/jitney-daemon", 0o775, "can be written by others"),
        ("opt/jitney", 0o757, "can be written by others"),
        ("opt/jitney/bin", 0o750, "is closed to"),
        ("opt/jitney/bin/jitney-daemon", 0o744, "is closed to"),
        ("opt", 0o1777, ""),
    ],
)
def test_root_runs_only_what_root_wrote(
    machine: Machine, path: str, mode: int, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine.root / path).chmod(mode)
    code = machine.run("install", "--dry-run")
    if complaint and machine.words == ("--system",):
        assert code == 1
        assert f"/{path} {complaint}" in capsys.readouterr().err
    else:
        assert code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_system_daemon_of_a_user(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    os.chown(machine.root / "opt/jitney", 1234, 1234)
    assert machine.run("install", "--dry-run") == (machine.words == ("--system",))
    if machine.words == ("--system",):
        assert "/opt/jitney belongs to the user 1234" in capsys.readouterr().err


def test_write_that_fails(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    machine.unit.parent.mkdir(parents=True)
    (machine.root / "etc/dbus-1/system.d").mkdir(parents=True)
    before = snapshot(machine.root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        assert machine.run("install") == 1
    assert "No space left on device; nothing after that was done" in capsys.readouterr().err
    assert snapshot(machine.root) == before


def test_daemon_beside_the_program(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/jitney/bin/jitney"])
    assert command.main(["install", *machine.words, "--root", str(machine.root)]) == 0
    assert f"\nExecStart={DAEMON} --" in machine.unit.read_text()


def test_scope_has_to_be_said(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--user", "--system"]):
        with pytest.raises(SystemExit):
            command.main(["install", *words])
    assert command.main(["install", "--system", "--global", "--root", str(machine.root),
                         "--daemon", DAEMON]) == 1  # fmt: skip
    assert "only one system bus" in capsys.readouterr().err


# ---- units


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize("scope", ["system", "user"])
@pytest.mark.parametrize("folder", ["plain", "odd %h $HOME; # {x}"])
def test_systemd_understands_the_unit(scope: str, folder: str, tmp_path: Path) -> None:
    """systemd finds no fault with it, knows it as dbus.service, and sees the path as it is."""
    daemon = tmp_path / folder / "jitney-daemon"
    daemon.parent.mkdir()
    for program in (daemon, daemon.with_name("jitney")):
        shutil.copy("/bin/true", program)
    units = tmp_path / "units"
    units.mkdir()
    text = install_units.text(scope, str(daemon), ["/some/where"])
    (units / "jitney.service").write_text(text)
    (units / "dbus.service").symlink_to(units / "jitney.service")
    # A user's manager wants a runtime directory.
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:", "XDG_RUNTIME_DIR": str(tmp_path)}
    for name in ("jitney.service", "dbus.service"):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", f"--{scope}", str(units / name)],
            env=environment, capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        assert "jitney" not in done.stderr, done.stderr
    daemon.unlink()
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--{scope}", str(units / "jitney.service")],
        env=environment, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    # That it is missed shows that the check is one, and that nothing of its name got lost.
    assert f"{daemon} is not executable" in done.stderr


def test_nothing_that_the_helper_or_services_would_inherit() -> None:
    for scope in ("system", "user"):
        text = install_units.text(scope, DAEMON, [])
        for word in ("NoNewPrivileges", "Private", "Protect", "Restrict", "SystemCall", "Environ"):
            assert word not in text


def test_notes_come_back() -> None:
    made = ["/a b/c", "/a b/c/d\udcff"]
    text = install_units.text("user", DAEMON, made)
    data = text.encode(errors="surrogateescape")
    assert install_units.is_ours(data)
    assert install_units.made_directories(data) == made
    assert not install_units.is_ours(b"[Unit]\n" + data)


# ---- without systemd


@pytest.mark.parametrize("kind", install_lines.KINDS)
def test_lines(
    machine: Machine, kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = snapshot(machine.root)
    assert machine.run("install", f"--no-systemd={kind}") == 0
    assert snapshot(machine.root) == before
    text = capsys.readouterr().out
    assert "/opt/jitney/bin/" in text
    assert "The way back" in text
    script = tmp_path / "script"
    script.write_text(text)
    subprocess.run(["sh", "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("sign", "kind"),
    [
        ("/sbin/openrc-run", "openrc"),
        ("/usr/bin/runsvdir", "runit"),
        ("/bin/s6-svscan", "s6"),
        ("/etc/motd", "container"),
    ],
)
def test_machine_without_systemd(
    machine: Machine, sign: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine.root / "usr/lib/systemd/systemd").unlink()
    machine.file(sign)
    before = snapshot(machine.root)
    assert machine.run("install") == 0
    assert f"# No systemd: for {kind}." in capsys.readouterr().out
    assert snapshot(machine.root) == before
