"""Scenarios about messages between clients: match rules, calls and replies, headers, descriptors.

Invariant: as in scenarios_names.
"""

from __future__ import annotations

import os
from typing import Any

from rawclient import build

from .script import DRIVER, DRIVER_PATH, PEER, STATS, Stage, scenario, unordered

RULES = [
    "", "type='signal'", "type='method_call'", "type='error'",
    "sender='rules.emitter'", "sender='rules.other'", "sender='org.freedesktop.DBus'",
    "interface='a.b'", "interface='a.bc'", "member='One'", "member='Two'",
    "interface='a.b',member='One'", "interface='a.b',member='Two',path='/a/b'",
    "path='/'", "path='/a'", "path='/a/b'", "path_namespace='/'", "path_namespace='/a'",
    "path_namespace='/a/b'", "path_namespace='/ab'", "destination='rules.emitter'",
    "arg0='x'", "arg0=''", "arg1='x'", "arg2='third'", "arg5='x'", "arg63='last'", "arg0='/a/b'",
    "arg0path='/a/'", "arg0path='/a/b'", "arg0path='/'", "arg0path='/a'", "arg0path='x'",
    "arg0path=''", "arg1path='/a/'", "arg0namespace='com.example'", "arg0namespace='com'",
    "arg0namespace='com.example.x'", "arg0='x',arg1='y'", "arg0='x',member='Two'",
    "type='signal',interface='a.b',member='One',path='/a/b',arg0='x',sender='rules.emitter'",
    "arg0='it'\\''s'", "arg0='com.example'", "eavesdrop='true',arg0='x'", "arg0='ä'",
]  # fmt: skip

BODIES: list[tuple[str, list[Any]]] = [
    ("", []), ("s", ["x"]), ("s", [""]), ("ss", ["x", "y"]), ("ss", ["y", "x"]), ("u", [1]),
    ("us", [1, "x"]), ("s", ["/a/b"]), ("o", ["/a/b"]), ("o", ["/"]), ("s", ["/a/"]), ("s", ["/a"]),
    ("o", ["/a/b/c"]), ("s", ["/a/b/c"]), ("s", ["com"]), ("s", ["com.example"]),
    ("s", ["com.example.x"]), ("s", ["com.example.x.y"]), ("s", ["com.examples"]), ("s", ["it's"]),
    ("as", [["x"]]), ("v", [("s", "x")]), ("(s)s", [("x",), "x"]), ("g", ["x"]),
    ("ays", [b"x", "x"]),
    ("a{sv}ss", [{"x": ("s", "x")}, "x", "third"]), ("s" * 64, [""] * 63 + ["last"]),
    ("s" * 65, [""] * 64 + ["last"]), ("u" * 63 + "s", [0] * 63 + ["last"]), ("s", ["ä"]),
]  # fmt: skip


@scenario()
def match_rules(stage: Stage) -> None:
    """Every rule has a client of its own, and every signal is sent to all of them."""
    emitter = stage.client("emitter")
    emitter.driver("RequestName", "su", "rules.emitter", 0)
    for number, rule in enumerate(RULES):
        client = stage.client(f"r{number}")
        client.driver("AddMatch", "s", rule)
    for signature, values in BODIES:
        emitter.message(
            4, f"signal {signature} {values}", destination=None, path=b"/a/b", interface=b"a.b",
            member=b"One", signature=signature, values=values, big_endian=len(values) == 2,
        )  # fmt: skip
    for path in (b"/", b"/a", b"/a/b/c", b"/ab", b"/abc/b"):
        for interface in (b"a.b", b"a.bc", b"c.d"):
            for member in (b"One", b"Two"):
                emitter.message(
                    4, f"{path.decode()} {interface.decode()} {member.decode()}", destination=None,
                    path=path, interface=interface, member=member,
                )  # fmt: skip
    emitter.driver("ReleaseName", "s", "rules.emitter")
    emitter.message(4, "nameless", destination=None, path=b"/a/b", interface=b"a.b", member=b"One")


@scenario()
def match_rules_come_and_go(stage: Stage) -> None:
    emitter, client = stage.client("emitter"), stage.client("client")

    def emit(member: bytes = b"One", **given: Any) -> None:
        given.setdefault("destination", None)
        emitter.message(4, path=b"/a", interface=b"a.b", member=member, **given)

    client.driver("AddMatch", "s", "interface='a.b'")
    client.driver("AddMatch", "s", "interface=a.b")
    client.driver("AddMatch", "s", "member='One'")
    emit()
    client.driver("RemoveMatch", "s", "interface='a.b'")
    emit()
    emit(b"Two")
    client.driver("RemoveMatch", "s", "interface='a.b'")
    emit(b"Two")
    client.driver("RemoveMatch", "s", "interface='a.b'")
    client.driver("RemoveMatch", "s", "member='One',eavesdrop='true'")
    client.driver("RemoveMatch", "s", "nonsense")
    client.driver("RemoveMatch", "s", "member='One',eavesdrop='false'")
    emit()
    # Directed signals need no rule, and no rule but an eavesdropper's gets them for others.
    emit(destination=client.unique)
    client.driver("AddMatch", "s", "type='signal',interface='a.b'")
    emit(destination=client.unique)
    emit(destination=emitter.unique)
    # The names in rules are those that the sender has now.
    client.driver("RemoveMatch", "s", "interface='a.b',type='signal'")
    client.driver("AddMatch", "s", "sender='moves.around'")
    emit()
    emitter.driver("RequestName", "su", "moves.around", 1)
    emit()
    client.driver("RequestName", "su", "moves.around", 2)
    emit()
    client.message(4, "own signal", destination=None, path=b"/", interface=b"x.y", member=b"Z")
    client.driver("ReleaseName", "s", "moves.around")
    emit()
    # Queued for a name is not owning it; a unique name is one as well.
    client.driver("AddMatch", "s", f"sender='{emitter.raw.unique_name}',member='Unique'")
    emit(b"Unique")
    # dbus-daemon forgets rules about those who leave only if they had rules themselves.
    emitter.driver("AddMatch", "s", "member='Nothing'")
    emitter.close()
    client.driver("GetAllMatchRules", interface=STATS, mask=unordered)


@scenario()
def name_signals_by_rule(stage: Stage) -> None:
    rules = (
        "member='NameOwnerChanged',arg0='watched.name'", "arg0namespace='watched'",
        "sender='org.freedesktop.DBus',arg2=''", "sender='org.freedesktop.DBus',path='/'",
        "path='/org/freedesktop/DBus',member='NameAcquired'", "member='NameLost',eavesdrop='true'",
        "arg1=''", "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus'",
    )  # fmt: skip
    for number, rule in enumerate(rules):
        stage.client(f"r{number}").driver("AddMatch", "s", rule)
    owner, other = stage.client("owner"), stage.client("other")
    for name in ("watched.name", "watched", "watched.other.name", "unwatched.name"):
        owner.driver("RequestName", "su", name, 1)
        other.driver("RequestName", "su", name, 2)
        other.driver("ReleaseName", "s", name)
    owner.close()


CALL: dict[str, Any] = {"path": b"/a", "interface": b"a.b", "member": b"Call"}


@scenario()
def calls_and_replies(stage: Stage) -> None:
    server, client, third = (stage.client(name) for name in ("server", "client", "third"))
    server.driver("RequestName", "su", "calls.server", 0)
    to_server: dict[str, Any] = {"destination": b"calls.server", **CALL}

    serial = client.message(1, signature="s", values=["question"], **to_server)
    back: dict[str, Any] = {"destination": client.unique, "reply_serial": serial}
    third.message(2, "reply of a stranger", **back)
    server.message(2, "reply", signature="s", values=["answer"], **back)
    server.message(2, "second reply", **back)
    server.message(3, "late error", error_name=b"a.b.Late", **back)

    serial = client.message(1, destination=server.unique, **CALL)
    back["reply_serial"] = serial
    server.message(3, "error", error_name=b"a.b.Error", signature="s", values=["no"], **back)

    serial = client.message(1, "wants no reply", flags=1, **to_server)
    back["reply_serial"] = serial
    server.message(2, "unwanted reply", **back)

    client.message(2, "reply to nothing", destination=server.unique, reply_serial=4711)
    client.message(3, "error to nothing", destination=server.unique, reply_serial=4711,
                   error_name=b"a.b.E")  # fmt: skip
    client.message(1, "to itself", destination=client.unique, **CALL)
    client.message(2, "answers itself", destination=client.unique, reply_serial=client.raw.serial)
    client.message(1, "all flags", flags=6, **to_server)
    client.message(1, "unknown flags", flags=0xF0, **to_server)
    client.message(1, "no interface", destination=server.unique, path=b"/", member=b"M")
    client.message(1, "with an error name", error_name=b"a.b.E", reply_serial=3, **to_server)
    client.message(5, "unknown type", **to_server)
    client.message(255, "unknown type", **to_server)
    client.message(5, "unknown type to the bus", **CALL)
    client.message(5, "unknown type to nobody", destination=None, **CALL)


@scenario()
def same_serial_twice(stage: Stage) -> None:
    server, client = stage.client("server"), stage.client("client")
    for _ in range(2):
        client.message(1, serial=1000, destination=server.unique, **CALL)
    server.message(2, "reply", destination=client.unique, reply_serial=1000)
    server.message(2, "reply", destination=client.unique, reply_serial=1000)


@scenario()
def missing_names(stage: Stage) -> None:
    client = stage.client("client")
    for destination in (b"no.body", b":1.4711", b":9.9", b":x", b"org.freedesktop.DBus.Local"):
        for flags in (0, 1, 2, 3):
            given: dict[str, Any] = {"destination": destination, "flags": flags}
            client.message(1, f"call {given}", **CALL, **given)
            client.message(4, f"signal {given}", **CALL, **given)
            client.message(2, f"return {given}", reply_serial=5, **given)
            client.message(3, f"error {given}", reply_serial=5, error_name=b"a.b.E", **given)
    gone = stage.client("gone")
    gone.close()
    client.message(1, destination=gone.unique, **CALL)


@scenario()
def to_nobody_and_to_the_bus(stage: Stage) -> None:
    client = stage.client("client")
    client.driver("AddMatch", "s", "")
    for destination in (None, DRIVER):
        to: dict[str, Any] = {"destination": destination}
        client.message(1, f"call {to}", **CALL, **to)
        client.message(1, f"quiet call {to}", flags=1, **CALL, **to)
        client.message(2, f"return {to}", reply_serial=5, **to)
        client.message(3, f"error {to}", reply_serial=5, error_name=b"a.b.E", **to)
        client.message(4, f"signal {to}", **CALL, **to)
        for member in (b"Ping", b"GetMachineId", b"Nonsense"):
            given: dict[str, Any] = {"path": b"/x", "member": member, **to}
            client.message(1, f"peer {given}", interface=PEER, **given)
            client.message(1, f"quiet peer {given}", interface=PEER, flags=1, **given)
            client.message(1, f"without interface {given}", **given)
    client.message(4, "NameOwnerChanged by a client", destination=None, path=DRIVER_PATH,
                   interface=DRIVER, member=b"NameOwnerChanged", signature="sss",
                   values=["a.b", "", ":1.1"])  # fmt: skip


@scenario()
def big_endian(stage: Stage) -> None:
    server, client = stage.client("server"), stage.client("client")
    big: dict[str, Any] = {"big_endian": True}
    server.driver("AddMatch", "s", "arg0='x',arg1='/y'", **big)
    server.driver("RequestName", "su", "big.server", 4, **big)
    values = ["x", "/y", 7, {"k": ("ai", [1, 2])}]
    for order in (True, False):
        given: dict[str, Any] = {"signature": "soua{sv}", "values": values, "big_endian": order}
        serial = client.message(1, destination=b"big.server", **CALL, **given)
        server.message(2, "reply", destination=client.unique, reply_serial=serial, **given)
        client.message(4, "broadcast", destination=None, **CALL, **given)
        client.message(1, destination=b"no.body", **CALL, **given)
        client.message(1, sender=b"org.evil", destination=server.unique, **CALL, **given)
        client.message(
            1, "strange", unknown=[(200, "(us)", (1, "x"))], destination=server.unique, **CALL,
            **given,
        )  # fmt: skip


@scenario()
def headers(stage: Stage) -> None:
    server, client = stage.client("server"), stage.client("client")
    to_server: dict[str, Any] = {"destination": server.unique, **CALL}
    for sender in (b"org.evil", server.unique, client.unique, DRIVER, b":1.4711"):
        client.message(1, f"sent as {sender.decode()}", sender=sender, **to_server)
        client.driver("GetId")
    for unknown in (
        [(10, "o", "/container")], [(77, "s", "x")], [(255, "v", ("s", "x"))],
        [(77, "ay", b"x" * 300), (78, "a{sv}", {"a": ("u", 1)}), (77, "s", "twice")],
    ):  # fmt: skip
        client.message(1, f"with {unknown}", unknown=unknown, **to_server)
        client.message(4, f"with {unknown}", unknown=unknown, **to_server)
        client.message(1, f"to the bus with {unknown}", unknown=unknown, path=b"/", member=b"GetId")
    # The order of fields is free.
    fields: list[tuple[int, str, Any]] = [
        (6, "s", server.unique), (7, "s", b"org.evil"), (3, "s", b"M"), (99, "y", 1),
        (1, "o", b"/"),
    ]  # fmt: skip
    client.send("mixed fields", build(1, 500, fields))
    client.send("mixed fields", build(1, 501, fields[::-1], "s", ["x"]))


@scenario()
def invalid_messages(stage: Stage) -> None:
    """Each costs its sender the connection; nobody else notices more than that."""
    watcher = stage.client("watcher")
    watcher.driver("AddMatch", "s", "type='signal',interface='a.b'")
    member, path, interface = (3, "s", b"M"), (1, "o", b"/"), (2, "s", b"a.b")
    to_bus = (6, "s", DRIVER)
    call = [path, member, to_bus]
    good = build(1, 5, call)
    cases = {
        "no path": build(1, 5, [member, to_bus]),
        "no member": build(1, 5, [path, to_bus]),
        "signal without interface": build(4, 5, [path, member]),
        "return without serial": build(2, 5, [to_bus]),
        "error without name": build(3, 5, [(5, "u", 7), to_bus]),
        "type 0": build(0, 5, call),
        "serial 0": build(1, 0, call),
        "version 0": build(1, 5, call, version=0),
        "version 2": build(1, 5, call, version=2),
        "bad byte order": b"x" + good[1:],
        "reply serial 0": build(2, 5, [(5, "u", 0), to_bus]),
        "field 0": build(1, 5, [*call, (0, "s", "x")]),
        "path of wrong type": build(1, 5, [(1, "s", "/"), member, to_bus]),
        "member of wrong type": build(1, 5, [path, (3, "o", "/"), to_bus]),
        "bad member": build(1, 5, [path, (3, "s", "a.b"), to_bus]),
        "empty member": build(1, 5, [path, (3, "s", ""), to_bus]),
        "bad interface": build(1, 5, [*call, (2, "s", "a")]),
        "bad destination": build(1, 5, [path, member, (6, "s", "a")]),
        "bad sender": build(1, 5, [*call, (7, "s", "a")]),
        "bad error name": build(1, 5, [*call, (4, "s", "a")]),
        "path twice": build(1, 5, [path, *call]),
        "local interface": build(4, 5, [path, member, (2, "s", b"org.freedesktop.DBus.Local")]),
        "local path": build(4, 5, [(1, "o", b"/org/freedesktop/DBus/Local"), member, interface]),
        "body without signature": build(1, 5, call, body=b"x"),
        "signature without body": build(1, 5, call, "s", body=b""),
        "bad string": build(1, 5, call, "s", body=b"\1\0\0\0\xff\0"),
        "NUL in a string": build(1, 5, call, "s", body=b"\1\0\0\0\0\0"),
        "string not ended": build(1, 5, call, "s", body=b"\1\0\0\0xx"),
        "body too long": build(1, 5, call, "s", body=b"\1\0\0\0x\0\0"),
        "bad boolean": build(1, 5, call, "b", body=b"\2\0\0\0"),
        "bad padding": build(1, 5, call, "yu", body=b"\1\1\0\0\1\0\0\0"),
        "bad variant": build(1, 5, call, "v", body=b"\2ss\0"),
        "bad path in the body": build(1, 5, call, "o", body=b"\1\0\0\0x\0"),
        "array too long": build(1, 5, call, "ay", body=b"\5\0\0\0x"),
        "fds that are not there": build(1, 5, [*call, (9, "u", 1)]),
        "huge message": good[:4] + b"\0\0\0\x10" + good[8:],
    }
    for number, (what, data) in enumerate(cases.items()):
        stage.client(f"c{number}").send(what, data)
    watcher.driver("GetId")


@scenario()
def odd_but_valid_messages(stage: Stage) -> None:
    """These are none of the above: the bus takes them."""
    client = stage.client("client")
    path, member, to_bus = (1, "o", b"/"), (3, "s", b"GetId"), (6, "s", DRIVER)
    call = [path, member, to_bus]
    cases = {
        "highest serial": build(1, 0x6FFFFFFF, call),
        "no fds, said so": build(1, 5, [*call, (9, "u", 0)]),
        "reply serial in a call": build(1, 6, [*call, (5, "u", 9)]),
        "error name in a call": build(1, 7, [*call, (4, "s", b"a.b")]),
        "empty signature": build(1, 8, [*call, (8, "g", "")]),
        "all flags": build(1, 9, call, flags=0xFE),
        "unknown field of a container type": build(
            1, 10, [*call, (50, "a(sv)", [("a", ("u", 1))])]
        ),
    }
    for what, data in cases.items():
        client.send(what, data)


@scenario()
def pending_calls_of_those_who_leave(stage: Stage) -> None:
    server, client, other = (stage.client(name) for name in ("server", "client", "other"))
    server.driver("RequestName", "su", "leaves.name", 0)
    for _ in range(3):
        client.message(1, destination=b"leaves.name", **CALL)
    client.message(1, flags=1, destination=b"leaves.name", **CALL)
    serial = other.message(1, destination=client.unique, **CALL)
    client.message(2, "answers one", destination=other.unique, reply_serial=serial)
    other.message(1, destination=server.unique, **CALL)
    server.close()
    serial = other.message(1, destination=client.unique, **CALL)
    other.close()
    client.message(2, "answers nobody", destination=other.unique, reply_serial=serial)


@scenario()
def descriptors(stage: Stage) -> None:
    rich, poor = stage.client("rich"), stage.client("poor", fds=False)
    third = stage.client("third")
    third.driver("AddMatch", "s", "interface='a.b'")
    poor.driver("AddMatch", "s", "interface='a.b'")
    with open(os.devnull) as file:
        fd = file.fileno()
        for count in (1, 2, 16):
            given: dict[str, Any] = {
                "fds": [fd] * count, "signature": "ah", "values": [list(range(count))], **CALL,
            }  # fmt: skip
            rich.message(1, f"{count} fds", destination=third.unique, **given)
            rich.message(1, f"{count} fds to poor", destination=poor.unique, **given)
            rich.message(4, f"{count} fds for all", destination=None, **given)
            rich.message(1, f"{count} fds to the bus", destination=DRIVER, **given)
            rich.message(1, f"{count} fds to nobody", destination=b"no.body", **given)
        rich.message(1, "unused fd", destination=third.unique, fds=[fd], **CALL)
        serial = third.message(1, destination=rich.unique, **CALL)
        rich.message(2, "fd in reply", destination=third.unique, reply_serial=serial, fds=[fd])
        rich.message(1, "17 fds", destination=third.unique, fds=[fd] * 17, **CALL)


@scenario(extra='<limit name="max_replies_per_connection">3</limit>')
def limit_of_replies(stage: Stage) -> None:
    server, client = stage.client("server"), stage.client("client")
    serials = [client.message(1, destination=server.unique, **CALL) for _ in range(5)]
    client.message(1, flags=1, destination=server.unique, **CALL)
    server.message(2, "reply", destination=client.unique, reply_serial=serials[0])
    client.message(1, destination=server.unique, **CALL)
    client.message(1, destination=server.unique, **CALL)


@scenario(extra='<limit name="max_message_size">1024</limit>')
def limit_of_message_size(stage: Stage) -> None:
    server, client = stage.client("server"), stage.client("client")
    small: dict[str, Any] = {"signature": "ay", "values": [bytes(500)], **CALL}
    client.message(1, "small", destination=server.unique, **small)
    client.message(1, "large", destination=server.unique, **(small | {"values": [bytes(1024)]}))
    server.driver("GetId")
