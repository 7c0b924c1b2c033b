"""Command lines of service files, as libdbus splits them (tried against dbus-daemon 1.14.10)."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jitney.compat.activation.desktop import load
from jitney.compat.activation.shell import split
from jitney.compat.errors import DBusError

DATA = Path("/usr/lib/dbus-1.0/installed-tests/dbus/data/valid-service-files")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("/bin/a", ["/bin/a"]),
        ("a b  c\td", ["a", "b", "c", "d"]),
        (" \ta", ["a"]),
        ("run 'a b' \"c d\"", ["run", "a b", "c d"]),
        ("a'b'\"c\"d", ["abcd"]),
        ("a '' \"\"", ["a", "", ""]),
        (r"a\ b \'c \"d \\e", ["a b", "'c", '"d', "\\e"]),
        (r"'a\b' 'c\'", [r"a\b", "c\\"]),
        (r'"\a\"\\\`\$\'"', [r"""\a"\`$\'"""]),
        ("a\\\nb", ["ab"]),
        ("\"a\\\nb\" 'c\\\nd'", ["a\nb", "c\\\nd"]),
        ('run "a \n multiline"', ["run", "a \n multiline"]),
        ("$HOME `id` ~ * >f | &", ["$HOME", "`id`", "~", "*", ">f", "|", "&"]),
        # A line end makes an argument of whatever stands before it.
        ("a\nb", ["a", "b"]),
        ("\na", ["", "a"]),
        ("a \n\nb", ["a", "", "", "b"]),
        # So does the end.
        ("", [""]),
        ("a ", ["a", ""]),
        ("a\n", ["a", ""]),
        # A comment, even in a word, takes its line end along.
        ("a #b\nc", ["a", "c"]),
        ("a#b\nc", ["ac"]),
        ("a # b", ["a", ""]),
        (r"a '#' \# ", ["a", "#", "#", ""]),
    ],
)
def test_split(command: str, arguments: list[str]) -> None:
    assert split(command) == arguments


@pytest.mark.parametrize(
    "command", ["'", '"', "a 'b", "ls \"a wrong string'", '"a\\"', "a\\", "#", "a #", '"\\']
)
def test_unclosed(command: str) -> None:
    with pytest.raises(DBusError) as caught:
        split(command)
    assert caught.value.name == "org.freedesktop.DBus.Error.InvalidArgs"
    assert caught.value.text == "Unclosed quotes in command line"


@given(st.text() | st.text("ab '\"\\\n\t#$`", max_size=20))
@pytest.mark.weakness("CVE-2022-31212")
def test_junk_raises_nothing_else(command: str) -> None:
    try:
        arguments = split(command)
    except DBusError:
        return
    assert arguments
    assert sum(map(len, arguments)) <= len(command)


@given(st.lists(st.text(), min_size=1))
def test_quoted_arguments_come_back(arguments: list[str]) -> None:
    assert split(shlex.join(arguments)) == arguments


@given(st.text("ab \t'\"\\", max_size=20))
def test_agrees_with_a_shell_on_one_line(command: str) -> None:
    """Python's reading of POSIX quoting; a blank at the end is the one thing libdbus adds."""
    try:
        expected = shlex.split(command)
    except ValueError:
        with pytest.raises(DBusError):
            split(command)
        return
    assert split(command) in (expected, [*expected, ""])


@pytest.mark.skipif(not DATA.is_dir(), reason="dbus-tests is not installed")
def test_dbus_own_files() -> None:
    name = "org.freedesktop.DBus.TestSuiteShellEchoService{}.service"
    good = load(str(DATA / name.format("Success"))).exec
    assert split(good)[1:] == ["-test", "that", "we get", "back", "--what", "we put in"]
    with pytest.raises(DBusError):
        split(load(str(DATA / name.format("Fail"))).exec)
