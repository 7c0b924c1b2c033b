"""Targets that are a whole connection, or several, on a live bus with two well-behaved peers.

Invariant: see `registry`. After whatever was done the bus is there, a call between the two others
is answered, and when those who did it are gone, nothing of them is left: no charge, name, rule,
awaited reply or descriptor.
"""

from __future__ import annotations

import gc
import os
from typing import Any

from jitney.broker.message import Message
from jitney.compat import wire
from jitney.compat.driver import INTERFACES

from .registry import dice, pieces, target
from .rig import SERVICES, Peer, Rig
from .wire_targets import mended_stream

DRIVER = b"org.freedesktop.DBus"
USER = 1
"""Whom the user database knows on every machine, as it does the next one; others do not get in."""
METHODS = [method for interface in INTERFACES for method in interface.methods]


class Scene:
    """A bus, its two good citizens, and what the bus looked like before anybody else came.

    To make one takes longer than most cases do, so one that is as it was is used again."""

    spare: Scene | None = None
    uses = 0

    @classmethod
    def take(cls) -> Scene:
        scene, cls.spare = cls.spare, None
        if scene is None:
            return cls()
        rig = scene.rig
        rig.bus.last_id = 2  # the same names each time
        rig.service.activator.environment.clear()
        rig.log.lines.clear()
        if rig.second:
            rig.reload()
            rig.settle()
            scene.refresh()
        return scene

    def __init__(self) -> None:
        gc.collect()  # descriptors of earlier ones are not to go while we count
        self.rig = Rig()
        self.a = self.rig.connect(0).greet()
        self.b = self.rig.connect(0).greet()
        self.b.call(DRIVER, b"RequestName", "su", b"com.example.B", 0)
        self.b.call(DRIVER, b"AddMatch", "s", b"interface='com.example.I'")
        self.rig.settle()
        self.refresh()
        self.guests: list[Peer] = []
        self.before = self.state()

    def refresh(self) -> None:
        for peer in (self.a, self.b):
            peer.read()
            peer.got.clear()

    def state(self) -> dict[str, Any]:
        rig = self.rig
        bus = rig.bus
        return {
            "users": {
                str(user.uid): (user.bytes, user.fds, user.kept_bytes, user.kept_fds,
                user.connections, user.matches, user.names, user.replies)
                for user in bus.accounts.users if not user.idle()
            },
            "connections": len(bus.connections),
            "rules": bus.match_index.count,
            "replies": len(bus.replies),
            "monitors": len(bus.monitors),
            "tallies": sum(t is not None and bool(t.bytes) for t in bus.accounts.tallies),
            "incomplete": len(rig.hub.incomplete),
            "fd_waits": len(rig.hub.fd_waits),
            "held": rig.service.activator.book.total.messages,
            "descriptors": len(descriptors()),
        }  # fmt: skip

    def answered(self) -> None:
        """A calls B and B answers."""
        rig, a, b = self.rig, self.a, self.b
        rig.settle()
        self.refresh()
        serial = a.call(b"com.example.B", b"Ping")
        rig.settle()
        for msg in b.read():
            if msg.type == wire.CALL and msg.member == b"Ping" and msg.sender == a.name:
                b.send(
                    wire.message(
                        wire.RETURN, 9999, destination=a.name, reply_serial=msg.serial, sender=None
                    )
                )
        rig.settle()
        assert (a.closed, b.closed) == (False, False), "a good peer was thrown out"
        replies = [msg for msg in a.read() if msg.reply_serial == serial]
        assert [msg.type for msg in replies] == [wire.RETURN], "no answer to a good peer's call"

    def end(self) -> None:
        """The guests leave; what is left is what was there before."""
        try:
            self.answered()
            for guest in self.guests:
                guest.close()
            self.rig.settle()
            # What waits for a service has its time.
            self.rig.pass_time(200.0)
            self.rig.pass_time(200.0)
            self.answered()
            self.refresh()
            now = self.state()
            assert now == self.before, self.difference(now)
            broken = [text for _, text in self.rig.log.lines if "Traceback" in text]
            assert not broken, broken[0]
        except BaseException:
            self.close()
            raise
        self.guests.clear()
        self.uses += 1
        if self.uses < 500:
            Scene.spare = self
        else:
            self.close()

    def difference(self, now: dict[str, Any]) -> str:
        wrong = {key: (was, now[key]) for key, was in self.before.items() if now[key] != was}
        return f"not as before: {wrong}; {descriptors()}"

    def close(self) -> None:
        for peer in (*self.guests, self.a, self.b):
            peer.close()
        self.rig.close()


def descriptors() -> dict[str, str]:
    """What is open, but for pipes: nobody here has one but the sanitizers' unwinder."""
    folder = "/proc/self/fd"
    found = {}
    for number in os.listdir(folder):
        try:
            what = os.readlink(f"{folder}/{number}")
        except FileNotFoundError:
            continue
        if not what.startswith("pipe:"):
            found[number] = what
    return found


# ---- bytes


def _heard(msgs: list[Message]) -> list[tuple[Any, ...]]:
    """What does not depend on who has which number, or what time it is."""
    return [(m.type, m.member, m.error_name, m.reply_serial, m.signature) for m in msgs]


def _listen(data: bytes, parts: list[bytes], kind: int) -> tuple[Any, ...]:
    scene = Scene.take()
    rig = scene.rig
    guest = rig.connect(USER if kind & 2 else 0)
    scene.guests.append(guest)
    if kind & 1:
        guest.greet()
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(kind >> 2 & 3)]
    for i, part in enumerate(parts):
        guest.send(part, fds if i == 0 and part else ())
        rig.settle()
        guest.read()
    for fd in fds:
        os.close(fd)
    rig.settle()
    guest.read()
    heard = guest.closed, guest.answers, _heard(guest.got), _heard(scene.b.read())
    scene.end()
    return heard


_STREAM_WORDS = (
    b"\0AUTH EXTERNAL 30\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n", b"BEGIN\r\n", b"l\1\0\1", b"l\4\1\1",
    b"org.freedesktop.DBus", b"Hello", b"AddMatch", b"RequestName", b"com.example.B", b"\x09\1u\0",
    b"BecomeMonitor", b":1.0",
)  # fmt: skip


@target("stream", 4096, _STREAM_WORDS, short=100, mend=mended_stream)
def stream(data: bytes) -> None:
    """A byte of how, then all that a client says, in one piece and then in several."""
    if not data:
        return
    kind = data[0]
    data = data[1:]
    whole = _listen(data, [data], kind)
    cut = _listen(data, pieces(data, dice(data)), kind)
    if kind >> 2 & 3:
        return  # descriptors come with a piece, and which one makes a difference
    assert whole[0] == cut[0], "one was closed, the other was not"
    if whole[0]:
        # What is still to be said to somebody who is thrown out is not said.
        assert whole[2] == cut[2][: len(whole[2])]
    else:
        assert whole[1:3] == cut[1:3]
    assert whole[3] == cut[3]


# ---- programs

_NAMES = (
    b"com.example.B", DRIVER, b"com.example.Name", b"com.example.Other", b"com.example.Forbidden",
    b"com.example.Closed", b"org.freedesktop.systemd1", *(name.encode() for name in SERVICES),
    b"com.example.None",
)  # fmt: skip
_RULES = (
    b"", b"type='signal'", b"interface='com.example.I'", b"sender='com.example.Name'",
    b"path_namespace='/a'", b"arg0='x'", b"arg0namespace='com.example'", b"destination=':1.1'",
    b"eavesdrop='true'", b"member='M',path='/a/b'", b"sender=':1.0',arg0path='/a/'",
)  # fmt: skip
_PATHS = (b"/a", b"/a/b", b"/org/freedesktop/DBus", b"/")
_INTERFACES = (
    b"com.example.I", None, b"com.example.Denied", b"com.example.Unheard", DRIVER,
    b"org.freedesktop.systemd1.Activator", b"org.freedesktop.DBus.Peer",
)  # fmt: skip
_MEMBERS = (b"M", b"S", b"Other", b"ActivationFailure", b"Ping")
_BODIES: tuple[tuple[str, list[Any]], ...] = (
    ("", []), ("s", ["x"]), ("su", ["com.example.Name", 3]), ("a{sv}", [{"k": ("as", ["v"])}]),
    ("ay", [bytes(9000)]), ("h", [0]), ("sss", ["com.example.Started", "a.b", "no"]),
    ("oso", ["/a/b", "com.example.Q", "/"]), ("v", [("(yd)", (1, 0.5))]),
)  # fmt: skip
_TEXTS = (
    "", "x", "/a", "a=b", "LC_ALL", "org.freedesktop.DBus", "org.freedesktop.DBus.Monitoring",
    "Features", "type='signal'", "interface='com.example.I',arg0='x'", "eavesdrop=true", ":1.1",
    "com.example.Started", "\u00e9" * 300,
)  # fmt: skip
_TIMES = (0.01, 1.0, 25.0, 61.0, 151.0)
_MOST = 6


class Program:
    """Bytes as what several clients do."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pos = 0
        self.scene = Scene.take()
        self.rig = self.scene.rig
        self.guests = self.scene.guests

    def byte(self) -> int:
        self.pos += 1
        return self.data[self.pos - 1] if self.pos <= len(self.data) else 0

    def take(self) -> bytes:
        size = self.byte()
        self.pos += size
        return self.data[self.pos - size : self.pos]

    def pick(self, table: Any) -> Any:
        return table[self.byte() % len(table)]

    def guest(self) -> Peer:
        number = self.byte()
        if not self.guests:
            self.guests.append(self.rig.connect(USER).greet())
        return self.guests[number % len(self.guests)]

    def name(self) -> bytes:
        """A well-known name, or a unique one."""
        number = self.byte()
        if number < 128:
            return _NAMES[number % len(_NAMES)]
        peers = [self.scene.a, self.scene.b, *self.guests]
        return peers[number % len(peers)].name or b":1.77"

    def run(self) -> None:
        steps = (
            self.connect, self.ask, self.ask, self.say, self.say, self.say, self.reply, self.read,
            self.leave, self.wait, self.raw, self.reload, self.ask_known, self.ask_known, self.say,
            self.half,
        )  # fmt: skip
        try:
            for _ in range(40):
                if self.pos >= len(self.data):
                    break
                steps[self.byte() % len(steps)]()
                self.rig.settle()
        except BaseException:
            self.scene.close()
            raise
        self.scene.end()

    def connect(self) -> None:
        if len(self.guests) >= _MOST:
            return
        how = self.byte()
        guest = self.rig.connect((0, USER, USER + 1)[how % 3])
        self.guests.append(guest)
        if how & 8:
            guest.greet(fds=not how & 16, hello=not how & 32)

    def leave(self) -> None:
        guest = self.guest()
        self.guests.remove(guest)
        guest.close()

    def half(self) -> None:
        guest = self.guest()
        try:
            guest.sock.shutdown(self.byte() % 3)
        except OSError:
            pass

    def read(self) -> None:
        self.guest().read()

    def wait(self) -> None:
        self.rig.pass_time(self.pick(_TIMES))

    def reload(self) -> None:
        self.rig.reload()

    def raw(self) -> None:
        self.guest().send(self.take())

    def value(self, kind: str) -> Any:
        """Something of this type."""
        code = kind[0]
        if code == "s":
            return (*_TEXTS, self.name().decode())[self.byte() % (len(_TEXTS) + 1)]
        if code == "o":
            return self.pick(_PATHS)
        if code == "v":
            return self.pick((("s", "x"), ("u", 7), ("a{sv}", {"k": ("b", True)})))
        if kind == "ay":
            return self.take()
        if kind[:2] == "a{":
            return {self.value(kind[2]): self.value(kind[3:-1]) for _ in range(self.byte() % 4)}
        if code == "a":
            return [self.value(kind[1:]) for _ in range(self.byte() % 4)]
        if code == "(":
            return tuple([self.value(part) for part in wire.split_signature(kind[1:-1])])
        return self.byte() & (1 if code == "b" else 255)

    def ask(self) -> None:
        """Any method of the bus, with arguments that need not fit."""
        guest = self.guest()
        method = self.pick(METHODS)
        how = self.byte()
        if how & 1:
            signature, values = self.pick(_BODIES)
            body = wire.marshal(signature, values)
        else:
            signature = method.in_sig.decode()
            parts = wire.split_signature(signature)
            body = wire.marshal(signature, [self.value(part) for part in parts])
        self.send(
            guest, wire.CALL, destination=DRIVER, path=_PATHS[how >> 1 & 3],
            interface=method.interface if how & 8 else None, member=method.member,
            signature=signature, body=body, flags=how >> 4 & 7,
        )  # fmt: skip

    def ask_known(self) -> None:
        """What clients ask for most, in good order."""
        guest = self.guest()
        asked = self.byte() % 8
        values: tuple[Any, ...]
        if asked < 2:
            member, signature, values = b"RequestName", "su", (self.name(), self.byte() & 7)
        elif asked == 2:
            member, signature, values = b"ReleaseName", "s", (self.name(),)
        elif asked < 5:
            member, signature, values = b"AddMatch", "s", (self.pick(_RULES),)
        elif asked == 5:
            member, signature, values = b"RemoveMatch", "s", (self.pick(_RULES),)
        elif asked == 6:
            member, signature, values = b"StartServiceByName", "su", (self.name(), 0)
        else:
            member, signature, values = b"BecomeMonitor", "asu", ([self.pick(_RULES)], 0)
        self.send(
            guest, wire.CALL, destination=DRIVER, path=b"/org/freedesktop/DBus", member=member,
            interface=b"org.freedesktop.DBus.Monitoring" if asked == 7 else DRIVER,
            signature=signature, body=wire.marshal(signature, values), flags=self.byte() & 1,
        )  # fmt: skip

    def say(self) -> None:
        """Any message to anybody."""
        guest = self.guest()
        how = self.byte()
        kind = 1 + how % 4
        signature, values = self.pick(_BODIES)
        n_fds = (how >> 2) & 3
        self.send(
            guest, kind, destination=None if how & 16 else self.name(), path=self.pick(_PATHS),
            interface=self.pick(_INTERFACES) or (b"a.b" if kind == 4 else None),
            member=self.pick(_MEMBERS), error_name=b"a.b" if kind == 3 else None,
            reply_serial=self.byte() + 1 if kind in (2, 3) else 0, signature=signature,
            body=wire.marshal(signature, values), flags=how >> 5 & 7, n_fds=n_fds,
        )  # fmt: skip

    def reply(self) -> None:
        """To the latest call that the guest got, or for somebody else."""
        guest = self.guest()
        guest.read()
        calls = [msg for msg in guest.got if msg.type == wire.CALL]
        if calls:
            self.send(
                guest, wire.RETURN, destination=calls[-1].sender, reply_serial=calls[-1].serial
            )

    def send(self, guest: Peer, kind: int, n_fds: int = 0, **fields: Any) -> None:
        guest.serial += 1
        data = wire.message(kind, guest.serial, sender=None, n_fds=n_fds, **fields)
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(n_fds)]
        if not guest.send(data, fds):
            guest.close()  # its socket is full: it is not read from
        for fd in fds:
            os.close(fd)


@target("bus", 512, short=100)
def bus(data: bytes) -> None:
    """What up to six clients do on a bus with small limits."""
    Program(data).run()
