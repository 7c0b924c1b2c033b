"""Configuration: what a file may be, what it says, and what becomes of that."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest
from configs import read, write

from jitney.broker.limits import Limits
from jitney.broker.policy import PolicySet
from jitney.compat.config import Config, ConfigError, load, names

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
    with tempfile.TemporaryFile() as file:
        fd = os.dup(file.fileno())
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
    start = time.thread_time()
    with pytest.raises(ConfigError, match="limit on input amplification factor"):
        load(str(path))
    assert time.thread_time() - start < 5


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
    assert names.settle(policies, os.geteuid(), [])
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


def test_models_do_not_change(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    with pytest.raises(ValueError, match="frozen"):
        config.user = "somebody"  # type: ignore[misc]
    with pytest.raises(ValueError, match="Extra"):
        Config(listen=(), bees=True)  # type: ignore[call-arg]
