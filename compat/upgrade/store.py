"""Store: what a service manager keeps of a bus, so that a crash of the process need not end the
connections (sd_notify(3), FDSTORE=).

Invariant: each connection that has said Hello is in the store as "jitney-ID", and out of it when it
ends; but for clients of endpoints, and for those beyond as many as the next process could start
with. The journal, "jitney-journal-N", tells of each connection what the bus would have to know: it
begins with a state as `form` has it (without what waits to be sent, and without awaited replies),
and goes on with what has happened since, in a line each, written before anybody hears of it. There
is always room for the next journal: "jitney-journal-0" keeps it. "jitney-calls-PID" has the awaited
replies, see `calls`. Where nobody asked for the store, nothing here is loaded.

What the process had in its memory only is lost with it: see docs/upgrade.md.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jitney.broker.export import Sink, export
from jitney.broker.restore import BadState

from .. import wire
from ..driver.table import Interface, Method, arg
from ..front import Front
from . import form
from .calls import Call, KeptReplies, nameless, read

if TYPE_CHECKING:
    from jitney.broker.connection import Connection
    from jitney.broker.message import Message

    from ..driver import Driver

CONNECTION = "jitney-"
CALLS = "jitney-calls-"
JOURNAL = "jitney-journal-"
RESERVE = f"{JOURNAL}0"
"""A file with nothing in it, which whoever looks for a journal passes over."""
LONGEST = 4_000_000
"""Bytes of a journal, beyond its state, after which another one begins."""
AGAIN = 1.0
"""Seconds until a manager that is busy is told once more of a journal."""
SPARE_FDS = 64
"""What a process needs to start, besides what is passed to it."""
_SIZE = struct.Struct("<Q")
_FIRST = 3

Record = dict[str, Any]


class KeptFront(Front):
    """A front that tells the store who comes and goes."""

    store: Store

    def registered(self, conn: Connection) -> None:
        Front.registered(self, conn)
        self.store.came(conn)

    def gone(self, conn: Connection) -> None:
        self.store.went(conn)
        Front.gone(self, conn)


class Store:
    """The store of one bus; `hub` is set by who makes the bus.

    `most`: with so many descriptors a process can be started. What Python cannot open a file for,
    because it was passed too many, does not start at all."""

    def __init__(self, bus: Any, most: int, warn: Callable[[str], None]) -> None:
        self.bus = bus
        self.most = most - SPARE_FDS
        self.warn = warn
        self.warned = False
        self.kept: set[int] = set()
        self.hub: Any = None
        self.calls = KeptReplies()
        self.calls.install(bus)
        self.calls_name = f"{CALLS}{os.getpid()}"
        self.number = 0
        self.fd = -1
        self.room = 0
        self.blocked: set[int] = set()

    def use(self, hub: Any) -> None:
        self.hub = hub
        hub.calls = self.calls

    # Telling the manager

    def put(self, name: str, fd: int) -> bool:
        """Whether the manager will hear of it."""
        return _notify(f"FDSTORE=1\nFDNAME={name}", fd)

    def drop(self, name: str) -> None:
        _notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def adopt(self, peers: list[Any]) -> None:
        """Those that are there when a new process goes on; the manager may have them already."""
        for peer in peers:
            if peer is not None and peer.conn is not None and peer.conn.id:
                self.keep(peer)

    def keep(self, peer: Any) -> None:
        """Has the manager keep a connection's socket, if it is one to be kept."""
        conn = peer.conn
        if conn.endpoint is not None:
            # Endpoints are not stored, and without its own nobody may come back.
            return
        if len(self.kept) >= self.most:
            if not self.warned:
                self.warned = True
                self.warn(
                    f"More than {self.most} connections cannot outlive a crash: the next process "
                    "would have to be allowed more open files when it starts (LimitNOFILE=)"
                )
            return
        self.take(peer)
        self.put(f"{CONNECTION}{conn.id}", peer.fd)

    def take(self, peer: Any) -> None:
        """The manager keeps this one."""
        number = peer.conn.id
        self.kept.add(number)
        peer.store = self
        if peer.blocked:
            self.blocked.add(number)
            self.note("blocked", number)

    def forget(self, pid: int) -> None:
        """That process is the bus no more; its calls are known to this one."""
        self.drop(f"{CALLS}{pid}")

    # The journal

    def begin(self) -> None:
        """Starts a journal with the state as it is; the one before goes when this one is stored."""
        before = self.number, self.fd
        if before[1] < 0:
            self.put(self.calls_name, self.calls.fd)
        fd = nameless("jitney-journal")
        packed = b"".join(form.pack(self.state(), [], []))
        os.write(fd, _SIZE.pack(len(packed)) + packed)
        # The store may be full: without this place the manager would refuse the new journal, and
        # then the old one goes.
        self.drop(RESERVE)
        if not self.put(f"{JOURNAL}{self.number + 1}", fd):
            # It is busy; the old one goes on until it is not.
            os.close(fd)
            self.hub.loop.call_later(AGAIN, self.begin)
            return
        self.number += 1
        self.fd = fd
        self.room = LONGEST
        if before[0]:
            self.drop(f"{JOURNAL}{before[0]}")
        if before[1] >= 0:
            os.close(before[1])
        reserve = nameless("jitney-reserve")
        self.put(RESERVE, reserve)
        os.close(reserve)

    def state(self) -> Record:
        state, _ = export(self.bus, [], Sink())
        lost = []
        for conn in state["connections"]:
            for what in ("queue", "charges", "endpoint", "seen"):
                conn.pop(what, None)
            if conn.pop("tracer", None) is not None:
                lost.append(conn["id"])
        for user in state["users"]:
            user["sums"][:4] = [0, 0, 0, 0]
            user["sums"][7] = 0
        state["tallies"] = []
        state["replies"] = []
        state["endpoints"] = []
        return {
            "bus": state,
            "lost": lost,
            "blocked": sorted(self.blocked),
            "calls": self.calls_name,
        }

    def note(self, *record: Any) -> None:
        if self.fd < 0:
            return
        line = json.dumps(record).encode() + b"\n"
        self.room -= len(line)
        os.write(self.fd, line)
        if self.room < 0:
            self.hub.loop.call_soon(self.begin)
            self.room = LONGEST

    # What happens

    def came(self, conn: Connection) -> None:
        # Of whom cannot be kept others are to hear that he has left.
        self.note("hello", conn.id, conn.user.uid, bool(conn.accepts_fds))
        self.keep(conn.transport)

    def went(self, conn: Connection) -> None:
        if conn.id:
            self.note("gone", conn.id)
        if conn.id in self.kept:
            self.kept.discard(conn.id)
            self.blocked.discard(conn.id)
            if conn.transport is not None:
                # Not that it stays open because the manager has not heard of it, or not yet.
                end(conn.transport.fd)
            self.drop(f"{CONNECTION}{conn.id}")

    def watched(self, peer: Any) -> None:
        """A peer's socket is full, or no longer: it may have got half a message."""
        number = peer.conn.id if peer.conn is not None else 0
        if number and peer.blocked != (number in self.blocked):
            if peer.blocked:
                self.blocked.add(number)
            else:
                self.blocked.discard(number)
            self.note("blocked" if peer.blocked else "unblocked", number)

    def give_up(self, kept: Found) -> None:
        """With what was kept nothing can be done: the next process is to begin anew."""
        for number, fd in kept.sockets.items():
            end(fd)
            self.drop(f"{CONNECTION}{number}")
        self.drop(RESERVE)
        self.drop(f"{JOURNAL}{kept.number}")

    def close(self) -> None:
        """The bus ends in an orderly way: nothing is to be kept."""
        if self.fd >= 0:
            self.drop(RESERVE)
            self.drop(f"{JOURNAL}{self.number}")
            self.drop(self.calls_name)
            os.close(self.fd)
            self.fd = -1

    def interfaces(self, interfaces: tuple[Interface, ...]) -> tuple[Interface, ...]:
        """The same, with methods that tell the journal what they have done."""
        noted = {
            b"org.freedesktop.DBus.RequestName": _request,
            b"org.freedesktop.DBus.ReleaseName": lambda msg: ("release", _text(msg)),
            b"org.freedesktop.DBus.AddMatch": lambda msg: ("match", _text(msg)),
            b"org.freedesktop.DBus.RemoveMatch": lambda msg: ("unmatch", _text(msg)),
            b"org.freedesktop.DBus.Monitoring.BecomeMonitor": _monitor,
            b"org.jitney.Trace1.Start": lambda msg: ("lost",),
        }
        return tuple(
            Interface(
                interface.name,
                [
                    self._noting(method, noted[key])
                    if (key := interface.name.encode() + b"." + method.member) in noted
                    else method
                    for method in interface.methods
                ],
                properties=interface.properties,
                signals=interface.signals,
                any_path=interface.any_path,
                feature=interface.feature,
            )
            for interface in interfaces
        )

    def _noting(self, method: Method, what: Callable[[Message], tuple[Any, ...]]) -> Method:
        handler = method.handler

        def noting(driver: Driver, conn: Connection, msg: Message) -> bytes | None:
            body = handler(driver, conn, msg)
            kind, *rest = what(msg)
            self.note(kind, conn.id, *rest)
            return body

        return Method(
            method.name,
            method.in_sig.decode(),
            method.out_sig,
            noting,
            any_path=method.any_path,
            privileged=method.privileged,
            ack=method.ack,
        )


def _text(msg: Message) -> str:
    return arg(msg).decode("latin-1")


def _request(msg: Message) -> tuple[Any, ...]:
    _, flags = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)
    return ("request", _text(msg), flags)


def _monitor(msg: Message) -> tuple[Any, ...]:
    filters, _ = wire.unmarshal(msg.signature, msg.body(), msg.big_endian)
    return ("monitor", filters or [""])


def end(fd: int) -> None:
    """The end of a connection, however many descriptors there are of its socket."""
    sock = socket.socket(fileno=fd)
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the peer has ended it
    finally:
        sock.detach()


def _notify(state: str, fd: int | None = None) -> bool:
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path[:1] not in ("/", "@"):
        return False
    target = "\0" + path[1:] if path[0] == "@" else path
    extra = []
    if fd is not None:
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendmsg([state.encode()], extra, 0, target)
    except OSError:
        return False  # what is not stored is not saved, and that is all
    return True


class Found:
    """What a process before us left: `sockets` by the connection's id, the state at the
    beginning of its journal and what happened afterwards."""

    def __init__(self, sockets: dict[int, int], document: Record, records: list[list[Any]]) -> None:
        self.sockets = sockets
        self.document = document
        self.records = records
        self.number = 0
        self.calls: list[Call] = []


def found() -> Found | None:
    """Takes what is ours out of the descriptors that were passed to this process,
    sd_listen_fds(3): the manager puts sockets to listen on before those that it has stored."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = int(os.environ.get("LISTEN_FDS") or 0)
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    sockets: dict[int, int] = {}
    journals: dict[int, int] = {}
    calls: dict[int, int] = {}
    kinds = {JOURNAL: journals, CALLS: calls, CONNECTION: sockets}
    rest = count
    for i in range(count - 1, -1, -1):
        name = names[i] if i < len(names) else ""
        kind = next((kind for kind in kinds if name.startswith(kind)), "")
        text = name.removeprefix(kind)
        if not kind or not text.isdecimal():
            break
        fd = _FIRST + i
        os.set_inheritable(fd, False)
        kinds[kind][int(text)] = fd
        rest = i
    os.environ["LISTEN_FDS"] = str(rest)
    try:
        for number in sorted(journals, reverse=True):
            try:
                result = _read(journals[number], sockets)
            except (BadState, ValueError, struct.error):
                continue  # it was not written to the end; the one before is still there
            result.number = number
            for other in journals.keys() - {number}:
                _notify(f"FDSTOREREMOVE=1\nFDNAME={JOURNAL}{other}")
            kept = str(result.document.get("calls", "")).removeprefix(CALLS)
            if kept.isdecimal() and int(kept) in calls:
                result.calls = read(calls[int(kept)])
            return result
        for number, fd in sockets.items():
            end(fd)
            _notify(f"FDSTOREREMOVE=1\nFDNAME={CONNECTION}{number}")
            os.close(fd)
        return None
    finally:
        for fd in (*journals.values(), *calls.values()):
            os.close(fd)
        for number in calls:
            _notify(f"FDSTOREREMOVE=1\nFDNAME={CALLS}{number}")


def _read(fd: int, sockets: dict[int, int]) -> Found:
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    (packed,) = _SIZE.unpack_from(data)
    document, _, _ = form.unpack(data[_SIZE.size : _SIZE.size + packed])
    lines = data[_SIZE.size + packed :].split(b"\n")
    # What comes behind the last end of line was not written to the end.
    return Found(sockets, document, [json.loads(line) for line in lines[:-1]])
