"""Match rule strings: what is accepted, how it is read, and the words of every refusal."""

from __future__ import annotations

from typing import Any

import buses
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rawclient import RawClient

from jitney.broker.mem import COMPILED
from jitney.compat import matchrule
from jitney.compat.errors import LIMITS_EXCEEDED, MATCH_RULE_INVALID, DBusError

READ: list[tuple[str, dict[str, Any] | None]] = [
    ("", {}),
    ("  \t\n ", {}),
    ("type='signal'", {"type": 4}),
    ("type=signal", {"type": 4}),
    ("type = signal", None),  # the blank belongs to the value
    ("type ='error'", {"type": 3}),
    (" type='method_call' ", None),  # and so does the one after the quote
    ("type='method_return', ", {"type": 2}),
    ("type='signal',", {"type": 4}),
    ("=whatever", {}),
    ("type='signal',=type=nonsense", {"type": 4}),
    ("sender='org.foo.Bar'", {"sender": b"org.foo.Bar"}),
    ("sender=':1.5'", {"sender": b":1.5"}),
    ("destination='a.b',interface='a.b',member='M'",
     {"destination": b"a.b", "interface": b"a.b", "member": b"M"}),
    ("path='/'", {"path": b"/"}),
    ("path_namespace='/a/b'", {"path_namespace": b"/a/b"}),
    ("eavesdrop='true'", {"eavesdrop": True}),
    ("eavesdrop='true',eavesdrop='false'", {}),
    ("arg0='x',arg63=''", {"args": [(0, "s", b"x"), (63, "s", b"")]}),
    ("arg0path='/a/',arg1path='anything'",
     {"args": [(0, "p", b"/a/"), (1, "p", b"anything")]}),
    ("arg0namespace='com'", {"args": [(0, "n", b"com")]}),
    ("arg0='a,b=c'", {"args": [(0, "s", b"a,b=c")]}),
    ("arg0='a'\\''b'", {"args": [(0, "s", b"a'b")]}),
    ("arg0=\\'", {"args": [(0, "s", b"'")]}),
    ("arg0=\\\\", {"args": [(0, "s", b"\\\\")]}),
    ("arg0=\\,arg1=x", {"args": [(0, "s", b"\\,arg1=x")]}),
    ("arg0=a\\", {"args": [(0, "s", b"a\\")]}),
    ("arg0='\\'", {"args": [(0, "s", b"\\")]}),
    ("arg0=a'b'c", {"args": [(0, "s", b"abc")]}),
    ("arg0x='1'", None),
    ("arg0x1f='x'", {"args": [(31, "s", b"x")]}),
    ("arg0x3f='hex'", {"args": [(63, "s", b"hex")]}),
    ("arg010='octal'", {"args": [(8, "s", b"octal")]}),
    ("arg+7='sign'", {"args": [(7, "s", b"sign")]}),
    ("arg0='\u00e9'", {"args": [(0, "s", "\u00e9".encode())]}),
]  # fmt: skip

REFUSED = [
    ("x", "Match rule has a key with no subsequent '=' character"),
    ("type", "Match rule has a key with no subsequent '=' character"),
    ("type='signal", "Unbalanced quotation marks in match rule"),
    ("type='nope'", "Invalid message type (nope) in match rule\n"),
    ("type=''", "Invalid message type () in match rule\n"),
    ("type='signal',type='error'", "Key type specified twice in match rule\n"),
    ("sender='x'", "Sender name 'x' is invalid\n"),
    ("destination=''", "Destination name '' is invalid\n"),
    ("interface='x'", "Interface name 'x' is invalid\n"),
    ("member='a.b'", "Member name 'a.b' is invalid\n"),
    ("path='x'", "Path 'x' is invalid\n"),
    ("path_namespace='/x/'", "Path '/x/' is invalid\n"),
    ("path='/',path_namespace='/a'",
     "path or path_namespace specified twice in match rule\n"),
    ("eavesdrop='yes'",
     "eavesdrop='yes' is invalid, it should be 'true' or 'false'\n"),
    ("arg='x'",
     ("Key 'arg' in match rule starts with 'arg' but lacks an arg number."
      " Should be 'arg0' or 'arg7' for example.\n")),
    ("argx='x'",
     ("Key 'argx' in match rule starts with 'arg' but could not parse arg number."
      " Should be 'arg0' or 'arg7' for example.\n")),
    ("arg64='x'",
     "Key 'arg64' in match rule has arg number 64 but the maximum is 63.\n"),
    ("arg0foo='x'",
     ("Key 'arg0foo' in match rule contains junk after argument number (0)."
      " Only 'arg0path' (for example) or 'arg0namespace' are valid")),
    ("arg0namespace='.a'",
     "arg0namespace='.a' is not a valid prefix of a bus name"),
    ("arg0='a',arg0path='b'",
     "Argument arg0path matched more than once in match rule\n"),
    ("foo='bar'", 'Unknown key "foo" in match rule'),
]  # fmt: skip

# More texts whose verdict is taken from the reference daemon alone.
ODD = [
    "x" * 1024, "x" * 1025, "arg0='" + "x" * 1017 + "'",
    "type='signal',,member='X'", ",", "'", "\\", "=", "type==signal", "type='signal'type='error'",
    "type='sig'nal", "sender=''", "sender=':'", "sender=':1'", "sender=':1..2'", "sender=':.1'",
    "sender=':1.'", "sender='a..b'", "sender='.a.b'", "sender='a.b.'", "sender='a.1b'",
    "sender='a-b.c'", "sender='-a.b'", "sender='a." + "b" * 253 + "'",
    "sender='a." + "b" * 254 + "'",
    "sender='org.freedesktop.DBus'", "interface='a.1'", "interface='a-b.c'", "interface='.a'",
    "interface='a.b.'", "member='1a'", "member='a-b'", "member=''", "member='" + "m" * 256 + "'",
    "path=''", "path='//'", "path='/a/'", "path='/a-b'", "path_namespace='/'", "path='/',path='/'",
    "arg1namespace='a.b'", "arg00namespace='a.b'", "arg0namespace=''", "arg0namespace='a'",
    "arg0namespace=':1.2'", "arg0namespace='a.b.'", "arg0namespace='1a'", "arg-1='x'", "arg-0='x'",
    "arg-18446744073709551615='x'", "arg18446744073709551616='x'", "arg18446744073709551615='x'",
    "arg08='x'", "arg0x='x'", "arg63path='x'", "arg64path='x'", "arg0xpath='x'", "arg1path",
    "arg\v1='x'", "arg\f+2='x'", "arg++1='x'", "ARG0='x'", "Type='signal'", "arg0='x',arg0='x'",
    "arg1='x',arg0x1='x'", "argument='x'", "arg='x'", "arg0 ='x'", "arg 0='x'", "arg0\u00e9='x'",
    "\u00e9='x'", "type='\u00e9'", "sender='\u00e9.b'",
    ",".join(f"arg{i}='x'" for i in range(16)), ",".join(f"arg{i}='x'" for i in range(17)),
    ",".join(f"arg{i}='x'" for i in range(16)) + ",nonsense", "eavesdrop=''", "eavesdrop='TRUE'",
    "type='signal',sender='a.b',interface='a.b',member='M',path='/a',destination=':1.9'",
]  # fmt: skip


NAMES = (
    "type", "sender", "interface", "member", "path", "path_namespace", "destination", "eavesdrop",
)  # fmt: skip


def fields(text: str) -> dict[str, Any]:
    rule = matchrule.parse(text.encode())
    found = {name: getattr(rule, name) for name in NAMES if getattr(rule, name)}
    if rule.args:
        found["args"] = [(arg.index, chr(arg.kind), arg.text) for arg in rule.args]
    return found


@pytest.mark.parametrize(("text", "expected"), READ)
def test_read(text: str, expected: dict[str, Any] | None) -> None:
    if expected is None:
        with pytest.raises(DBusError):
            matchrule.parse(text.encode())
    else:
        assert fields(text) == expected


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(DBusError) as caught:
        matchrule.parse(text.encode())
    assert (caught.value.name, caught.value.text) == (MATCH_RULE_INVALID, words)


def test_too_long() -> None:
    with pytest.raises(DBusError) as caught:
        matchrule.parse(b"x" * 1025)
    assert caught.value.name == LIMITS_EXCEEDED
    assert caught.value.text == "Match rule text is 1025 bytes, maximum is 1024"


@pytest.mark.parametrize("text", [text for text, expected in READ if expected is not None])
def test_format_reads_back_as_the_same_rule(text: str) -> None:
    again = matchrule.format(matchrule.parse(text.encode()))
    assert fields(again) == fields(text)


def test_format() -> None:
    rule = matchrule.parse(
        b"arg2='it'\\''s',arg0path=/x,destination=a.b,path_namespace=/p,"
        b"sender=:1.2,member=M,interface=i.f,eavesdrop=true,type=signal"
    )
    assert matchrule.format(rule) == (
        "type='signal',interface='i.f',member='M',path_namespace='/p',sender=':1.2',"
        "destination='a.b',eavesdrop='true',arg0path='/x',arg2='it'\\''s'"
    )


PIECES = [
    "type", "signal", "sender", "interface", "member", "path", "path_namespace", "destination",
    "eavesdrop", "true", "arg", "arg0", "arg5", "arg05", "arg63", "arg64", "arg0path", "arg12path",
    "arg0namespace", "arg1namespace", "a.b", ":1.5", "M", "/", "/a/b", "x", " ", "\t", "\\", "\\'",
]  # fmt: skip
PAIR = st.builds(
    "{}={}{}{}".format,
    st.sampled_from(PIECES),
    st.sampled_from(["", "'", "'", "'"]),
    st.sampled_from(PIECES),
    st.sampled_from(["", "'", "'", "'"]),
)
JUNK = st.lists(st.sampled_from([*PIECES, "=", "'", ",", ", "])).map("".join)
TEXTS = st.lists(PAIR | JUNK, max_size=18).map(",".join) | JUNK


@settings(max_examples=2000 if COMPILED else 500, deadline=None)
@given(TEXTS)
def test_the_short_way_agrees_with_the_long_one(text: str) -> None:
    short = matchrule.plain(text.encode())
    if short is not None:
        long = matchrule.thorough(text.encode())
        assert short.same_as(long)
        assert short.content() == long.content()
        assert matchrule.format(short) == matchrule.format(long)


@pytest.mark.parametrize(
    "text",
    [
        "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus'",
        "member='NameOwnerChanged',path='/org/freedesktop/DBus',arg0='com.example.Name'",
        "type='signal',path_namespace='/a',arg0namespace='com.example', arg1path='/x/'",
        "type=signal,member=M",
        "type='method_call',destination='a.b'",
        "",
    ],
)
def test_what_libraries_write_goes_the_short_way(text: str) -> None:
    assert matchrule.plain(text.encode()) is not None


@pytest.mark.skipif(buses.REFERENCE is None, reason="no dbus-daemon to compare with")
def test_same_verdict_and_words_as_dbus_daemon() -> None:
    """All the texts above are sent to the real daemon; verdict, words and listing must agree."""
    assert buses.REFERENCE is not None
    texts = [text for text, _ in READ] + [text for text, _ in REFUSED] + ODD
    with buses.running([buses.REFERENCE]) as daemon, RawClient(daemon.address) as client:
        client.hello()
        differences = []
        for text in texts:
            theirs = verdict_of_the_daemon(client, text)
            try:
                ours = ("accepted", matchrule.format(matchrule.parse(text.encode())))
            except DBusError as error:
                ours = (error.name, error.text)
            if ours != theirs:
                differences.append((text, ours, theirs))
        assert not differences


def verdict_of_the_daemon(client: RawClient, text: str) -> tuple[str, str]:
    """("accepted", the rule as listed), or error name and text."""
    reply = client.reply_to(client.driver(b"AddMatch", "s", text))
    if reply.error_name:
        return reply.error_name, reply.body[0]
    stats = b"org.freedesktop.DBus.Debug.Stats"
    listed = client.reply_to(client.driver(b"GetAllMatchRules", interface=stats))
    client.reply_to(client.driver(b"RemoveMatch", "s", text))
    (rule,) = listed.body[0][client.unique_name]
    return "accepted", rule
