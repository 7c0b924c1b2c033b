"""How many calls a broker passes on, and what one costs it, side by side with other brokers.

    python bench/calls.py [--rounds N] [--calls N] NAME=COMMAND ...

COMMAND starts a broker that takes dbus-daemon's options; without any, it is `jitney-daemon` and,
where installed, `dbus-daemon`. Each round measures every broker once, as a fresh process on a CPU
of its own, one after the other; what counts are the ratios, not the figures.

Invariant: every reply is checked (order, serial, body) before a figure is printed. The client is
plain Python and dearer than a compiled broker, so that "calls/s" with many calls outstanding says
more about it than about the broker; "CPU/call" is the broker's own time, from the kernel's books.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import time
from dataclasses import dataclass

AUTH = b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\nBEGIN\r\n"
BODY = struct.pack("<I", 7) + b"payload\0"
FULL = os.sched_getaffinity(0)


@dataclass
class Result:
    """One measurement: calls a second, and microseconds of the broker's CPU time a call."""

    rate: float
    cpu: float


def field(code: int, kind: bytes, value: bytes) -> bytes:
    size = bytes([len(value)]) if kind == b"g" else struct.pack("<I", len(value))
    return bytes([code, 1]) + kind + b"\0" + size + value + b"\0"


def message(kind: int, serial: int, fields: list[bytes], body: bytes = b"") -> bytes:
    joined = b""
    for part in fields:
        joined += bytes(-len(joined) % 8) + part
    head = struct.pack("<cBBBIII", b"l", kind, 0, 1, len(body), serial, len(joined))
    return head + joined + bytes(-len(joined) % 8) + body


def call(serial: int, dest: bytes, member: bytes, body: bytes = b"") -> bytes:
    fields = [
        field(1, b"o", b"/org/freedesktop/DBus"),
        field(3, b"s", member),
        field(6, b"s", dest),
    ]
    return message(1, serial, fields + ([field(8, b"g", b"s")] if body else []), body)


class Peer:
    """A client with as little in the way as Python allows."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.sendall(AUTH)
        with self.sock.makefile("rb", buffering=0) as lines:
            if not lines.readline().startswith(b"OK "):
                raise SystemExit("the broker did not let us in")
        self.sock.sendall(call(1, b"org.freedesktop.DBus", b"Hello"))
        self.unread = b""
        self.name = b""
        while not self.name:
            for data in self.messages():
                if data[1] == 2:
                    start = len(data) - int.from_bytes(data[4:8], "little")
                    self.name = data[start + 4 : -1]

    def messages(self) -> list[bytes]:
        """At least one whole message."""
        found: list[bytes] = []
        while not found:
            got = self.sock.recv(1 << 18)
            if not got:
                raise SystemExit("the broker closed a connection")
            data = self.unread + got
            start = 0
            while len(data) - start >= 16:
                body, _, fields = struct.unpack_from("<III", data, start + 4)
                end = start + 16 + (fields + 7 & ~7) + body
                if end > len(data):
                    break
                found.append(data[start:end])
                start = end
            self.unread = data[start:]
        return found


def echo(path: str, ready: int) -> None:
    """The other side: answers each call with its body, until it is killed."""
    peer = Peer(path)
    os.write(ready, peer.name)
    os.close(ready)
    serial = 10
    while True:
        out = []
        for data in peer.messages():
            if data[1] != 1:
                continue
            serial += 1
            caller = data[data.rindex(b"\x07\x01s\0") + 8 :].partition(b"\0")[0]
            fields = [b"\x05\x01u\0" + data[8:12], field(6, b"s", caller), field(8, b"g", b"s")]
            out.append(message(2, serial, fields, BODY))
        peer.sock.sendall(b"".join(out))


def measure(path: str, pid: int, calls: int, outstanding: int) -> Result:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            echo(path, writer)
        finally:
            os._exit(1)
    os.close(writer)
    dest = os.read(reader, 100)
    os.close(reader)
    try:
        peer = Peer(path)
        prepared = [call(2 + i, dest, b"Echo", BODY) for i in range(calls)]
        peer.sock.sendall(b"".join(prepared[:outstanding]))
        before, started = cpu_seconds(pid), time.perf_counter()
        sent, answered = outstanding, 0
        while answered < calls:
            batch = 0
            for data in peer.messages():
                if data[1] == 4:
                    continue
                at = data.index(b"\x05\x01u\0") + 4
                if data[1] != 2 or int.from_bytes(data[at : at + 4], "little") != 2 + answered:
                    raise SystemExit(f"a wrong reply to call {answered}: {data!r}")
                if not data.endswith(BODY):
                    raise SystemExit(f"a wrong body in reply {answered}")
                answered += 1
                batch += 1
            peer.sock.sendall(b"".join(prepared[sent : sent + batch]))
            sent += batch
        seconds = time.perf_counter() - started
        return Result(calls / seconds, (cpu_seconds(pid) - before) / calls * 1e6)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9


def pin(cpus: set[int], pid: int = 0) -> None:
    os.sched_setaffinity(pid, cpus)


def run(command: list[str], calls: int, outstanding: int) -> Result:
    broker_cpu = {min(FULL)}
    load_cpu = FULL - broker_cpu or FULL
    process = subprocess.Popen(
        [*command, "--session", "--nofork", "--print-address"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    pin(broker_cpu, process.pid)
    try:
        pin(load_cpu)
        assert process.stdout is not None
        address = process.stdout.readline().decode().strip()
        path = address.partition("path=")[2].partition(",")[0]
        if not path:
            raise SystemExit(f"{shlex.join(command)}: no unix:path address: {address!r}")
        measure(path, process.pid, calls // 10, outstanding)  # warm-up
        return measure(path, process.pid, calls, outstanding)
    finally:
        pin(FULL)
        process.terminate()
        process.wait()


def brokers(given: list[str]) -> dict[str, list[str]]:
    if given:
        pairs = (entry.partition("=") for entry in given)
        return {name: shlex.split(command) for name, _, command in pairs}
    script = os.path.join(os.path.dirname(sys.executable), "jitney-daemon")
    found = {"jitney": [script if os.path.exists(script) else "jitney-daemon"]}
    if shutil.which("dbus-daemon"):
        found["dbus-daemon"] = ["dbus-daemon"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Calls through a broker, side by side.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("brokers", nargs="*", metavar="NAME=COMMAND")
    options = parser.parse_args()
    found = brokers(options.brokers)
    print(f"{len(FULL)} CPUs, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.2f}")
    for outstanding in (1, 64):
        results: dict[str, list[Result]] = {name: [] for name in found}
        for _ in range(options.rounds):
            for name, command in found.items():
                results[name].append(run(command, options.calls, outstanding))
        print(f"\n{outstanding} call(s) outstanding: median [lowest - highest]; ratio to the last")
        last = results[list(found)[-1]]
        for name, rows in results.items():
            shown = []
            for what in ("rate", "cpu"):
                values = sorted(getattr(row, what) for row in rows)
                middle = statistics.median(values)
                ratio = middle / statistics.median(getattr(row, what) for row in last)
                span = f"{values[0]:.1f} - {values[-1]:.1f}"
                shown.append(f"{middle:10.1f} [{span}] x{ratio:.2f}")
            print(f"  {name:14} calls/s {shown[0]}   us CPU/call {shown[1]}")


if __name__ == "__main__":
    main()
