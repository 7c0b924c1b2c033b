"""`jitney explain` with files: what it answers, in words, as JSON and as exit status."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from jitney.compat import explain, wording
from jitney.compat.client import NoBus, standard_address
from jitney.compat.config.render import policy_xml, scope_text

ME = pwd.getpwuid(os.getuid()).pw_name
POLICY = """<busconfig>
<listen>unix:path=/nowhere</listen>
<policy context="default">
  <allow user="*"/>
  <deny own="*"/>
  <deny send_type="method_call"/>
  <allow send_type="signal"/>
  <allow send_requested_reply="true" send_type="method_return"/>
  <allow send_requested_reply="true" send_type="error"/>
  <allow receive_type="method_call"/><allow receive_type="method_return"/>
  <allow receive_type="error"/><allow receive_type="signal"/>
  <allow send_destination="org.freedesktop.DBus"/>
  <deny send_destination="org.freedesktop.DBus" send_member="BecomeMonitor"
        send_interface="org.freedesktop.DBus.Monitoring"/>
  <allow send_destination="com.example.A" send_interface="com.example.I"/>
  <deny send_destination="com.example.A" send_interface="com.example.I" send_member="Off"/>
</policy>
<policy user="ME"><allow own="com.example.A"/></policy>
<policy context="mandatory"><deny send_destination="com.example.Locked"/></policy>
</busconfig>
"""


@pytest.fixture
def ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Asks the file with these words: status and lines, the file's name left out of them."""
    file = tmp_path / "bus.conf"
    file.write_text(POLICY.replace("ME", ME))

    def run(*words: str) -> tuple[int, list[str]]:
        status = explain.main(["--config", str(file), *words])
        caught = capsys.readouterr()
        assert bool(caught.err) == (status == 2), caught.err
        return status, (caught.out + caught.err).replace(f"{file}:", "").splitlines()

    return run


ON = '<allow send_destination="com.example.A" send_interface="com.example.I"/> (default)'
OFF = ON.replace("allow", "deny").replace("/>", ' send_member="Off"/>')
OFFER = (
    f'    <policy user="{ME}"><allow send_destination="com.example.A"'
    ' send_interface="com.example.I" send_member="Off"/></policy>'
)
LOCKED = (
    '    <policy context="mandatory"><allow send_destination="com.example.Locked"'
    ' send_interface="a.b"/></policy>'
)
A = ("--destination", "com.example.A", "--interface", "com.example.I")


def test_denied(ask: Any) -> None:
    assert ask(*A, "--member", "Off") == (
        1,
        [
            "denied: method_call com.example.I.Off to com.example.A",
            "",
            f"user {ME} may not send it",
            "  16: " + OFF,
            "  which overrides, the latest first",
            "    15: " + ON,
            '    6: <deny send_type="method_call"/> (default)',
            "  this would allow it",
            OFFER,
            "",
            f"user {ME} (com.example.A) may receive it",
            '  10: <allow receive_type="method_call"/> (default)',
            "",
            f"note: no --receiver-user was given: only {ME} has a rule to own com.example.A",
        ],
    )


def test_what_is_offered_allows(ask: Any, tmp_path: Path) -> None:
    _, lines = ask(*A, "--member", "Off")
    (offer,) = [line.strip() for line in lines if line.startswith("    <policy ")]
    file = tmp_path / "bus.conf"
    file.write_text(file.read_text().replace("</busconfig>", f"{offer}</busconfig>"))
    assert ask(*A, "--member", "Off")[0] == 0


def test_allowed(ask: Any) -> None:
    status, lines = ask(*A, "--member", "On")
    assert status == 0
    assert lines[0] == "allowed: method_call com.example.I.On to com.example.A"
    assert lines[2] == f"user {ME} may send it"


def test_mandatory(ask: Any) -> None:
    status, lines = ask("--destination", "com.example.Locked", "--interface", "a.b")
    assert status == 1
    at = lines.index("  this would allow it")
    assert lines[at + 1 : at + 4] == [
        LOCKED,
        "  if it is read after 19",
        "  no policy for one user can: this one holds for everybody",
    ]


def test_json(ask: Any) -> None:
    status, lines = ask(*A, "--member", "Off", "--json")
    answer = json.loads("\n".join(lines))
    assert status == 1
    assert not answer["allowed"]
    assert answer["send"]["decided_by"]["line"] == 16
    assert answer["send"]["decided_by"]["scope"] == "default"
    assert [rule["line"] for rule in answer["send"]["overridden"]] == [6, 15]
    assert answer["send"]["remedy"]["policy"].startswith(f'<policy user="{ME}">')
    assert answer["receive"]["allowed"]
    assert answer["message"]["member"] == "Off"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--broadcast", "--interface", "a.b", "--member", "S"], 0),
        ([*A, "--type", "method_return"], 0),
        ([*A, "--type", "method_return", "--unrequested"], 1),
        ([*A, "--error", "a.b"], 0),
        (["--destination", "com.example.A", "--error", "a.b"], 0),
        (["--destination", "com.example.A", "--error", "a.b", "--unrequested"], 1),
        (["--own", "com.example.A"], 0),
        (["--own", "com.example.B"], 1),
        (["--connect"], 0),
        (["--sender-name", "org.freedesktop.DBus", *A], 0),
        ([*A, "--eavesdrop"], 1),
        (["--destination", ":1.5", "--interface", "a.b", "--receiver-name", "com.example.A"], 1),
        (["--destination", ":1.5", "--receiver-name", "com.example.A", *A[2:]], 0),
        ([*A, "--sender-user", "12345678", "--receiver-user", "0", "--receiver-group", "0,1"], 0),
    ],
)
def test_verdicts(ask: Any, words: list[str], status: int) -> None:
    assert ask(*words)[0] == status


def test_what_is_not_said_is_of_no_matter(ask: Any) -> None:
    status, lines = ask(*A, "--receiver-user", ME)
    assert status == 0
    assert lines[0] == "allowed: method_call of com.example.I to com.example.A"
    assert lines[-1] == "note: no path and no member was given: rules that name one do not count"
    status, lines = ask(*A, "--receiver-user", ME, "--type", "method_return", "--unrequested")
    assert not [line for line in lines if line.startswith("note")]
    assert ask(*A, "--receiver-user", ME, "--path", "/", "--member", "On")[1][-1][:4] != "note"


def test_owning(ask: Any) -> None:
    _, lines = ask("--own", "com.example.B")
    assert lines == [
        f"denied: user {ME} as owner of com.example.B",
        "",
        '  5: <deny own="*"/> (default)',
        "  this would allow it",
        f'    <policy user="{ME}"><allow own="com.example.B"/></policy>',
    ]


def test_a_stranger_may_not_connect(ask: Any) -> None:
    status, lines = ask("--connect", "--sender-user", "12345678")
    assert status == 1
    assert lines[-1] == "note: the user database does not know this user, which is a no"
    assert "  no rule would allow it" in lines


def test_what_the_bus_asks_besides(ask: Any) -> None:
    bus = "org.freedesktop.DBus"
    words = ["--destination", bus, "--interface", bus, "--member", "UpdateActivationEnvironment"]
    status, lines = ask(*words)
    assert status == 0
    assert lines[-1] == (
        "note: the policy aside, UpdateActivationEnvironment is for root and the bus's own user"
        " alone"
    )
    status, lines = ask(*words[:-1], "GetId")
    assert not [line for line in lines if line.startswith("note")]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--interface", "a.b", "--type", "method_call"], "a method_call needs a destination"),
        ([*A, "--member", "no.member"], '"no.member" is no member name'),
        ([*A, "--path", "x"], '"x" is no object path'),
        ([*A, "--error", "a.b", "--type", "signal"], "a signal has no error name"),
        ([*A, "--broadcast"], "a broadcast is a signal without a destination"),
        ([*A, "--sender-user", "no such user"], 'there is no user "no such user"'),
        ([*A, "--sender-group", "no such group"], 'there is no group "no such group"'),
        ([*A, "--fds", "-1"], "no message has -1 file descriptors"),
        (["--eavesdrop", "--interface", "a.b"], "eavesdropping is about messages with"),
        (["--own", "not a name"], '"not a name" is no bus name'),
    ],
)
def test_bad_questions(ask: Any, words: list[str], complaint: str) -> None:
    status, lines = ask(*words)
    assert status == 2
    assert lines[0].startswith(f"jitney explain: {complaint}")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--system", "--session"],
        ["--config", "x", "--sender", ":1.5"],
        ["--bus", "session", "--sender-user", "root"],
        ["--config", "x", "--own", "a.b", "--member", "M"],
        ["--config", "x", "--connect", "--own", "a.b"],
        ["--config", "x", "--requested-reply", "--unrequested"],
    ],
)
def test_bad_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        explain.main(words)
    assert ended.value.code == 2


def test_a_broken_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bus.conf"
    file.write_text("<busconfig>\n<nonsense/></busconfig>")
    assert explain.main(["--config", str(file), "--connect"]) == 2
    assert f"{file}:2: Element <nonsense> not allowed" in capsys.readouterr().err


def test_no_bus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.main(["--address", f"unix:path={tmp_path}/none", *A]) == 2
    assert "No such file or directory" in capsys.readouterr().err
    assert explain.main(["--address", "tcp:host=localhost,port=1", *A]) == 2
    assert explain.main(["--address", "nonsense", *A]) == 2


def test_where_the_buses_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert standard_address("system") == "unix:path=/run/dbus/system_bus_socket"
    with pytest.raises(NoBus, match="there is no session bus"):
        standard_address("session")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(NoBus):
        standard_address("session")
    (tmp_path / "bus").touch()
    assert standard_address("session") == f"unix:path={tmp_path}/bus"
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/x")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/y")
    assert (standard_address("session"), standard_address("system")) == (
        "unix:path=/x", "unix:path=/y",
    )  # fmt: skip


def test_words_for_scopes() -> None:
    assert scope_text("group", "wheel") == "group wheel"
    assert scope_text("console", "") == "at_console"
    assert policy_xml("no_console", "", "<x/>") == '<policy at_console="false"><x/></policy>'
    assert wording.user_name(12345678) == wording.group_name(12345678) == "12345678"
