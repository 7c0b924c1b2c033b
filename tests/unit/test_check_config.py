"""`jitney check-config`: each lint where it belongs, and nothing where it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jitney.compat import check_config
from jitney.compat.check_config import check
from jitney.compat.config.lint import TAGS, Finding


def fragment(folder: Path, body: str, name: str = "com.example.A.conf") -> str:
    """A fragment whose `body` starts in line 2."""
    path = folder / name
    path.write_text(f"<busconfig>\n{body}\n</busconfig>\n")
    return str(path)


def found(folder: Path, body: str, **more: bool) -> list[tuple[int, str]]:
    """Line and tag (or kind) of what is found in a fragment."""
    return [(each.line, each.tag or each.kind) for each in check(fragment(folder, body), **more)]


def default(*rules: str) -> str:
    return '<policy context="default">\n' + "\n".join(rules) + "</policy>"


CLEAN = """<policy user="root"><allow own="com.example.A"/></policy>
<policy context="default">
<allow send_destination="com.example.A" send_interface="com.example.A"/>
<allow send_destination="com.example.A" send_interface="org.freedesktop.DBus.Properties"/>
</policy>"""


def test_nothing_to_say(tmp_path: Path) -> None:
    assert found(tmp_path, CLEAN) == []
    assert check_config.main([fragment(tmp_path, CLEAN), "--strict"]) == 0


@pytest.mark.parametrize(
    ("rule", "tags"),
    [
        (
            '<allow send_interface="a.b"/>',
            ["dbus-policy-without-send-destination", "dbus-policy-allow-without-destination"],
        ),
        (
            '<allow send_interface="org.freedesktop.DBus.Properties"/>',
            [
                "dbus-policy-without-send-destination",
                "dbus-policy-excessively-broad",
                "dbus-policy-allow-without-destination",
            ],
        ),
        (
            '<allow send_type="method_call"/>',
            ["dbus-policy-without-send-destination", "dbus-policy-excessively-broad"],
        ),
        (
            '<deny send_interface="a.b"/>',
            ["dbus-policy-without-send-destination", "dbus-policy-deny-without-destination"],
        ),
        ('<deny send_type="method_call"/>', ["dbus-policy-without-send-destination"]),
        ('<allow send_destination="*"/>', ["dbus-policy-allow-wildcard"]),
        ('<deny send_destination="*" send_interface="a.b"/>', []),
        ('<allow send_destination="a.b" send_interface="a.b" send_member="*"/>', []),
        ('<allow send_destination_prefix="a" send_interface="a.b"/>', []),
        ('<allow receive_sender="a.b"/>', ["dbus-policy-allow-receive"]),
        ('<allow receive_type="signal"/>', []),
        ('<allow own="a.b"/>', ["dbus-policy-missing-allow"]),
        (
            '<allow send_destination="a.b" send_path="/" send_member="M"/>',
            ["jitney-member-without-interface"],
        ),
        (
            '<allow send_destination="org.foo.*"/>',
            ["dbus-policy-allow-wildcard", "jitney-bad-name"],
        ),
        ('<deny send_destination="a.b" send_interface="nodots"/>', ["jitney-bad-name"]),
        ('<deny send_destination="a.b" send_path="no/slash"/>', ["jitney-bad-name"]),
        ('<deny own_prefix="*"/>', ["jitney-bad-name"]),
        ('<deny own_prefix="com"/>', []),
        ('<deny send_destination=":1.5"/>', ["jitney-unique-name"]),
        ('<deny send_destination="a.b" min_fds="2" max_fds="1"/>', ["jitney-rule-never-fits"]),
        (
            '<allow send_broadcast="true" send_type="error"/>',
            [
                "dbus-policy-without-send-destination",
                "dbus-policy-excessively-broad",
                "jitney-rule-never-fits",
            ],
        ),
    ],
)
def test_one_rule(rule: str, tags: list[str], tmp_path: Path) -> None:
    assert found(tmp_path, default(rule)) == [(3, tag) for tag in tags]


def test_root_may_send_without_destination(tmp_path: Path) -> None:
    # lintian says nothing of what only root may; rpmlint does.
    body = '<policy user="root">\n<allow send_interface="a.b"/></policy>'
    assert found(tmp_path, body) == [(3, "dbus-policy-allow-without-destination")]


def test_receiving_that_is_denied_may_be_allowed(tmp_path: Path) -> None:
    body = default('<deny receive_sender="a.b" receive_type="signal"/>')
    body += '<policy user="root"><allow receive_sender="a.b"/></policy>'
    assert found(tmp_path, body) == []


def test_at_console(tmp_path: Path) -> None:
    body = '<policy at_console="true">\n<allow send_destination="a.b"/></policy>'
    assert found(tmp_path, body) == [(2, "dbus-policy-at-console")]
    body = '<policy at_console="false">\n<deny send_destination="a.b"/></policy>'
    assert found(tmp_path, body) == [(2, "jitney-at-console")]


def test_session_fragments(tmp_path: Path) -> None:
    folder = tmp_path / "session.d"
    folder.mkdir()
    body = default('<allow send_interface="a.b"/>')
    assert found(folder, body) == [(3, "dbus-policy-without-send-destination")]


def test_unknown_people(tmp_path: Path) -> None:
    body = '<policy user="no such user">\n</policy><policy group="no such group"></policy>'
    assert found(tmp_path, body) == [(2, "jitney-unknown-user"), (3, "jitney-unknown-group")]


NARROW = '<allow send_destination="a.b" send_interface="a.b"/>'
WIDE = '<allow send_destination="a.b"/>'
DENY = '<deny send_destination="a.b"/>'
SIGNALS = '<deny receive_type="signal"/>'
BLANKET = '<allow eavesdrop="true" max_fds="0"/>'


@pytest.mark.parametrize(
    ("rules", "tag", "text"),
    [
        ([NARROW, WIDE], "never-decides", f"{WIDE} in line 4 says the same, and about no less"),
        (
            ['<deny own="a.b"/>', '<allow own="a.b"/>', WIDE],
            "never-decides",
            '<allow own="a.b"/> in line 4 overrides it whenever it fits',
        ),
        (
            [DENY, WIDE],
            "decides-replies-only",
            f"{WIDE} in line 4 overrides it for everything else",
        ),
        (
            [SIGNALS, BLANKET],
            "never-decides",
            f"the blanket rule {BLANKET} in line 4 wipes out all rules before it",
        ),
    ],
)
def test_rules_that_never_decide(rules: list[str], tag: str, text: str, tmp_path: Path) -> None:
    (only,) = check(fragment(tmp_path, default(*rules)))
    assert (only.line, only.tag) == (3, f"jitney-rule-{tag}")
    assert only.text.startswith(rules[0])
    assert only.text.endswith(f": {text}")


def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fragment(tmp_path, "<nonsense/>")
    assert check_config.main([path]) == 1
    assert capsys.readouterr().out == (
        f"{path}:2: error: Element <nonsense> not allowed inside <busconfig> in configuration"
        " file\n"
    )
    missing = f"{tmp_path}/none.conf"
    assert check_config.main([missing]) == 1
    assert capsys.readouterr().out == (
        f'{missing}: error: Failed to open "{missing}": No such file or directory\n'
    )
    Path(path).write_text("<busconfig>\n<policy")
    assert check_config.main([path]) == 1
    assert f"{path}:2: error: Error in file" in capsys.readouterr().out


def test_whole_configurations(tmp_path: Path) -> None:
    dropped = tmp_path / "dropped"
    dropped.mkdir()
    inner = fragment(dropped, "<listen>unix:path=/x</listen>\n<allow_anonymous/>")
    lax = fragment(dropped, default('<allow send_interface="a.b"/>'), "lax.conf")
    broken = fragment(dropped, "<nonsense/>", "broken.conf")
    path = tmp_path / "bus.conf"
    body = default('<allow send_type="signal"/>', '<deny own="*"/>')
    path.write_text(
        f"<busconfig><listen>unix:path=/y</listen>\n{body}<includedir>dropped</includedir>"
        "</busconfig>"
    )
    seen = {(each.file, each.line, each.tag or each.kind) for each in check(str(path))}
    assert seen == {
        (inner, 2, "jitney-listen-in-fragment"),
        (lax, 3, "dbus-policy-without-send-destination"),
        (lax, 3, "dbus-policy-allow-without-destination"),
        (broken, 2, "warning"),
    }
    path.write_text("<busconfig><includedir>nowhere</includedir></busconfig>")
    (only,) = check(str(path))
    assert only.kind == "error"
    assert "<listen>" in only.text
    assert check(str(path), fragment=True) == []


def test_listen_in_a_fragment(tmp_path: Path) -> None:
    body = "<listen>unix:path=/x</listen>"
    assert found(tmp_path, body) == []
    assert found(tmp_path, body, fragment=True) == [(2, "jitney-listen-in-fragment")]


def test_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fragment(tmp_path, default('<allow receive_sender="a.b"/>'))
    assert check_config.main([path]) == 0
    assert check_config.main([path, "--strict"]) == 1
    assert check_config.main([path, "--strict", "--ignore", "dbus-policy-allow-receive"]) == 0
    capsys.readouterr()
    assert check_config.main([path, "--json"]) == 0
    (only,) = json.loads(capsys.readouterr().out)
    assert Finding(**only).tag == "dbus-policy-allow-receive"
    assert only["file"] == path


@pytest.mark.parametrize("words", [[], ["x", "--ignore", "no-such-tag"]])
def test_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        check_config.main(words)
    assert ended.value.code == 2


def test_tags_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_config.main(["--list-tags"]) == 0
    shown = capsys.readouterr().out
    assert all(tag in shown for tag in TAGS)


def test_service_files(tmp_path: Path) -> None:
    def service(name: str, text: str, folder: str = "services") -> list[str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / name
        path.write_text(text)
        return [each.tag or each.kind for each in check(str(path))]

    good = "[D-BUS Service]\nName=com.example.A\nExec=/bin/true\n"
    assert service("com.example.A.service", good) == []
    assert service("a.service", good) == ["dbus-session-service-wrong-name"]
    assert service("a.service", good, "system-services") == ["dbus-system-service-wrong-name"]
    assert service("a.service", "[D-BUS Service]\nName=a.b\n") == ["error"]
    bad = "[D-BUS Service]\nName=nodots\nExec=/bin/true\nUser=no such user\n"
    assert service("nodots.service", bad) == ["jitney-bad-name", "jitney-unknown-user"]
    assert [each.kind for each in check(f"{tmp_path}/none.service")] == ["error"]
