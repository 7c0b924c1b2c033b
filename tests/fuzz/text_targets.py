"""Targets that read text: addresses, match rules, service files, command lines, configurations.

Invariant: see `registry`. Where there is another reader of the same text (libdbus, shlex, a second
way of our own), both must agree.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shlex
from functools import cache
from typing import Any

from jitney.broker.policy import PolicySet
from jitney.broker.policy import make_rule as core_rule
from jitney.compat import address, check_config, matchrule
from jitney.compat.activation import desktop, shell
from jitney.compat.config import ConfigError, loader
from jitney.compat.config import xml as config_xml
from jitney.compat.config.plain import pack, unpack
from jitney.compat.config.render import rule_xml
from jitney.compat.errors import DBusError
from jitney.kdbus import matches

from .registry import target


class _Error(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("message", ctypes.c_char_p),
        ("bits", ctypes.c_uint),
        ("padding", ctypes.c_void_p),
    ]


@cache
def libdbus() -> Any:
    """The reference implementation's library, or None."""
    try:
        library = ctypes.CDLL(ctypes.util.find_library("dbus-1") or "libdbus-1.so.3")
    except OSError:
        return None
    library.dbus_address_entry_get_method.restype = ctypes.c_char_p
    library.dbus_address_entry_get_value.restype = ctypes.c_char_p
    library.dbus_message_demarshal.restype = ctypes.c_void_p
    library.dbus_message_demarshal.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]
    library.dbus_message_unref.argtypes = [ctypes.c_void_p]
    return library


# ---- addresses


def _reference(library: Any, text: bytes) -> list[tuple[str, str | None]] | str:
    """What libdbus makes of an address: (method, value of "path") of each entry, or the error."""
    error = _Error()
    library.dbus_error_init(ctypes.byref(error))
    entries = ctypes.POINTER(ctypes.c_void_p)()
    count = ctypes.c_int()
    if not library.dbus_parse_address(
        text, ctypes.byref(entries), ctypes.byref(count), ctypes.byref(error)
    ):
        message = os.fsdecode(error.message or b"").rstrip("\n")
        library.dbus_error_free(ctypes.byref(error))
        return message
    found = []
    for at in range(count.value):
        entry = ctypes.c_void_p(entries[at])
        value = library.dbus_address_entry_get_value(entry, b"path")
        method = library.dbus_address_entry_get_method(entry)
        found.append((os.fsdecode(method), None if value is None else os.fsdecode(value)))
    library.dbus_address_entries_free(entries)
    return found


@target("address", 300, (b"unix:path=", b"guid=", b"tcp:host=", b",port=", b"%2f", b";", b"%00"))
def parse_address(data: bytes) -> None:
    text = os.fsdecode(data)
    ours: list[tuple[str, str | None]] | str
    try:
        entries = address.parse(text)
        ours = [(entry.method, entry.get("path")) for entry in entries]
    except DBusError as error:
        ours = error.text
    else:
        for entry in entries:
            for key, value in entry.params.items():
                assert address.unescape(address.escape(value)) == value, (key, value)
    library = libdbus()
    # What libdbus quotes of bytes that are no text is its own business.
    if library is not None and b"\0" not in data and data.isascii():
        assert ours == _reference(library, data), "not the address that libdbus reads"


# ---- match rules

_RULE_WORDS = (
    b"type='signal'", b"sender='", b"interface='", b"member='", b"path='", b"path_namespace='",
    b"destination='", b"eavesdrop='true'", b"arg0='", b"arg0path='", b"arg0namespace='", b"arg63=",
    b"arg0x1f=", b"'\\''", b",", b"org.freedesktop.DBus", b":1.5",
)  # fmt: skip


def _said(rule: Any) -> tuple[Any, ...]:
    return (
        rule.type, rule.sender, rule.interface, rule.member, rule.path, rule.path_namespace,
        rule.destination, rule.eavesdrop, [(arg.index, arg.kind, arg.text) for arg in rule.args],
    )  # fmt: skip


@target("matchrule", 1200, _RULE_WORDS)
def parse_rule(data: bytes) -> None:
    quick = matchrule.plain(data)
    try:
        rule = matchrule.thorough(data)
    except DBusError:
        assert quick is None, "plain() takes what thorough() refuses"
        return
    if quick is not None:
        assert _said(quick) == _said(rule)
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    again = matchrule.format(rule).encode()
    if len(again) <= matchrule.MAX_LENGTH:
        assert _said(matchrule.parse(again)) == _said(rule), again
    for match in matches.of_rule(rule):
        matches.rule_of(match)


# ---- service files

_SERVICE_WORDS = (
    b"[D-BUS Service]\n", b"Name=", b"Exec=", b"User=root\n", b"SystemdService=", b"\\s", b"\\n",
    b"AssumedAppArmorLabel=", b"Name[de]=", b"\r\n", b"# ",
)  # fmt: skip


@target("service", 2048, _SERVICE_WORDS)
def service_file(data: bytes) -> None:
    try:
        groups = desktop.parse(data)
    except desktop.DesktopFileError:
        return
    for name, group in groups.items():
        for key, value in group.items():
            assert "\0" not in name + key + value
    try:
        service = desktop.service_file(data)
    except desktop.DesktopFileError:
        return
    split(service.exec.encode())


@target("exec", 512, (b'"', b"'", b"\\", b"\\\n", b"#", b"/bin/true", b" ", b"$"))
def split(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    try:
        arguments = shell.split(text)
    except DBusError:
        arguments = []
    else:
        assert arguments
        quoted = " ".join(shlex.quote(argument) for argument in arguments)
        assert shell.split(quoted) == arguments, quoted
    # Python's own reading of the shell's quotes differs in these, and in its blanks.
    if any(letter in text for letter in "\\#\n\r\v\f"):
        return
    try:
        expected = shlex.split(text)
    except ValueError:
        assert not arguments
        return
    # What stands after the last blank is an argument for libdbus, even if it is nothing.
    assert arguments in (expected, [*expected, ""]), (arguments, expected)


# ---- configurations

_XML_WORDS = (
    b"<busconfig>", b"</busconfig>", b"<policy context='default'>", b"</policy>", b"<allow ",
    b"<deny ", b"send_destination='", b"send_interface='", b"receive_sender='", b"own='",
    b"own_prefix='",
    b"send_destination_prefix='", b"send_type='", b"eavesdrop='true'", b"user='", b"group='", b"/>",
    b"<limit name='", b"max_message_size", b"</limit>", b"<listen>", b"<include ", b"<includedir>",
    b"<!DOCTYPE a [", b"<!ENTITY a '", b"&a;", b"&lt;", b"<apparmor mode='", b"<associate own='",
    b"<selinux>", b"min_fds='", b"log='true'", b"send_broadcast='", b"requested_reply='", b"\n%%\n",
)  # fmt: skip
_SEPARATOR = b"\n%%\n"
"""Between the main file and those that it may include as 1.conf, 2.conf ..."""


class _Files:
    """In place of the file system, for as long as one case lasts."""

    def __init__(self, data: bytes) -> None:
        parts = data.split(_SEPARATOR)
        self.files = {f"{i or 'main'}.conf": part for i, part in enumerate(parts)}

    def read(self, path: str, line: int, by: str) -> bytes:
        data = self.files.get(os.path.basename(path))
        if data is None:
            raise ConfigError(by, line, f'Failed to open "{path}": no', missing=True)
        return data

    def __enter__(self) -> None:
        self.real = loader.read_file, loader.os.listdir
        loader.read_file = check_config.read_file = self.read
        loader.os = _NoFolders(self.files)  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        loader.read_file = check_config.read_file = self.real[0]
        loader.os = os


class _NoFolders:
    """The module os, with one folder that has the files of the case."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def listdir(self, path: str) -> list[str]:
        if not path.endswith("d"):
            raise FileNotFoundError(path)
        return [name for name in self.files if name != "main.conf"]

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@target("busconfig", 8192, _XML_WORDS, short=500)
def busconfig(data: bytes) -> None:
    with _Files(data):
        try:
            config = loader.load("/x/main.conf", environ={}, create_dirs=False, whole=False)
        except ConfigError:
            return
    plain = unpack(pack(config))
    spec = list(plain.policy_spec())
    PolicySet(iter(spec)).client(1000, [1000], False)
    plain.limits()
    for _, _, _, arguments in spec:
        rule = core_rule(arguments)
        _same_rule(rule, rule_xml(rule))


def _same_rule(rule: Any, text: str) -> None:
    """What is rendered is read as the same rule."""
    with _Files(f"<busconfig><policy context='default'>{text}</policy></busconfig>".encode()):
        config = loader.load("/x/main.conf", environ={}, create_dirs=False, whole=False)
    ((_, _, _, arguments),) = list(unpack(pack(config)).policy_spec())
    again = core_rule(arguments)
    assert type(again) is type(rule)
    for name in type(rule).__slots__ if hasattr(type(rule), "__slots__") else vars(rule):
        if name not in ("file", "line"):
            assert getattr(again, name) == getattr(rule, name), (text, name)


@target("checkconfig", 8192, _XML_WORDS, short=500)
def lint(data: bytes) -> None:
    with _Files(data):
        found = check_config.check("/x/main.conf")
    for finding in found:
        check_config._shown(finding)


@target("xml", 4096, (*_XML_WORDS[:2], b"<!DOCTYPE a [", b"<!ENTITY a '", b"&a;", b"]>"))
def xml(data: bytes) -> None:
    sink = _Counting()
    try:
        config_xml.parse(data, "x", sink)
    except ConfigError:
        pass
    # Nothing may expand to much more than a file may be long.
    assert sink.size <= config_xml.MAX_SIZE + len(data)


class _Counting:
    def __init__(self) -> None:
        self.size = 0

    def start(self, name: str, attributes: dict[str, str], line: int) -> None:
        self.size += sum(len(value) for value in attributes.values())

    def text(self, text: str, line: int) -> None:
        self.size += len(text)

    def end(self, name: str) -> None:
        pass

    def skipped(self, name: str, line: int) -> None:
        pass
