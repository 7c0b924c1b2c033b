"""Configuration: files, what is in them, and what comes of several of them together.

The cases here stand alone; where dbus's own test files are installed, they are read as well.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from configs import DAEMON, ask_daemon, read, write

from jitney.broker.limits import Limits
from jitney.broker.policy import PolicySet
from jitney.compat.config import Config, ConfigError, dirs, load, names, selinux

DATA = Path("/usr/lib/dbus-1.0/installed-tests/dbus/data")

# Beginning and end of a file


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "line 1, column 0: no element found"),
        ("<busconfig>\n<user>x</foo>", 2, "line 2, column 9: mismatched tag"),
        ("<busconfig>\n\n", 3, "line 3, column 0: no element found"),
        ('<busconfig>\n<limit name="a" name="b"/></busconfig>', 2, "duplicate attribute"),
        ("<busconfig>\n&nowhere;</busconfig>", 2, "undefined entity"),
        ("<busconfig>\n\0</busconfig>", 2, "not well-formed (invalid token)"),
    ],
)
def test_not_well_formed(text: str, line: int, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bus.conf"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(str(path))
    assert refused.value.line == line
    assert refused.value.text.startswith(f"Error in file {path}, line {line}, column ")
    assert refused.value.text.endswith(reason)


def test_root_and_listen(tmp_path: Path) -> None:
    path = tmp_path / "bus.conf"
    path.write_text("\n<config/>")
    with pytest.raises(ConfigError, match="Unknown element <config> at root of configuration file"):
        load(str(path))
    path.write_text('<busconfig version="1"/>')
    with pytest.raises(ConfigError, match='Attribute "version" is invalid on <busconfig> element'):
        load(str(path))
    path.write_text("<busconfig/>")
    with pytest.raises(ConfigError) as refused:
        load(str(path))
    assert refused.value.text == (
        "Configuration file needs one or more <listen> elements giving addresses"
    )
    assert str(refused.value) == f"{path}: {refused.value.text}"


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(str(tmp_path / "absent"))
    assert refused.value.text == f'Failed to open "{tmp_path}/absent": No such file or directory'
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ConfigError, match="no element found"):
        load(str(fifo))
    long = tmp_path / "long"
    long.write_text("<busconfig>" + " " * 2**20)
    with pytest.raises(ConfigError, match=r'File size 1048587 of ".*long" is too large\.'):
        load(str(long))


def test_bytes_in_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "bus.conf"
    text = (
        "<busconfig><listen>unix:path=/tmp/\N{LATIN SMALL LETTER E WITH ACUTE}</listen></busconfig>"
    )
    path.write_bytes(text.encode("utf-16"))
    assert load(str(path)).listen[0].address.endswith("\N{LATIN SMALL LETTER E WITH ACUTE}")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="not well-formed"):
        load(str(path))


def test_read_once_from_a_descriptor(tmp_path: Path) -> None:
    fd = os.memfd_create("bus.conf")
    try:
        os.write(fd, Path(write(tmp_path, "")).read_bytes())
        config = load(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    assert config.files == (f"/proc/self/fd/{fd}",)
    assert config.type is None
    assert not config.fork


def test_paths_that_are_not_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/x\xe9.conf", "w") as file:
        file.write("<busconfig><servicedir>s</servicedir><user>u</user></busconfig>")
    main = write(tmp_path, "<includedir>d</includedir>")
    os.symlink(folder, tmp_path / "d")
    config = load(main)
    assert config.user == "u"
    assert os.fsencode(config.files[1]).endswith(b"/d/x\xe9.conf")
    config = load(os.fsdecode(folder) + "/../bus.conf")
    assert os.fsencode(config.listen[0].file) == folder + b"/../bus.conf"


# Entities


def test_entities(tmp_path: Path) -> None:
    head = '<!DOCTYPE busconfig [<!ENTITY a "x&#38;b;"><!ENTITY b "y&lt;z">]>'
    config = read(tmp_path, "<user>&a;&#33;&amp;</user>", head)
    assert config.user == "xy<z!&"


def test_external_entities_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("<fork/>")
    head = f'<!DOCTYPE busconfig [<!ENTITY a SYSTEM "file://{secret}">]>'
    config = read(tmp_path, "&a;<user>me&a;</user>", head)
    assert (config.fork, config.user) == (False, "me")
    assert [warning.text for warning in config.warnings] == [
        'Entity "a" is not defined in this file and stands for nothing'
    ] * 2
    with pytest.raises(ConfigError, match="reference to external entity in attribute"):
        read(tmp_path, '<limit name="&a;">5</limit>', head)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    ("declarations", "use"),
    [
        # A billion laughs; the same with laughs that are silent; one long text many times
        ("".join(f'<!ENTITY e{i} "{f"&e{i + 1};" * 10}">' for i in range(9)), "&e0;"),
        (
            "".join(f'<!ENTITY e{i} "{f"&e{i + 1};" * 10}">' for i in range(9)),
            '<limit name="&e0;"/>',
        ),
        (f'<!ENTITY e0 "{"x" * 10000}">', "&e0;" * 200),
        ("".join(f'<!ENTITY e{i} "&e{i + 1};">' for i in range(3000)), "&e0;"),
    ],
)
def test_entities_that_multiply(declarations: str, use: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "bus.conf"
    bottom = '<!ENTITY e9 ""><!ENTITY e3000 "">'
    path.write_bytes(
        f"<!DOCTYPE busconfig [{declarations}{bottom}]>\n<busconfig>{use}</busconfig>".encode(
            encoding
        )
    )
    start = time.monotonic()
    with pytest.raises(ConfigError, match="limit on input amplification factor"):
        load(str(path))
    assert time.monotonic() - start < 2


def test_entities_in_a_circle(tmp_path: Path) -> None:
    circle = '<!DOCTYPE busconfig [<!ENTITY a "&b;"><!ENTITY b "&a;">]>'
    assert read(tmp_path, "", circle).listen
    with pytest.raises(ConfigError, match="recursive entity reference"):
        read(tmp_path, "&a;", circle)


# What is read


def test_everything_at_once(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """<type>session</type><type>system</type>
        <user>root</user><fork/><keep_umask/><syslog/><allow_anonymous/>
        <listen>tcp:host=localhost</listen>
        <auth>EXTERNAL</auth><auth>ANONYMOUS</auth>
        <pidfile>run/pid</pidfile><pidfile>run/pid2</pidfile>
        <servicedir>/abs</servicedir><servicedir>rel</servicedir><servicedir>/abs</servicedir>
        <servicehelper>helper</servicehelper>
        <limit name="reply_timeout">0x10</limit><limit name="reply_timeout">5000</limit>
        <limit name="max_containers">3</limit>
        <apparmor mode="required"/>
        <selinux><associate own="a" context="x"/><associate own="a" context="y"/></selinux>""",
    )
    assert (config.type, config.user, config.pidfile) == ("system", "root", "run/pid2")
    assert config.fork
    assert config.keep_umask
    assert config.syslog
    assert config.allow_anonymous
    assert [(x.address, x.line) for x in config.listen] == [
        (f"unix:tmpdir={tmp_path}", 2),
        ("tcp:host=localhost", 5),
    ]
    assert config.auth == ("EXTERNAL", "ANONYMOUS")
    assert [x.path for x in config.service_dirs] == ["/abs", f"{tmp_path}/rel"]
    assert all(x.watched and not x.strict for x in config.service_dirs)
    assert config.servicehelper == f"{tmp_path}/helper"
    assert config.apparmor == "required"
    assert config.selinux_contexts == {"a": "y"}
    limits = config.limits()
    assert limits.reply_timeout == 5000
    assert limits.max_names_per_connection == Limits().max_names_per_connection
    assert not hasattr(limits, "max_containers")


def test_limits_by_name(tmp_path: Path) -> None:
    wanted = {name: 1000 + i for i, name in enumerate(sorted(vars(Limits())))}
    assert len(wanted) == 17
    body = "".join(f'<limit name="{name}">{value}</limit>' for name, value in wanted.items())
    assert vars(read(tmp_path, body).limits()) == wanted


def test_silent_limits_are_those_of_dbus_daemon() -> None:
    limits = Limits()
    assert limits.max_incoming_bytes == limits.max_outgoing_bytes == 133169152
    assert limits.max_incoming_unix_fds == limits.max_outgoing_unix_fds == 64
    assert (limits.max_message_size, limits.max_message_unix_fds) == (33554432, 16)
    assert (limits.service_start_timeout, limits.auth_timeout) == (25000, 30000)
    assert (limits.pending_fd_timeout, limits.reply_timeout) == (150000, -1)
    assert (limits.max_completed_connections, limits.max_incomplete_connections) == (2048, 64)
    assert (limits.max_connections_per_user, limits.max_pending_service_starts) == (256, 512)
    assert limits.max_names_per_connection == limits.max_match_rules_per_connection == 512
    assert limits.max_replies_per_connection == 128


def test_rules_become_plain_data(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """<policy context="mandatory">
        <deny send_interface="a.I"
            send_member="M" send_path="/p" send_type="signal" send_destination="a.D" log="true"
            send_broadcast="false" send_requested_reply="true" eavesdrop="true" min_fds="1"/>
        <allow receive_error="a.E" receive_sender="*" max_fds="3" log="true"/>
        <allow send_destination_prefix="a.b"/>
        <allow own_prefix="a"/><deny own="*"/><allow group="root"/><deny user="*"/>
        </policy>
        <policy group="root"><allow own="x"/></policy>
        <policy at_console="true"><allow own="x"/></policy>
        <policy at_console="false"><allow own="x"/><allow user="root"/></policy>""",
    )
    spec = config.policy_spec()[1:]
    for _, _, _, one in spec:
        assert one.pop("file") == f"{tmp_path}/bus.conf"
    deny, error, prefix, own_prefix, own, group, user, in_group, console, no_console = spec
    message = {
        "kind": "message", "type": 0, "path": None, "interface": None, "member": None,
        "error": None, "peer": None, "prefix": None, "broadcast": -1, "eavesdrop": False,
        "min_fds": 0, "max_fds": 33554432, "log": False,
    }  # fmt: skip
    assert deny == ("mandatory", -1, b"", {
        **message, "allow": False, "send": True, "type": 4, "path": b"/p", "interface": b"a.I",
        "member": b"M", "peer": b"a.D", "broadcast": 0, "requested_reply": True, "log": True,
        "eavesdrop": True, "min_fds": 1, "line": 4,
    })  # fmt: skip
    assert error[3] == {
        **message, "allow": True, "send": False, "error": b"a.E", "requested_reply": True,
        "max_fds": 3, "line": 7,
    }  # fmt: skip
    assert prefix[3] == {
        **message, "allow": True, "send": True, "prefix": b"a.b", "requested_reply": True,
        "line": 8,
    }  # fmt: skip
    assert own_prefix[3] == {
        "kind": "own", "allow": True, "name": b"a", "prefix": True, "line": 9,
    }  # fmt: skip
    assert own[3] == {"kind": "own", "allow": False, "name": None, "prefix": False, "line": 9}
    assert group[3] == {
        "kind": "connect", "allow": True, "id": 0, "group": True, "name": b"root", "line": 9,
    }  # fmt: skip
    assert user[3] == {
        "kind": "connect", "allow": False, "id": -1, "group": False, "name": b"", "line": 9,
    }  # fmt: skip
    assert in_group[:3] == ("group", 0, b"root")
    assert (console[0], no_console[0]) == ("console", "no_console")


# Users whom nobody knows


def test_what_is_denied_to_unknown_users_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read(
        tmp_path,
        """<policy user="ghost"><allow own="a"/><deny own="b"/></policy>
        <policy user="4000000"><allow own="a"/><deny own="b"/></policy>
        <policy group="shades"><deny own="c"/><allow own="c"/></policy>
        <policy user="4294967296"><deny own="x"/></policy>
        <policy context="default"><allow own="*"/><allow user="*"/><deny user="ghost"/>
        <deny group="shades"/><allow group="ghosts"/></policy>""",
    )
    assert len(config.warnings) == 7
    policies = PolicySet(config.policy_spec())
    ghost, shade = 4000001, 4000002
    # As in dbus-daemon as long as nobody knows them
    assert policies.may_connect(ghost, [], 0)
    assert policies.client(ghost, [], False).may_own(b"b")
    assert policies.client(4000000, [], False).may_own(b"a")
    assert not policies.client(4000000, [], False).may_own(b"b")
    assert policies.client(0, [], False).may_own(b"x")
    assert set(policies.unknown_users) == {b"ghost", b"4294967296"}

    class Entry:
        pw_name = "ghost"
        gr_name = "shades"

    monkeypatch.setattr(names.pwd, "getpwuid", lambda uid: Entry)
    monkeypatch.setattr(names.grp, "getgrgid", lambda gid: Entry)
    assert names.settle(policies, ghost, [shade])
    assert not policies.may_connect(ghost, [], 0)
    assert not policies.may_connect(1, [shade], 0)
    assert not policies.client(ghost, [], False).may_own(b"b")
    assert policies.client(ghost, [], False).may_own(b"a")
    assert not policies.client(1, [shade], False).may_own(b"c")
    assert policies.client(1, [], False).may_own(b"c")

    def fail(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(names.pwd, "getpwuid", fail)
    assert policies.unknown_users
    assert not names.settle(policies, ghost, [])
    assert names.user_groups(ghost) is None


def test_settling_costs_nothing_where_everybody_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(names, "pwd")
    monkeypatch.delattr(names, "grp")
    assert names.settle(PolicySet(), 5, [5])


def test_ids_by_number(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        '<policy user=" 0x0"/><policy group="00"/><policy user="0 "/><policy user="-1"/>',
    )
    ids = [policy.who and (policy.who.id, policy.who.known) for policy in config.policies[1:]]
    assert ids == [(0, True), (0, True), (None, False), (None, False)]


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


def test_models_do_not_change(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    with pytest.raises(ValueError, match="frozen"):
        config.user = "somebody"  # type: ignore[misc]
    with pytest.raises(ValueError, match="Extra"):
        Config(listen=(), bees=True)  # type: ignore[call-arg]
