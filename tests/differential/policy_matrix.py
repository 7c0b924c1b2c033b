"""Who may say what to whom under the packages' own policy files: asked of a bus, call by call.

Invariant: what is asked is derived from the files alone, so that two buses with the same files are
asked the same, in the same order; and every answer has been read when `play()` returns. Names are
owned by stand-ins that answer every call they get.

How a client knows that nothing more comes: the bus answers in order, so what it says about a
message stands before its answer to a later GetId.
"""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from differential.masks import masked
from rawclient import RawClient, Received

from jitney.compat import ways, wire

BATCH = 100
"""Calls on their way at once; a caller may wait for 128 answers."""

DO_NOT_QUEUE = 4
NOBODY = 65534
_UNIQUE = re.compile(r":\d+\.\d+")

Call = tuple[str, str, str | None, str]
"""Destination, path, interface and member."""

# What everything on a bus is asked for, whatever its policy says of it.
COMMON: tuple[tuple[str | None, str], ...] = (
    (None, "Get"),
    ("org.freedesktop.DBus.Properties", "Get"),
    ("org.freedesktop.DBus.Properties", "Set"),
    ("org.freedesktop.DBus.Properties", "GetAll"),
    ("org.freedesktop.DBus.Introspectable", "Introspect"),
    ("org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
    ("org.freedesktop.DBus.Peer", "Ping"),
    ("org.example.Nothing", "Nothing"),
)


@dataclass(frozen=True)
class Who:
    """A user of the bus."""

    name: str
    uid: int
    groups: tuple[int, ...]


@dataclass
class Mentioned:
    """What one policy file mentions."""

    names: list[str] = field(default_factory=list)
    members: list[tuple[str | None, str, str]] = field(default_factory=list)
    """Interface, member and path."""
    users: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


def read(file: Path) -> Mentioned:
    """Reads a policy file. What it says is not understood, only looked through."""
    found = Mentioned()
    for policy in ElementTree.parse(file).getroot().iter("policy"):
        _note(found.users, policy.get("user"))
        _note(found.groups, policy.get("group"))
        for rule in policy:
            _note(found.names, rule.get("own") or rule.get("send_destination"))
            _note(found.names, rule.get("receive_sender"))
            prefix = rule.get("own_prefix") or rule.get("send_destination_prefix")
            _note(found.names, f"{prefix}.Child" if prefix else None)
            interface = rule.get("send_interface")
            path = rule.get("send_path") or "/"
            for member in (rule.get("send_member"), "Nothing"):
                if member and (interface or rule.get("send_member")):
                    call = (interface, member, path)
                    if call not in found.members and "*" not in (interface, member):
                        found.members.append(call)
    return found


def _note(found: list[str], word: str | None) -> None:
    if word and word not in (*found, "*", "org.freedesktop.DBus"):
        found.append(word)


def calls(mentioned: Mentioned) -> Iterator[Call]:
    """All calls that one file gives a reason to ask about."""
    for name in mentioned.names:
        for interface, member, path in mentioned.members:
            yield name, path, interface, member
        for interface, member in COMMON:
            yield name, "/", interface, member


def people(files: Iterable[Mentioned]) -> list[Who]:
    """Root, somebody unknown to all policies, somebody in all groups, and the users they name."""
    users: list[str] = []
    gids: list[int] = []
    for file in files:
        for user in file.users:
            _note(users, user)
        for group in file.groups:
            try:
                gid = grp.getgrnam(group).gr_gid
            except KeyError:
                continue
            if gid not in gids:
                gids.append(gid)
    found = [
        Who("root", 0, (0,)),
        Who("nobody", NOBODY, (NOBODY,)),
    ]
    if ways.LINUX:
        # Else ours takes a user's groups from the user database, as other systems do.
        found.append(Who("member", NOBODY, (NOBODY, *gids)))
    for user in ("messagebus", *users):
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            continue
        if all(who.uid != entry.pw_uid for who in found):
            found.append(Who(user, entry.pw_uid, (entry.pw_gid,)))
    return found


class Hall:
    """A bus with people on it, and a stand-in for each name that one of them may own.

    Each stand-in is a connection of its own: what is denied to one of a connection's names is
    denied to all of them."""

    def __init__(self, address: str, who: Iterable[Who]) -> None:
        self.address = address
        self.who = list(who)
        self.shown: dict[str, str] = {}
        self.callers = {one.name: self._client(one, f"<{one.name}>") for one in self.who}
        self.owners: dict[str, RawClient] = {}

    def _client(self, one: Who, shown: str) -> RawClient:
        client = RawClient(self.address, uid=one.uid, groups=one.groups, timeout=30)
        self.shown[client.hello()] = shown
        return client

    def close(self) -> None:
        for client in (*self.callers.values(), *self.owners.values()):
            client.close()

    def answer(self, message: Received) -> str:
        """What a call came to, without what differs from one bus to the next."""
        if message.type == wire.RETURN:
            return f"{message.signature} {message.body}"
        text = _UNIQUE.sub(lambda found: self.shown.get(found[0], found[0]), str(message.body))
        return f"{message.error_name} {masked(text)}"

    def own(self, name: str) -> Iterator[str]:
        """Everybody asks for a name; the first who may own it gets a stand-in for it."""
        for one in self.who:
            client = self.callers[one.name]
            reply = client.reply_to(client.driver(b"RequestName", "su", name, DO_NOT_QUEUE))
            yield f"{one.name} owns {name}: {self.answer(reply)}"
            if reply.body == [1]:
                client.reply_to(client.driver(b"ReleaseName", "s", name))
                owner = self.owners[name] = self._client(one, f"<owner of {name}>")
                owner.reply_to(owner.driver(b"RequestName", "su", name, DO_NOT_QUEUE))

    def startable(self) -> list[str]:
        """Names that the bus would start a service for."""
        client = self.callers["root"]
        names: list[str] = client.reply_to(client.driver(b"ListActivatableNames")).body[0]
        return names

    def ask(self, one: Who, wanted: list[Call]) -> Iterator[str]:
        """All these calls by one of them, and what came of each."""
        caller = self.callers[one.name]
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start : start + BATCH]
            serials = [_send(caller, call) for call in batch]
            answers = _all_now(caller)
            waiting: dict[str, int] = {}
            for serial, call in zip(serials, batch, strict=True):
                if serial not in answers:
                    waiting[call[0]] = waiting.get(call[0], 0) + 1
            for name, count in waiting.items():
                _serve(self.owners[name], count)
            if waiting:
                answers |= _all_now(caller)
            for serial, call in zip(serials, batch, strict=True):
                came = self.answer(answers[serial])
                yield f"{one.name} calls {' '.join(map(str, call))}: {came}"


def _send(caller: RawClient, call: Call) -> int:
    destination, path, interface, member = call
    return caller.message(
        destination=destination.encode(),
        path=path.encode(),
        interface=None if interface is None else interface.encode(),
        member=member.encode(),
    )


def _serve(owner: RawClient, count: int) -> None:
    """The owner answers that many calls; that it may is what the policy for replies says."""
    while count:
        call = owner.receive()
        assert call is not None
        if call.type == wire.CALL:
            count -= 1
            assert call.sender is not None
            owner.message(
                wire.RETURN,
                destination=call.sender.encode(),
                path=None,
                reply_serial=call.serial,
                signature="s",
                values=[f"{call.interface}.{call.member}"],
            )
    refused = _all_now(owner)
    assert not refused, f"an answer was refused: {refused}"


def _all_now(client: RawClient) -> dict[int, Received]:
    """All replies that the bus has for a client, by the serials of what they reply to."""
    barrier = client.driver(b"GetId")
    found: dict[int, Received] = {}
    while True:
        message = client.receive()
        assert message is not None, "the bus closed the connection"
        if message.reply_serial == barrier:
            return found
        if message.reply_serial:
            found[message.reply_serial] = message


def play(address: str, files: Iterable[Path]) -> list[str]:
    """All that the files give a reason to ask, and the answers."""
    mentioned = [read(file) for file in files]
    hall = Hall(address, people(mentioned))
    try:
        record: list[str] = []
        names: list[str] = []
        for file in mentioned:
            for name in file.names:
                _note(names, name)
        for name in names:
            record += hall.own(name)
        # A name that none of us may own is called all the same, unless that would start a program.
        startable = set(hall.startable()) - set(hall.owners)
        wanted = list(dict.fromkeys(call for file in mentioned for call in calls(file)))
        wanted = [call for call in wanted if call[0] not in startable]
        for one in hall.who:
            record += hall.ask(one, wanted)
        return record
    finally:
        hall.close()
