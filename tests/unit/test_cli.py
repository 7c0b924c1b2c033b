"""The command line, held against the real dbus-daemon where that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jitney.compat import cli
from jitney.compat.cli import Exit, Options, parse

REFERENCE = shutil.which("dbus-daemon")
CONFIG = "--config-file=x"

# Refused, or answered without a bus. What is printed must be dbus-daemon's but for the name.
ANSWERED = [
    [],
    ["--"],
    ["--foo"],
    ["foo"],
    [CONFIG, "foo"],
    ["-h"],
    ["-?"],
    ["--help"],
    ["--session", "--help", "--foo"],
    ["--foo", "--help"],
    ["--config-file="],
    ["--config-file"],
    ["--config-file", "--session", "--session"],
    [CONFIG, "--config-file=y"],
    [CONFIG, "--config-file", "y"],
    ["--config-file", "y", CONFIG],
    [CONFIG, "--session"],
    [CONFIG, "--system"],
    ["--session", "--session"],
    ["--session", "--system"],
    ["--system", "--session"],
    ["--session", CONFIG],
    [CONFIG, "--address=a", "--address=b"],
    [CONFIG, "--address", "a", "--address=b"],
    ["--config-file", "--address", "--address=b", "--address=c"],
    [CONFIG, "--print-address=a"],
    [CONFIG, "--print-address=-1"],
    [CONFIG, "--print-address=5x"],
    [CONFIG, "--print-address=99999999999999999999"],
    [CONFIG, "--print-address=2147483648"],
    [CONFIG, "--print-address", "--print-pid"],
    [CONFIG, "--print-address", "foo"],
    [CONFIG, "--print-address=5", "--print-address=6"],
    [CONFIG, "--print-address=5", "--print-address", "6"],
    [CONFIG, "--print-pid=1", "--print-pid=2"],
    [CONFIG, "--print-pid", "1", "2"],
    [CONFIG, "--print-pid=a"],
    ["--nofork=1"],
    ["--session=1"],
    ["--fork", "--nofork", "--syslog", "--nopidfile", "--systemd-activation"],
]


def answer(args: list[str]) -> tuple[int, str, str]:
    with pytest.raises(Exit) as caught:
        parse(args)
    return caught.value.status, caught.value.out, caught.value.err


@pytest.mark.skipif(REFERENCE is None, reason="no dbus-daemon to compare with")
@pytest.mark.parametrize("args", ANSWERED, ids=" ".join)
def test_answers_as_dbus_daemon(args: list[str]) -> None:
    assert REFERENCE is not None
    done = subprocess.run(
        [REFERENCE, *args], capture_output=True, text=True, timeout=30, check=False
    )
    expected = done.stderr.replace("dbus-daemon [", f"{cli.PROGRAM} [")
    assert answer(args) == (done.returncode, done.stdout, expected)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ([], Options()),
        (["--nofork"], Options(fork=False)),
        (["--nofork", "--fork"], Options(fork=True)),
        (["--fork", "--nofork"], Options(fork=False)),
        (["--nopidfile"], Options(write_pidfile=False)),
        (["--syslog"], Options(syslog=True)),
        (["--syslog", "--nosyslog"], Options(syslog=False)),
        (["--syslog-only"], Options(syslog=True, syslog_only=True)),
        (["--nosyslog", "--syslog"], Options(syslog=True)),
        (["--systemd-activation"], Options(systemd_activation=True)),
        (["--busy-poll=50"], Options(busy_poll=50)),
        (["--address=unix:path=a=b"], Options(address="unix:path=a=b")),
        (["--address", "unix:path=a"], Options(address="unix:path=a")),
        (["--address="], Options()),
        (["--address"], Options()),
        (["--print-address"], Options(print_address=1)),
        (["--print-address="], Options(print_address=1)),
        (["--print-address", "--nofork"], Options(print_address=1, fork=False)),
        (["--print-address", "7"], Options(print_address=7)),
        (["--print-address=0"], Options(print_address=0)),
        (["--print-pid=8", "--print-address", "9"], Options(print_pid=8, print_address=9)),
        (["--print-pid", "--fork"], Options(print_pid=1, fork=True)),
        (["--print-pid", "--fork", "--print-pid", "3"], Options(print_pid=3, fork=True)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options(args: list[str], options: Options) -> None:
    options.config_file = "x"
    assert parse([CONFIG, *args]) == options
    assert parse([*args, CONFIG]) == options


def test_next_word_may_be_anything() -> None:
    assert parse(["--config-file", "--address"]).config_file == "--address"


def test_a_store_keeps_no_clients_of_kdbus() -> None:
    for option in ("--kdbus-mount=/m", "--kdbus-sockets=/s"):
        with pytest.raises(Exit) as caught:
            parse(["--session", "--fd-store", option])
        assert caught.value.status == 1
        assert "kdbus" in caught.value.err


def test_standard_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    monkeypatch.setattr(cli, "SESSION_CONFIG", ("/nowhere/session.conf", str(there)))
    monkeypatch.setattr(cli, "SYSTEM_CONFIG", ("/nowhere/a", "/nowhere/b"))
    assert parse(["--session"]).config_file == str(there)
    assert parse(["--system"]).config_file == "/nowhere/a"
    monkeypatch.setattr(cli, "SESSION_CONFIG", ())
    ours = parse(["--session"]).config_file
    assert ours.endswith("data/session.conf")
    assert "<type>session</type>" in Path(ours).read_text()


def test_our_session_configuration_is_sound() -> None:
    from jitney.compat.config import load

    config = load(os.path.join(os.path.dirname(cli.__file__), "data", "session.conf"))
    assert (config.type, config.auth, config.keep_umask) == ("session", ("EXTERNAL",), True)
    assert [listen.address for listen in config.listen] == ["unix:tmpdir=/tmp"]


def test_version_is_understood_by_tools() -> None:
    status, out, err = answer(["--version"])
    assert (status, err) == (0, "")
    first, second = out.splitlines()
    assert first == "D-Bus Message Bus Daemon 1.14.10"
    assert second.startswith("Jitney ")


def run(args: list[str], **closed: bool) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own; `closed` names standard descriptors to close."""
    redirects = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-"}
    shell = 'exec "$0" "$@" ' + " ".join(redirects[name] for name in closed)
    command = ["sh", "-c", shell, sys.executable, "-m", "jitney.compat", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_program() -> None:
    done = run(["--version"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("D-Bus Message Bus Daemon 1.14.10\nJitney ")
    done = run([])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "No configuration file specified.\n" + cli.USAGE


def test_program_with_everything_closed() -> None:
    assert run(["--version"], stdin=True, stdout=True, stderr=True).returncode == 0
    assert run([], stdin=True, stdout=True, stderr=True).returncode == 1


def test_nothing_heavy_is_imported_for_an_answer() -> None:
    code = (
        "import sys; from jitney.compat.cli import main; main(['--version']);"
        "print(*{'argparse', 'logging', 'asyncio', 'pydantic', 'uvloop'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[2:] == [""]
