"""`jitney bench kdbus`: what a call costs over kdbus's interfaces, next to our own classic bus.

Invariant: all buses and their services run all the time, pinned to one CPU with the caller, and are
called in turns; what is compared was measured within one round. Latency is the median of a round,
a ratio the median of those of all rounds. Context switches are the kernel's count of all threads of
the three processes (caller, bus, service), over all calls of a size.

A call carries SIZE bytes and its answer 64. What does not fit a frame goes through the outbox, and
from 16 MiB on through a sealed memfd, made once; FUSE cannot hand that on and copies it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import brokers, machine, proc, rpc
from .config import Config
from .running import end, spawn

SIZES = (64, 4096, 65536, 1 << 20, 1 << 24)
CALLS = {64: 2000, 4096: 2000, 65536: 1000, 1 << 20: 150, 1 << 24: 20}
READY = 20.0

# Targets: at most this many times what our classic bus takes.
BAR = {
    "native": {64: 1.1, 4096: 1.1, 1 << 20: 0.85, 1 << 24: 0.2},
    "fuse": {64: 4.0, 65536: 2.5, 1 << 20: 1.0},
}

# Copies of a call's body, by design: user memory to user memory and through the kernel.
COPIES = {
    "classic": ("4", "4", "4", "4", "4"),
    "native": ("3", "3", "2", "2", "0"),
    "fuse": ("2", "2", "1", "1", "1"),
}
COPIES_TEXT = (
    "Copies of a call's body, counted in the code: classic: into and out of each of two sockets."
    " native: into and out of one socket and into the pool; through the outbox: into it and into"
    " the pool; a memfd: none. FUSE: out of the caller and into the pool, from 16 KiB on in one;"
    " a memfd: into the pool."
)

_MODULE = (sys.executable, "-m", "jitney.bench.rpcpeer")
_COMMAND = "import sys; from jitney.compat.command import main; sys.exit(main(sys.argv[1:]))"


class NotHere(Exception):
    """A front that this machine or this build does not have; the text says why."""


@dataclass
class Front:
    """One bus with a service and a caller."""

    name: str
    bus: int
    service: subprocess.Popen[bytes]
    caller: subprocess.Popen[bytes]
    medians: dict[int, list[float]] = field(default_factory=dict)
    switches: dict[int, int] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)
    cpu_ns: dict[int, int] = field(default_factory=dict)

    def pids(self) -> list[int]:
        return [*proc.tree(self.bus), self.service.pid, self.caller.pid]

    def measure(self, size: int, count: int, counted: bool = True) -> None:
        assert self.caller.stdin is not None
        assert self.caller.stdout is not None
        pids = self.pids()
        before = proc.switches(pids)
        cpu = proc.cpu_ns(pids[:-2])
        self.caller.stdin.write(b"%d %d\n" % (size, count))
        self.caller.stdin.flush()
        line = self.caller.stdout.readline()
        times = sorted(map(int, line.split()))
        if len(times) != count:
            raise brokers.BrokerError(f"{self.name}: the caller has ended, see above")
        if counted:
            self.switches[size] = self.switches.get(size, 0) + proc.switches(pids) - before
            self.cpu_ns[size] = self.cpu_ns.get(size, 0) + proc.cpu_ns(pids[:-2]) - cpu
            self.calls[size] = self.calls.get(size, 0) + count
            self.medians.setdefault(size, []).append(times[count // 2] / 1000)


@contextlib.contextmanager
def _process(words: Sequence[str], cpus: set[int]) -> Iterator[subprocess.Popen[bytes]]:
    process = spawn(words, cpus, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        end(process)


@contextlib.contextmanager
def _peers(name: str, kind: str, path: str, bus: int, cpus: set[int]) -> Iterator[Front]:
    with _process([*_MODULE, f"{kind}_service", path], cpus) as service:
        called = _first_line(service, name)
        with _process([*_MODULE, f"{kind}_caller", path, called], cpus) as caller:
            calls = _first_line(caller, name)
            assert service.stdin is not None
            service.stdin.write(calls.encode() + b"\n")
            service.stdin.flush()
            yield Front(name, bus, service, caller)


def _first_line(process: subprocess.Popen[bytes], name: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().decode().strip()
    if not line:
        raise brokers.BrokerError(f"{name}: a process of it has ended, see above")
    return line


@contextlib.contextmanager
def classic(cpus: set[int]) -> Iterator[Front]:
    (broker,) = brokers.find(["jitney"])
    with (
        broker.start(Config(), cpus) as running,
        _peers("classic", "classic", running.path, running.pid, cpus) as front,
    ):
        yield front


def _serve(words: Sequence[str], root: Path, cpus: set[int]) -> subprocess.Popen[bytes]:
    """A command of ours that serves kdbus's tree at `root`; it says "ready"."""
    process = spawn([sys.executable, "-c", _COMMAND, *words], cpus, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if process.stdout.readline() != b"ready\n":
        end(process)
        raise NotHere(f"jitney {words[0]} did not start, see above")
    return process


@contextlib.contextmanager
def native(cpus: set[int]) -> Iterator[Front]:
    import importlib.util

    if importlib.util.find_spec("jitney.kdbus.native") is None:
        raise NotHere("this jitney has no `jitney sockets`")
    with tempfile.TemporaryDirectory(prefix="jitney-bench-") as folder:
        process = _serve(["sockets", folder, "--foreground"], Path(folder), cpus)
        try:
            with (
                _bus_by_socket(Path(folder)) as path,
                _peers("native", "native", str(path), process.pid, cpus) as front,
            ):
                yield front
        finally:
            end(process)


@contextlib.contextmanager
def _bus_by_socket(root: Path) -> Iterator[Path]:
    import socket

    from .rpcpeer import FRAME_HEAD

    name, data = _bus_make()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.connect(str(root / "control"))
        control.send(FRAME_HEAD.pack(24 + len(data), 0, 0, 1, 0, 0, 0) + data)
        answer = control.recv(65536)
        number = int.from_bytes(answer[12:16], "little")
        if number:
            raise OSError(number, os.strerror(number))
        yield root / name / "bus"


def _bus_make() -> tuple[str, bytes]:
    """(its directory, BUS_MAKE's struct)."""
    import struct

    from .rpcpeer import item

    name = f"{os.geteuid()}-bench"
    items = item(11, name.encode() + b"\0") + item(7, struct.pack("<2Q", 64, 1))
    return name, struct.pack("<3Q", 24 + len(items), 0, 0) + items


@contextlib.contextmanager
def fuse(cpus: set[int], pool: str = "auto") -> Iterator[Front]:
    if not os.path.exists("/dev/fuse"):
        raise NotHere("there is no /dev/fuse here")
    if os.geteuid() != 0:
        raise NotHere("only measured as root")
    with tempfile.TemporaryDirectory(prefix="jitney-bench-") as folder:
        words = ["mount", folder, "--foreground", "--pool", pool]
        process = _serve(words, Path(folder), cpus)
        try:
            name, data = _bus_make()
            control = os.open(f"{folder}/control", os.O_RDWR | os.O_CLOEXEC)
            try:
                rpc.command(control, 0x40189500, data)
                path = f"{folder}/{name}/bus"
                with _peers("fuse", "ioctl", path, process.pid, cpus) as front:
                    yield front
            finally:
                os.close(control)
        finally:
            process.send_signal(signal.SIGTERM)
            end(process)
            # The kernel takes a moment to let go of it.
            subprocess.run(["umount", "-q", folder], check=False)


FRONTS = {"classic": classic, "native": native, "fuse": fuse}


def measure(names: Sequence[str], sizes: Sequence[int], rounds: int, share: float) -> list[Front]:
    cpu = min(os.sched_getaffinity(0))
    fronts: list[Front] = []
    with contextlib.ExitStack() as stack:
        for name in names:
            try:
                fronts.append(stack.enter_context(FRONTS[name]({cpu})))
            except NotHere as error:
                print(f"{name}: not measured: {error}", file=sys.stderr)
        for turn in range(rounds + 1):
            for size in sizes:
                count = max(5, int(CALLS.get(size, 100) * share))
                # By turns the other way round, so that none always comes after the same one.
                for front in fronts if turn % 2 else fronts[::-1]:
                    front.measure(size, count if turn else max(5, count // 10), bool(turn))
    return fronts


def name_of(size: int) -> str:
    if size >= 1 << 20:
        return f"{size >> 20} MiB"
    return f"{size >> 10} KiB" if size >= 1024 else f"{size} B"


def table(fronts: Sequence[Front], sizes: Sequence[int]) -> str:
    """Median us, context switches, and the ratio to classic with its target."""
    lines = []
    base = next((front for front in fronts if front.name == "classic"), None)
    lines.append(
        "{:8} {:>7}   {:>9}  {:>10}  {:>8}  {:>6}  {:>15}  {:>6}".format(
            "", "body", "median us", "bus CPU us", "switches", "copies", "ratio (worst)", "target"
        )
    )
    for at, size in enumerate(sizes):
        for front in fronts:
            if size not in front.medians:
                continue
            switches = front.switches[size] / front.calls[size]
            cpu = front.cpu_ns[size] / front.calls[size] / 1000
            # Threads that ended meanwhile have taken their counts with them.
            counts = (
                f"{cpu:10.1f}  {switches:8.1f}"
                if min(cpu, switches) > 0
                else f"{'?':>10}  {'?':>8}"
            )
            copies = COPIES[front.name][at] if sizes == SIZES else ""
            ratio = bar = ""
            if base is not None and front is not base:
                ratios = [
                    own / its
                    for own, its in zip(front.medians[size], base.medians[size], strict=True)
                ]
                ratio = f"{statistics.median(ratios):.2f} ({max(ratios):.2f})"
                wanted = BAR[front.name].get(size)
                bar = f"{wanted}" if wanted is not None else ""
            median = statistics.median(front.medians[size])
            lines.append(
                f"{front.name:8} {name_of(size):>7}   {median:9.1f}  {counts}"
                f"  {copies:>6}  {ratio:>15}  {bar:>6}"
            )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="jitney bench kdbus", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of calls")
    parser.add_argument("--only", default="", help="fronts, by commas: classic, native, fuse")
    parser.add_argument("--sizes", default="", help="bytes, by commas")
    options = parser.parse_args(argv)
    names = [name for name in options.only.split(",") if name] or list(FRONTS)
    sizes: Sequence[int] = SIZES
    if options.sizes:
        sizes = [int(size) for size in options.sizes.split(",")]
    fronts = measure(names, sizes, options.rounds, options.share)
    facts = machine.facts()
    print(f"Linux {facts['kernel']}, {facts['cpu']}, load before {facts['load_before']}")
    print(table(fronts, sizes))
    if sizes == SIZES:
        print(COPIES_TEXT)
    return 0
