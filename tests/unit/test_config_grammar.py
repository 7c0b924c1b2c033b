"""The grammar of configurations: what is refused, in which words, and what is not.

Each case is also shown to dbus-daemon where that is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from configs import DAEMON, ask_daemon, write

from jitney.broker.policy import PolicySet
from jitney.compat.config import ConfigError, load

# Only a document with an external DTD may mention entities that it does not define.
EXTERNAL = (
    '<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" '
    '"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">'
)


class Case(NamedTuple):
    """`body` stands in lines 3 and following of a file that is good without it."""

    body: str
    line: int = 0
    text: str = ""
    same_words: bool = True
    head: str = ""


def rule(attributes: str, *, element: str = "allow", policy: str = 'context="default"') -> str:
    return f"<policy {policy}>\n<{element} {attributes}/>\n</policy>"


def combination(text: str) -> str:
    return f"Invalid combination of attributes on element <allow>: {text}"


ALONE = combination(
    "own, own_prefix, user, group and the message-related attributes cannot be combined"
)
MEMBER = (
    "On element <allow>, if you specify a member you must specify an interface or a path. "
    "Keep in mind that not all messages have an interface field."
)
ONE_OF = "<policy> element must have exactly one of (context|user|group|at_console) attributes"
NO_NUMBER = '<limit name="reply_timeout"> element has invalid value (could not parse as integer)'
FDS = "attribute, must be an integer in range 0 to 33554432 inclusive"

REFUSED = {
    # Elements
    "unknown element": Case(
        "\n<bees/>", 4, "Element <bees> not allowed inside <busconfig> in configuration file"
    ),
    "nested busconfig": Case(
        "<busconfig/>",
        3,
        "Element <busconfig> not allowed inside <busconfig> in configuration file",
    ),
    "allow outside policy": Case(
        '<allow own="*"/>',
        3,
        "Element <allow> not allowed inside <busconfig> in configuration file",
    ),
    "element in policy": Case(
        '<policy context="default">\n<listen>x</listen></policy>',
        4,
        "Element <listen> not allowed inside <policy> in configuration file",
    ),
    "element in selinux": Case(
        "<selinux>\n\n<fork/></selinux>",
        5,
        "Element <fork> not allowed inside <selinux> in configuration file",
    ),
    "element in a text": Case(
        "<listen>unix:\n<fork/></listen>", 4, "Element <fork> is not allowed in this context"
    ),
    "element in allow": Case(
        '<policy context="default"><allow own="*">\n<fork/></allow></policy>',
        4,
        "Element <fork> is not allowed in this context",
    ),
    # Attributes
    "attribute on listen": Case(
        '<listen carefully="yes">unix:tmpdir=/tmp</listen>',
        3,
        'Attribute "carefully" is invalid on <listen> element in this context',
    ),
    "attribute on fork": Case(
        '<fork now="1"/>', 3, 'Attribute "now" is invalid on <fork> element in this context'
    ),
    "attribute on allow": Case(
        rule('species="stoat"'),
        4,
        'Attribute "species" is invalid on <allow> element in this context',
    ),
    "attribute on associate": Case(
        '<selinux>\n<associate own="a" who="b"/></selinux>',
        4,
        'Attribute "who" is invalid on <associate> element in this context',
    ),
    "associate, half": Case(
        '<selinux>\n<associate own="a"/></selinux>',
        4,
        'Element <associate> must have attributes own="<servicename>" and '
        'context="<selinux context>"',
    ),
    "ignore_missing": Case(
        '<include ignore_missing="true">x</include>',
        3,
        'ignore_missing attribute must have value "yes" or "no"',
    ),
    "if_selinux_enabled": Case(
        '<include if_selinux_enabled="moo">x</include>',
        3,
        'if_selinux_enabled attribute must have value "yes" or "no"',
    ),
    "selinux_root_relative": Case(
        '<include selinux_root_relative="">x</include>',
        3,
        'selinux_root_relative attribute must have value "yes" or "no"',
    ),
    "apparmor mode": Case(
        '<apparmor mode="plaintive"/>',
        3,
        'Mode attribute on <apparmor> must have value "required", "enabled" or "disabled", '
        'not "plaintive"',
    ),
    # Texts
    "text in busconfig": Case(
        "\n\n  lost words",
        5,
        "No text content expected inside XML element busconfig in configuration file",
    ),
    "text in policy": Case(
        '<policy context="default">x</policy>',
        3,
        "No text content expected inside XML element policy in configuration file",
    ),
    "text in fork": Case(
        "<fork>yes</fork>",
        3,
        "No text content expected inside XML element fork in configuration file",
    ),
    "no text in user": Case(
        "<user/>", 3, "XML element <user> was expected to have content inside it"
    ),
    "no text in listen": Case(
        "<listen></listen>", 3, "XML element <listen> was expected to have content inside it"
    ),
    "no text in include": Case(
        "<include/>", 3, "XML element <include> was expected to have content inside it"
    ),
    # Limits
    "limit without name": Case(
        "<limit>5</limit>", 3, '<limit> element must have a "name" attribute'
    ),
    "unknown limit": Case(
        '<limit name="max_bees">5</limit>', 3, 'There is no limit called "max_bees"'
    ),
    "limit without number": Case(
        '<limit name="max_names_per_connection"/>',
        3,
        "XML element <limit> was expected to have content inside it",
    ),
    "limit in words": Case('\n<limit name="reply_timeout">bees</limit>', 4, NO_NUMBER),
    "limit beyond long": Case(
        '<limit name="reply_timeout">9223372036854775808</limit>', 3, NO_NUMBER
    ),
    "limit of blanks": Case('<limit name="reply_timeout"> \n </limit>', 3, NO_NUMBER),
    "limit beyond int": Case(
        '<limit name="max_names_per_connection">2147483648</limit>',
        3,
        '<limit name="max_names_per_connection"> value is too large',
    ),
    "negative limit": Case(
        '<limit name="reply_timeout">-1</limit>',
        3,
        '<limit name="reply_timeout"> must be a positive number',
    ),
    "negative size": Case(
        '<limit name="max_message_size">-0x10</limit>',
        3,
        '<limit name="max_message_size"> must be a positive number',
    ),
    # Policies
    "policy of nobody": Case("<policy/>", 3, ONE_OF),
    "policy of two": Case('<policy user="root" group="root"/>', 3, ONE_OF),
    "policy context": Case(
        '<policy context="usual"/>',
        3,
        'context attribute on <policy> must have the value "default" or "mandatory", not "usual"',
    ),
    "policy at_console": Case(
        '<policy at_console="yes"/>',
        3,
        'Unknown value "yes" for at_console in message bus configuration file',
    ),
    "user in user": Case(
        rule('user="root"', policy='user="root"'),
        4,
        "<allow> rule cannot be per-user because it has bus-global semantics",
    ),
    "everybody in group": Case(
        rule('user="*"', element="deny", policy='group="root"'),
        4,
        "<deny> rule cannot be per-group because it has bus-global semantics",
    ),
    # Rules
    "no attributes": Case(rule(""), 4, "Element <allow> must have one or more attributes"),
    "log alone": Case(rule('log="true"'), 4, "Element <allow> must have one or more attributes"),
    "fds alone": Case(rule('min_fds="1"'), 4, "Element <allow> must have one or more attributes"),
    "send member": Case(rule('send_member="X" send_destination="a.b"'), 4, MEMBER),
    "receive member": Case(rule('receive_member="X"'), 4, MEMBER),
    "send and receive": Case(
        rule('receive_type="signal" send_destination="a.b"'),
        4,
        combination("send and receive attributes cannot be combined"),
    ),
    "own and user": Case(rule('own="a.b" user="root"'), 4, ALONE),
    "own and prefix": Case(rule('own="a.b" own_prefix="a.b"'), 4, ALONE),
    "own and eavesdrop": Case(rule('own="a.b" eavesdrop="true"'), 4, ALONE),
    "user and fds": Case(rule('user="root" max_fds="1"'), 4, ALONE),
    "send error and member": Case(
        rule('send_error="a.b" send_interface="a.b"'),
        4,
        combination("send_error cannot be combined with send_member or send_interface"),
    ),
    "receive error and member": Case(
        rule('receive_error="a.b" receive_path="/" receive_member="M"'),
        4,
        combination("receive_error cannot be combined with receive_member or receive_interface"),
    ),
    "destination and prefix": Case(
        rule('send_destination="*" send_destination_prefix="a"'),
        4,
        combination("send_destination cannot be combined with send_destination_prefix"),
    ),
    "message type": Case(rule('send_type="methodcall"'), 4, 'Bad message type "methodcall"'),
    "receive type": Case(rule('receive_type=""'), 4, 'Bad message type ""'),
    "broadcast to somebody": Case(
        rule('send_broadcast="true" send_destination="com.example.Bees"'),
        4,
        'Rule with send_broadcast="true" and send_destination="com.example.Bees" cannot match '
        "anything",
    ),
    "broadcast value": Case(
        rule('send_broadcast="yes"'),
        4,
        'Bad value "yes" for send_broadcast attribute, must be true or false',
    ),
    "eavesdrop value": Case(
        rule('eavesdrop="1"'),
        4,
        'Bad value "1" for eavesdrop attribute, must be true or false',
        same_words=False,  # dbus-daemon swaps the two
    ),
    "send_requested_reply value": Case(
        rule('send_requested_reply="no"'),
        4,
        'Bad value "no" for send_requested_reply attribute, must be true or false',
        same_words=False,
    ),
    "receive_requested_reply value": Case(
        rule('receive_requested_reply=""'),
        4,
        'Bad value "" for receive_requested_reply attribute, must be true or false',
        same_words=False,
    ),
    "max_fds value": Case(
        rule('send_destination="*" max_fds="x"'), 4, f'Bad value "x" for max_fds {FDS}'
    ),
    "min_fds value": Case(
        rule('receive_sender="*" min_fds="-1"'), 4, f'Bad value "-1" for min_fds {FDS}'
    ),
    "many fds": Case(
        rule('send_destination="*" min_fds="33554433"'),
        4,
        f'Bad value "33554433" for min_fds {FDS}',
    ),
    # Files
    "missing include": Case(
        "<include>/nowhere/to/be.found</include>",
        3,
        'Failed to open "/nowhere/to/be.found": No such file or directory',
    ),
    "include of a directory": Case(
        "<include>/usr</include>", 3, '"/usr" is not a regular file'
    ),
    "includedir of a file": Case(
        "<includedir>/etc/passwd</includedir>",
        3,
        'Failed to read directory "/etc/passwd": Not a directory',
    ),
}  # fmt: skip

ACCEPTED = {
    "nothing": Case(""),
    "any type": Case("<type>weird</type>"),
    "trailing text": Case('<limit name="max_names_per_connection">12abc</limit>'),
    "hexadecimal": Case('<limit name="max_names_per_connection"> 0x20</limit>'),
    "octal": Case('<limit name="max_names_per_connection">\n+020</limit>'),
    "zero": Case('<limit name="max_replies_per_connection">0</limit>'),
    "beyond int": Case('<limit name="max_message_size">4294967296</limit>'),
    "containers": Case('<limit name="max_containers">5</limit>'),
    "apparmor without mode": Case("<apparmor/>"),
    "associate": Case('<selinux>\n<associate own="a" context="b"/>\n</selinux>'),
    "missing is fine": Case('<include ignore_missing="yes">/nowhere/x</include>'),
    "no such directory": Case("<includedir>/nowhere/x.d</includedir>"),
    "blanks in switches": Case("<fork>\n</fork><keep_umask> </keep_umask>"),
    "eavesdrop alone": Case(rule('eavesdrop="true"')),
    "send eavesdrop": Case(rule('send_destination="*" eavesdrop="false"')),
    "any destination, broadcast": Case(rule('send_destination="*" send_broadcast="true"')),
    "somebody, no broadcast": Case(rule('send_destination="a.b" send_broadcast="false"')),
    "prefix is no pattern": Case(rule('send_destination_prefix="*" send_broadcast="true"')),
    "fds": Case(rule('receive_sender="*" min_fds="0x1" max_fds="33554432"')),
    "log": Case(rule('send_type="error" log="whatever"')),
    "group": Case(rule('group="*"', element="deny")),
    "names are not checked": Case(rule('send_destination="not a name" send_path="no path"')),
    "empty policy": Case('<policy context="mandatory"/>'),
    "console": Case('<policy at_console="true"/><policy at_console="false"/>'),
    "user by number": Case(rule('own="a.b"', policy='user="0"')),
    # Only worth a word in the log; `text` is that word, `line` where it points to
    "undefined entity": Case(
        "<type>\n&weird;</type>",
        4,
        'Entity "weird" is not defined in this file and stands for nothing',
        same_words=False,
        head=EXTERNAL,
    ),
    "unknown user": Case(
        '<policy user="no-such-user"/>',
        3,
        'Unknown username "no-such-user" in message bus configuration file',
    ),
    "unknown number": Case(
        '<policy user="3999999999"/>',
        3,
        'Unknown username "3999999999" in message bus configuration file',
    ),
    "unknown group": Case(
        '<policy group="no-such-group"/>',
        3,
        'Unknown group "no-such-group" in message bus configuration file',
    ),
    "unknown user in a rule": Case(
        rule('user="no-such-user"', element="deny"),
        4,
        'Unknown username "no-such-user" on element <deny>',
    ),
    "unknown group in a rule": Case(
        rule('group="no-such-group"'), 4, 'Unknown group "no-such-group" on element <allow>'
    ),
    "unknown user in an ill-placed rule": Case(
        rule('user="no-such-user"', policy='user="root"'),
        4,
        'Unknown username "no-such-user" on element <allow>',
    ),
    "known user in an ignored policy": Case(
        rule('user="root"', policy='user="no-such-user"'),
        3,
        'Unknown username "no-such-user" in message bus configuration file',
    ),
    "user in console": Case(rule('user="root"', policy='at_console="true"')),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    case = REFUSED[name]
    path = write(tmp_path, case.body)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert (refused.value.file, refused.value.line, refused.value.text) == (
        path,
        case.line,
        case.text,
    )
    assert str(refused.value) == f"{path}:{case.line}: {case.text}"


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str, tmp_path: Path) -> None:
    case = ACCEPTED[name]
    path = write(tmp_path, case.body, case.head)
    config = load(path)
    if case.line:
        (warning,) = config.warnings
        assert (warning.file, warning.line, warning.text) == (path, case.line, case.text)
    PolicySet(config.policy_spec())


@pytest.mark.skipif(DAEMON is None, reason="no dbus-daemon to compare with")
@pytest.mark.parametrize("name", [*REFUSED, *ACCEPTED])
@pytest.mark.weakness("CVE-2022-31213")
def test_dbus_daemon_agrees(name: str, tmp_path: Path) -> None:
    case = REFUSED.get(name) or ACCEPTED[name]
    # It would stay behind as a daemon.
    body = case.body.replace("<fork>\n</fork>", "<syslog>\n</syslog>")
    started, said = ask_daemon(write(tmp_path, body, case.head), tmp_path)
    assert started is (name in ACCEPTED), said
    if case.line and case.same_words:
        assert case.text in said
