"""Configuration: files that include others, standard directories, and the files dbus comes with.

dbus's own test files are read where they are installed; all else stands alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from configs import DAEMON, ask_daemon, read, write

from jitney.broker.policy import PolicySet
from jitney.compat.config import Config, ConfigError, dirs, load, names, selinux

DATA = Path("/usr/lib/dbus-1.0/installed-tests/dbus/data")


# Includes


def included(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"<busconfig>{body}</busconfig>")


def test_merging_order(tmp_path: Path) -> None:
    included(
        tmp_path,
        "sub/a.conf",
        """<type>b</type><user>b</user><listen>tcp:b</listen><auth>B</auth><syslog/><fork/>
        <servicedir>here</servicedir><limit name="reply_timeout">2</limit>
        <limit name="auth_timeout">2</limit><policy context="default"><deny own="b"/></policy>
        <selinux><associate own="n" context="b"/></selinux>""",
    )
    config = read(
        tmp_path,
        """<type>a</type><user>a</user><limit name="reply_timeout">1</limit>
        <limit name="auth_timeout">1</limit><selinux><associate own="n" context="a"/></selinux>
        <policy context="default"><deny own="a"/></policy><pidfile>a</pidfile>
        <include>sub/a.conf</include>
        <user>c</user><listen>tcp:c</listen><auth>C</auth><limit name="reply_timeout">3</limit>
        <policy context="default"><deny own="c"/></policy>""",
    )
    assert (config.type, config.user, config.pidfile) == ("b", "c", "a")
    assert config.limit_values == {"reply_timeout": 3, "auth_timeout": 2}
    assert [x.address for x in config.listen[1:]] == ["tcp:b", "tcp:c"]
    assert config.auth == ("B", "C")
    assert config.selinux_contexts == {"n": "b"}
    assert [x.path for x in config.service_dirs] == [f"{tmp_path}/sub/here"]
    assert config.fork
    assert not config.syslog
    owns = [x[3]["name"] for x in config.policy_spec() if x[3]["kind"] == "own"]
    assert owns == [b"a", b"b", b"c"]
    assert config.policies[2].file == f"{tmp_path}/sub/a.conf"
    assert config.files == (f"{tmp_path}/bus.conf", f"{tmp_path}/sub/a.conf")


def test_included_files_need_no_listen_and_keep_their_lines(tmp_path: Path) -> None:
    included(tmp_path, "bad.conf", "\n\n<fork>no</fork>")
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, "<include>bad.conf</include>")
    assert (refused.value.file, refused.value.line) == (f"{tmp_path}/bad.conf", 3)
    included(tmp_path, "bad.conf", "<type>t</type>")
    assert read(tmp_path, "<include>bad.conf</include>").type == "t"


def test_include_dir(tmp_path: Path) -> None:
    for name in ("b.conf", "a.conf", ".c.conf", "d.config", "e.conf.bak"):
        included(tmp_path, f"x.d/{name}", f"<auth>{name}</auth>")
    included(tmp_path, "x.d/bad.conf", "<auth>bad</auth>\n<bees/>")
    included(tmp_path, "x.d/f.conf", "<include>../g/more.conf</include>")
    included(tmp_path, "g/more.conf", "<auth>more</auth>")
    (tmp_path / "x.d/dangling.conf").symlink_to("nowhere")
    config = read(tmp_path, "<includedir>x.d</includedir><includedir>none.d</includedir>")
    assert config.auth == (".c.conf", "a.conf", "b.conf", "more")
    assert config.include_dirs == (f"{tmp_path}/x.d",)
    (warning,) = config.warnings
    bad = f"{tmp_path}/x.d/bad.conf"
    assert (warning.file, warning.line) == (bad, 2)
    assert warning.text == (
        "Encountered error 'Element <bees> not allowed inside <busconfig> in configuration file' "
        f"while parsing '{bad}'"
    )


def test_ignore_missing_means_what_the_file_includes_too(tmp_path: Path) -> None:
    included(tmp_path, "a.conf", "<auth>A</auth>\n<include>nowhere</include>")
    with pytest.raises(ConfigError):
        read(tmp_path, "<include>a.conf</include>")
    config = read(tmp_path, '<include ignore_missing="yes">a.conf</include>')
    assert config.auth == ()
    (warning,) = config.warnings
    assert (warning.file, warning.line) == (f"{tmp_path}/a.conf", 2)
    if DAEMON is not None:
        assert ask_daemon(f"{tmp_path}/bus.conf", tmp_path)[0]


def test_directories_that_include_each_other(tmp_path: Path) -> None:
    """No file includes itself, but there are 12! ways through them."""
    folder = tmp_path / "d"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.conf").write_text(
            f"<busconfig><includedir>{folder}</includedir></busconfig>"
        )
    config = read(tmp_path, f"<includedir>{folder}</includedir>")
    assert any("More than 2000 files are included" in each.text for each in config.warnings)


def test_circles(tmp_path: Path) -> None:
    included(tmp_path, "a.conf", "<include>b.conf</include>")
    included(tmp_path, "b.conf", "\n<include>./a.conf</include>")
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, "<include>a.conf</include>")
    assert refused.value.text == f"Circular inclusion of file '{tmp_path}/./a.conf'"
    assert (refused.value.file, refused.value.line) == (f"{tmp_path}/b.conf", 2)


def test_a_file_may_include_its_own_directory(tmp_path: Path) -> None:
    # dbus-daemon does not count the main file: it is read once more, and refused the next time.
    config = read(tmp_path, "<auth>A</auth><includedir>.</includedir>")
    assert config.auth == ("A", "A")
    assert [warning.text.split(" of ")[0] for warning in config.warnings] == [
        "Encountered error 'Circular inclusion"
    ]


def test_circles_through_links_end(tmp_path: Path) -> None:
    (tmp_path / "sub").symlink_to(".")
    (tmp_path / "link.conf").symlink_to("bus.conf")
    with pytest.raises(ConfigError, match="Circular inclusion of file"):
        read(tmp_path, "<include>sub/link.conf</include>")
    inner = tmp_path
    for _ in range(60):
        inner = inner / "s"
        included(inner, "x.conf", "<include>s/x.conf</include>")
    with pytest.raises(ConfigError, match="Circular inclusion of file"):
        read(tmp_path, "<include>s/x.conf</include>")


def test_include_for_selinux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = tmp_path / "enforce"
    settings = tmp_path / "config"
    settings.write_text("# SELINUXTYPE=old\nSELINUX=enforcing\nSELINUXTYPE=mls\n")
    monkeypatch.setattr(selinux, "SELINUX_FS", (str(switch),))
    monkeypatch.setattr(selinux, "SELINUX_CONFIG", str(settings))
    element = '<include if_selinux_enabled="yes" selinux_root_relative="yes">no/such</include>'
    assert not read(tmp_path, element).warnings
    switch.touch()
    with pytest.raises(ConfigError, match='Failed to open "/etc/selinux/mls/no/such"'):
        read(tmp_path, element)
    settings.write_text("")
    assert selinux.policy_root() == "/etc/selinux/targeted"
    settings.unlink()
    assert not selinux.enabled()
    assert selinux.policy_root() == "/etc/selinux/targeted"


# Standard directories


def test_session_directories(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    path = write(
        tmp_path,
        "<standard_session_servicedirs/><servicedir>/usr/share/dbus-1/services</servicedir>"
        f"<servicedir>{runtime}/dbus-1/services</servicedir>",
    )
    environ = {
        "XDG_RUNTIME_DIR": str(runtime),
        "XDG_DATA_HOME": "/home/x",
        "XDG_DATA_DIRS": "/a/:: /b\t:/usr/share",
    }
    found = load(path, environ=environ).service_dirs
    assert [x.path for x in found] == [
        f"{runtime}/dbus-1/services",
        "/home/x/dbus-1/services",
        "/a/dbus-1/services",
        "/b/dbus-1/services",
        "/usr/share/dbus-1/services",
    ]
    # Asked for by name, too: then it is watched, and files there may have any name.
    assert found[0].watched
    assert not found[0].strict
    write(
        tmp_path,
        f"<servicedir>{runtime}/dbus-1/services</servicedir><standard_session_servicedirs/>",
    )
    named_first = load(path, environ=environ).service_dirs
    assert [x.path for x in named_first] == [x.path for x in found]
    assert named_first[0].watched
    write(tmp_path, "<standard_session_servicedirs/>")
    transient = load(path, environ=environ).service_dirs[0]
    assert not transient.watched
    assert transient.strict
    assert (runtime / "dbus-1/services").stat().st_mode & 0o777 == 0o700


def test_session_directories_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirs, "_home", lambda: "/home/me")
    path = write(tmp_path, "<standard_session_servicedirs/>")
    assert [x.path for x in load(path, environ={}).service_dirs] == [
        "/home/me/.local/share/dbus-1/services",
        "/usr/local/share/dbus-1/services",
        "/usr/share/dbus-1/services",
    ]


def test_runtime_directories_that_are_not_ours(tmp_path: Path) -> None:
    path = write(tmp_path, "<standard_session_servicedirs/>")

    def complaint(runtime: Path, create: bool = True) -> str:
        environ = {"XDG_RUNTIME_DIR": str(runtime)}
        config = load(path, environ=environ, create_dirs=create)
        assert all(x.watched for x in config.service_dirs)
        (warning,) = config.warnings
        return warning.text.removeprefix("Unable to set up transient service directory: ")

    absent, file, shared = tmp_path / "absent", tmp_path / "file", tmp_path / "shared"
    file.touch()
    shared.mkdir()
    shared.chmod(0o777)
    assert complaint(absent) == (
        f'XDG_RUNTIME_DIR "{absent}" not available: No such file or directory'
    )
    assert complaint(file) == f'XDG_RUNTIME_DIR "{file}" is not a directory'
    assert complaint(shared) == (
        f'XDG_RUNTIME_DIR "{shared}" can be written by others (mode 040777)'
    )
    shared.chmod(0o700)
    assert "not available" in complaint(shared, create=False)
    assert not list(shared.iterdir())
    stranger = next((x for x in ("/", "/proc/1") if Path(x).stat().st_uid != os.geteuid()), None)
    if stranger is not None:
        assert "is owned by uid" in complaint(Path(stranger))


def test_system_directories(tmp_path: Path) -> None:
    config = read(tmp_path, "<standard_system_servicedirs/>")
    assert [x.path for x in config.service_dirs] == [
        "/etc/dbus-1/system-services",
        "/run/dbus-1/system-services",
        "/usr/local/share/dbus-1/system-services",
        "/usr/share/dbus-1/system-services",
        "/lib/dbus-1/system-services",
    ]


def test_at_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = tmp_path / "users"
    users.mkdir()
    monkeypatch.setattr(names, "LOGGED_IN", f"{users}/")
    monkeypatch.setattr(names, "SEATS", str(tmp_path / "seats"))
    (users / "1").write_text("NAME=me\nSEATS=seat0\nACTIVE_SEATS=\n")
    (users / "2").write_text("NAME=you\nSEATS=\n")
    assert not names.at_console(1)
    (tmp_path / "seats").mkdir()
    assert names.at_console(1)
    assert not names.at_console(2)
    assert not names.at_console(3)


# Files that come with dbus


def data_files(*folders: str) -> list[str]:
    found = [
        str(x.relative_to(DATA)) for name in folders for x in sorted(DATA.glob(f"{name}/*.conf"))
    ]
    reason = f"dbus's test data ({DATA}) is not installed"
    return found or [pytest.param("", marks=pytest.mark.skip(reason=reason))]


@pytest.mark.parametrize("file", data_files("valid-config-files", "valid-config-files-system"))
def test_valid_data(file: str) -> None:
    config = load(str(DATA / file), create_dirs=False)
    PolicySet(config.policy_spec()).client(0, [0], True)


@pytest.mark.parametrize("file", data_files("invalid-config-files"))
def test_invalid_data(file: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(str(DATA / file))
    assert refused.value.line > 0


@pytest.mark.parametrize("pair", ["basic", "entities"])
def test_equivalent_data(pair: str) -> None:
    folder = DATA / "equiv-config-files" / pair
    if not folder.exists():
        pytest.skip(f"dbus's test data ({DATA}) is not installed")
    one, other = (load(str(folder / f"{pair}-{i}.conf")) for i in (1, 2))
    assert plain(one) == plain(other)


def plain(config: Config) -> object:
    """A configuration without where it was found."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in ("file", "line", "files")}
        if isinstance(value, tuple | list):
            return [strip(item) for item in value]
        return value

    return strip(config.model_dump())
