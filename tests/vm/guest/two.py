"""dbus-daemon and jitney side by side on one kernel: the same clients, the same words.

Buses of their own, beside the machine's: `Bus` is one, `Actors` are processes under profiles that
have connections to both. What they were told and what the audit log has is made comparable: names,
pids and serials become words.

Invariant: a scenario is done with each bus in the same order, and nothing of one is in what comes
out of the other.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from helpers import ENVIRONMENT, run, until

PYTHON = "/opt/jitney/bin/python"
ACTOR = (PYTHON, "/run/vm/guest/actor.py")
DAEMONS = {
    "dbus-daemon": ("/usr/bin/dbus-daemon",),
    "jitney-daemon": ("/opt/jitney/bin/jitney-daemon",),
}
FOLDER = "/run/dbus"
COUNT = itertools.count()
SERVICES = f"{FOLDER}/vm-services"
LOG = "/var/log/audit/audit.log"
CONFIG = """\
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <servicedir>{services}</servicedir>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
  {more}
</busconfig>
"""


class Bus:
    """One of the two. `under`: the command that it is started by; `reload()`: has it read its
    configuration again, which with jitney is an upgrade."""

    def __init__(self, name: str, more: str = "", under: Sequence[str] = ()) -> None:
        self.name = name
        self.count = next(COUNT)
        file = f"{FOLDER}/vm-{self.count}.conf"
        self.socket = f"{FOLDER}/vm-{self.count}.sock"
        self.address = f"unix:path={self.socket}"
        self.log = f"/run/vm/{self.count}-{name}.log"
        os.makedirs(SERVICES, exist_ok=True)
        with open(file, "w", encoding="ascii") as out:
            out.write(CONFIG.format(socket=self.socket, services=SERVICES, more=more))
        words = [*under, *DAEMONS[name], f"--config-file={file}", "--nofork", "--nopidfile"]
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                words, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def began(self) -> bool:
        """Whether it serves, as soon as that can be told."""
        until(lambda: self.process.poll() is not None or self._answers(), f"{self.name} to begin")
        return self.process.poll() is None

    def _answers(self) -> bool:
        # A socket is there before the bus has decided to begin.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as link:
            link.settimeout(5)
            link.connect(self.socket)
            link.sendall(b"\0AUTH\r\n")
            return link.recv(64) != b""
        return False

    def said(self) -> str:
        with open(self.log, encoding="utf-8") as log:
            return log.read()

    def end(self, pid: int = 0) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid or self.process.pid, signal.SIGTERM)
        self.process.wait(60)


class Actors:
    """Processes under profiles, each started when it is first asked for."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def tell(self, who: str, *line: Any) -> Any:
        process = self.processes.get(who) or self._start(who)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(line).encode() + b"\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            del self.processes[who]
            process.wait()
            with open(self._trouble(who), encoding="utf-8") as file:
                raise AssertionError(f"{who} ended: {file.read()}")
        return json.loads(answer)

    @staticmethod
    def _trouble(who: str) -> str:
        return "/run/vm/" + who.replace("/", "") + ".trouble"

    def _start(self, who: str) -> subprocess.Popen[bytes]:
        under = ("aa-exec", "-p", who, "--") if who != "unconfined" else ()
        with open(self._trouble(who), "w", encoding="utf-8") as trouble:
            process = self.processes[who] = subprocess.Popen(
                [*under, *ACTOR], env=ENVIRONMENT,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=trouble,
            )  # fmt: skip
        return process


ACTORS = Actors()


class Stage:
    """One bus with connections of actors: `enter` makes one, the rest is `actor`'s."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.pid = bus.process.pid
        self.names: dict[str, str] = {}
        self.seen: list[Any] = []

    def enter(self, who: str) -> str:
        """Opens a connection; the name that it got, or empty."""
        answer = ACTORS.tell(who, "open", self.bus.name, self.bus.address)
        got = str(answer[0])
        if got.startswith(":"):
            self.names[got] = who
        self.note(who, "Hello", answer if not got.startswith(":") else [])
        return got if got.startswith(":") else ""

    def name(self, who: str) -> str:
        return next(name for name, whose in self.names.items() if whose == who)

    def note(self, *what: Any) -> None:
        self.seen.append(what)

    def driver(self, who: str, member: str, *arguments: Any) -> list[Any]:
        answer = ACTORS.tell(who, "driver", self.bus.name, member, *arguments)
        self.note(who, member, arguments, answer)
        return list(answer)

    def monitor(self, who: str) -> list[Any]:
        answer = ACTORS.tell(who, "monitor", self.bus.name)
        self.note(who, "BecomeMonitor", answer)
        return list(answer)

    def send(self, who: str, **fields: Any) -> int:
        return int(ACTORS.tell(who, "send", self.bus.name, fields))

    def drain(self, who: str, serve: bool = False, syncs: bool = True) -> list[Any]:
        found = ACTORS.tell(who, "drain", self.bus.name, serve, syncs)
        # Which number a message has is the bus's own affair.
        self.note(who, "got", [[*message[:6], message[7]] for message in found])
        return list(found)

    def call(self, who: str, whom: str, member: str, **fields: Any) -> list[Any]:
        """Calls somebody, who answers if the call gets there; what the caller was told."""
        self.send(who, destination=self.name(whom), member=member, **fields)
        self.drain(whom, serve=True)
        return [
            [kind, error, body]
            for kind, _, _, _, error, _, _, body in self.drain(who)
            if kind in (2, 3)
        ]

    def leave(self) -> None:
        for who in self.names.values():
            ACTORS.tell(who, "close", self.bus.name)

    def plain(self, text: str) -> str:
        """The same whichever bus said it."""
        whose = {p.pid: who for who, p in ACTORS.processes.items()}
        whose[self.pid] = "the bus"
        text = re.sub(r"'[0-9a-f]{32}'", "the bus's id", text)
        text = re.sub(r":1\.\d+", lambda m: self.names.get(m[0], "somebody"), text)
        return re.sub(r"pid=(\d+)", lambda m: f"pid={whose.get(int(m[1]), 'another')}", text)


def records(pid: int, start: int) -> list[str]:
    """What a bus has written to the audit log since it had that size, without who wrote it."""
    said = read(start)
    found = []
    for line in said.splitlines():
        if line.startswith("type=USER_AVC") and f" pid={pid} " in line and "apparmor=" in line:
            text = line.split("msg='", 1)[1].split(" exe=")[0]
            found.append(" ".join(text.split()))
    return found


def read(start: int) -> str:
    """The audit log from there on, when all is in it that was said before."""
    mark = f"vm-{time.monotonic_ns()}"
    run("auditctl", "-m", mark)
    said = ""

    def there() -> bool:
        nonlocal said
        with open(LOG, encoding="utf-8", errors="replace") as log:
            log.seek(start)
            said = log.read()
        return mark in said

    until(there, "the audit log", 120)
    return said


def size() -> int:
    return os.path.getsize(LOG)


@contextlib.contextmanager
def both(more: str = "", under: Sequence[str] = ()) -> Iterator[list[Bus]]:
    buses = [Bus(name, more, under) for name in DAEMONS]
    try:
        for bus in buses:
            assert bus.began(), bus.said()
        yield buses
    finally:
        for bus in buses:
            bus.end()


@functools.cache
def standing() -> list[Bus]:
    """Two that ask for nothing special, for whoever has no others."""
    buses = [Bus(name) for name in DAEMONS]
    for bus in buses:
        assert bus.began(), bus.said()
    return buses


def compared(
    buses: list[Bus], scenario: Callable[[Stage], Any], pids: Sequence[int] = ()
) -> tuple[Any, list[str]]:
    """What a scenario gives, and the records of it, which must be the same of both. `pids`: of the
    buses, if they are not those that were started."""
    outcomes = []
    for number, bus in enumerate(buses):
        stage, start = Stage(bus), size()
        if pids:
            stage.pid = pids[number]
        result = scenario(stage)
        stage.leave()
        noted = [stage.plain(repr(what)) for what in stage.seen]
        written = [stage.plain(line) for line in records(stage.pid, start)]
        outcomes.append((noted, written, result))
    (noted, written, _), (ours, our_records, result) = outcomes
    assert ours == noted, difference(noted, ours)
    assert our_records == written, difference(written, our_records)
    return result, our_records


def difference(theirs: list[str], ours: list[str]) -> str:
    lines = []
    for number in range(max(len(theirs), len(ours))):
        one = theirs[number] if number < len(theirs) else "(nothing)"
        other = ours[number] if number < len(ours) else "(nothing)"
        if one != other:
            lines += [f"dbus-daemon: {one}", f"jitney:      {other}"]
    return "\n".join(lines[:20])
