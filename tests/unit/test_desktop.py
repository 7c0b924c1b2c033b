"""Service files, as dbus-daemon 1.14.10 reads them (each case here was tried against it)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jitney.compat.activation.desktop import (
    MAX_SIZE,
    DesktopFileError,
    ServiceFile,
    load,
    parse,
    service_file,
)

HEAD = b"[D-BUS Service]\n"
MINIMAL = HEAD + b"Name=org.example.A\nExec=/bin/a\n"
DATA = Path("/usr/lib/dbus-1.0/installed-tests/dbus/data")


def test_minimal() -> None:
    assert service_file(MINIMAL) == ServiceFile(b"org.example.A", "/bin/a")


def test_all_keys() -> None:
    file = service_file(
        MINIMAL + b"User=nobody\nSystemdService=a.service\nAssumedAppArmorLabel=/bin/a\nMore=1\n"
    )
    assert file == ServiceFile(b"org.example.A", "/bin/a", "nobody", "a.service", "/bin/a")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"Exec=/bin/a b", "/bin/a b"),
        (b"Exec  =   /bin/a", "/bin/a"),
        (b"Exec=/bin/a  ", "/bin/a  "),
        (b"Exec=\t/bin/a", "\t/bin/a"),
        (b"Exec=", ""),
        (b"Exec", None),
        (b"Exec = a = b", "a = b"),
        (rb"Exec=a\sb\tc\nd\re\\f", "a b\tc\nd\re\\f"),
        (rb"Exec=\\s", "\\s"),
        ("Exec=/bin/é".encode(), "/bin/é"),
        (b"Exec=one\nExec=two", "one"),
        (b"Exec[de]=eins\nExec=one", "one"),
        (b"Exec[de\\q\nExec=one", "one"),
        (b"Exec=a\rUser=b", "a"),
        (b"Exec=a\r\nUser=b", "a"),
        (b"#Exec=a\n \t\f\nExec=b", "b"),
    ],
)
def test_value(text: bytes, value: str | None) -> None:
    if value is None:
        with pytest.raises(DesktopFileError):
            parse(HEAD + text)
    else:
        assert parse(HEAD + text)["D-BUS Service"]["Exec"] == value


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", 'No "Name" key in .service file'),
        (HEAD, 'No "Name" key in .service file'),
        (HEAD + b"Name=a\n", 'No "Exec" key in .service file'),
        (b"[Other]\nName=a\nExec=b\n", 'No "Name" key in .service file'),
        (b"Name=a\n" + MINIMAL, "invalid service file: key=value before [Section]"),
        (MINIMAL + b"\xff", "invalid UTF-8"),
        (MINIMAL + b"\xed\xa0\x80", "invalid UTF-8"),
        (MINIMAL + b"#\0", "invalid UTF-8"),
        (b"[]\n", "Error at line 1: Invalid syntax for section header"),
        (b"\n[A\n", "Error at line 2: Invalid syntax for section header"),
        (b"[A] \n", "Error at line 1: Invalid syntax for section header"),
        (b"[A[]\n", "Error at line 1: Invalid characters in section name"),
        (b"[A\x7f]\n", "Error at line 1: Invalid characters in section name"),
        ("[é]\n".encode(), "Error at line 1: Invalid characters in section name"),
        (
            HEAD + b"[\t]\n",
            "Error in section D-BUS Service at line 2: Invalid characters in section name",
        ),
        (HEAD + b" Name=a\n", "Error in section D-BUS Service at line 2: Empty key name"),
        (HEAD + b"=a\n", "Error in section D-BUS Service at line 2: Empty key name"),
        (
            HEAD + b"Na.me=a\n",
            "Error in section D-BUS Service at line 2: Invalid characters in key name",
        ),
        (
            HEAD + b"Name\t=a\n",
            "Error in section D-BUS Service at line 2: Invalid characters in key name",
        ),
        (
            HEAD + b"Name  \n",
            "Error in section D-BUS Service at line 2: No '=' in key/value pair",
        ),
        (
            HEAD + b"Exec=a\\\n",
            "Error in section D-BUS Service at line 2: Text to be unescaped ended in \\",
        ),
        (
            HEAD + b"Exec=a\\x\n",
            ("Error in section D-BUS Service at line 2: "
            "Text to be unescaped had invalid escape sequence"),
        ),
        # A group that comes twice is looked up in its first half, but read to its end.
        (HEAD + b"Name=a\n" + HEAD + b"Exec=b\n", 'No "Exec" key in .service file'),
        (MINIMAL + HEAD + b"x\n", ("Error in section D-BUS Service at line 5: "
         "No '=' in key/value pair")),
    ],
)  # fmt: skip
def test_error(data: bytes, text: str) -> None:
    with pytest.raises(DesktopFileError) as caught:
        service_file(data)
    assert str(caught.value) == text


@given(st.binary(max_size=200) | st.text("[]D-BUS Servicname=Ex\\\n\r#\0\t é").map(str.encode))
@example(b"[D-BUS Service]\nName=a\nExec=\\")
def test_junk_raises_nothing_else(data: bytes) -> None:
    try:
        found = service_file(MINIMAL + data)
    except DesktopFileError:
        return
    assert (found.name, found.exec) == (b"org.example.A", "/bin/a")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_every_value_can_be_written(value: str) -> None:
    escaped = value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    if escaped.startswith(" "):
        escaped = "\\s" + escaped[1:]
    assert parse(HEAD + b"Exec=" + escaped.encode())["D-BUS Service"]["Exec"] == value


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "a.service"
    path.write_bytes(MINIMAL)
    assert load(str(path)).name == b"org.example.A"


def test_load_refuses_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(DesktopFileError, match="is not a regular file"):
            load(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        load(str(tmp_path / "absent"))


def test_load_refuses_large_files(tmp_path: Path) -> None:
    path = tmp_path / "a.service"
    path.write_bytes(MINIMAL + b"#" * (MAX_SIZE - len(MINIMAL)))
    assert load(str(path)).exec == "/bin/a"
    path.write_bytes(MINIMAL + b"#" * (MAX_SIZE - len(MINIMAL) + 1))
    with pytest.raises(DesktopFileError, match=r"^Desktop file size \(131073 bytes\) is too large"):
        load(str(path))


@pytest.mark.skipif(not DATA.is_dir(), reason="dbus-tests is not installed")
def test_dbus_own_files() -> None:
    valid = [*DATA.glob("valid-service-files*/*.service"), *DATA.glob("systemd-*/*.service")]
    assert len(valid) > 10
    for path in valid:
        assert load(str(path)).name.decode() + ".service" == path.name
    for path in DATA.glob("invalid-service-files-system/*.service"):
        # "NoUser" is wrong only where somebody wants to start it.
        if "NoUser" in path.name:
            assert load(str(path)).user is None
        else:
            with pytest.raises(DesktopFileError):
                load(str(path))
