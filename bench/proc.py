"""What the kernel's books say about processes: CPU time, switches, memory, who descends from whom.

Invariant: a process or thread that has ended meanwhile counts as nothing; nothing here raises
because of it. Threads that ended before a look are not in the sums (children are, in `cpu_ns`), so
that a figure of a broker that ends threads is too low, never too high.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Iterator

_TICK = os.sysconf("SC_CLK_TCK")
_VANISHED = (FileNotFoundError, ProcessLookupError)


def tree(root: int, but: Collection[int] = ()) -> list[int]:
    """`root` and all that descends from it and still runs, except `but` and their descendants."""
    if root in but or state(root) in ("", "Z", "X"):
        return []
    found = [root]
    for task in _tasks(root):
        for child in _read(f"{task}/children").split():
            found += tree(int(child), but)
    return found


def state(pid: int) -> str:
    """The process's state as in ps(1): R, S, Z ...; "" if there is no such process."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2][1:2]


def start_time(pid: int) -> str:
    """Tells a process from a later one of the same id; "" if there is none."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if fields else ""


def cpu_ns(pids: Iterable[int]) -> int:
    """Nanoseconds on a CPU, of all threads and of children that have ended.

    The children's are in ticks of some milliseconds; they change only when one ends."""
    total = 0
    for pid in pids:
        ended = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[13:15]
        total += sum(map(int, ended)) * (10**9 // _TICK)
        for task in _tasks(pid):
            books = _read(f"{task}/schedstat").split()
            if books:
                total += int(books[0])
            else:
                # A kernel without scheduler statistics: ticks, some milliseconds each.
                fields = _read(f"{task}/stat").rpartition(")")[2].split()
                total += sum(map(int, fields[11:13])) * (10**9 // _TICK)
    return total


def switches(pids: Iterable[int]) -> int:
    """Context switches, wanted and unwanted, of all threads."""
    wanted = re.compile(r"^(?:non)?voluntary_ctxt_switches:\s*(\d+)", re.MULTILINE)
    return sum(
        int(count)
        for pid in pids
        for task in _tasks(pid)
        for count in wanted.findall(_read(f"{task}/status"))
    )


def memory_kb(pids: Iterable[int], *names: str) -> int:
    """The sum of these lines of smaps_rollup: Rss, Pss, Private_Clean ...

    OSError where the kernel does not show them to us."""
    return _sum("smaps_rollup", pids, names)


def peak_kb(pids: Iterable[int]) -> int:
    """The most that was ever resident at once (VmHWM), each process's own peak."""
    return _sum("status", pids, ("VmHWM",))


def reset_peak(pids: Iterable[int]) -> None:
    """Lets `peak_kb` start anew at what is resident now."""
    for pid in pids:
        with contextlib.suppress(*_VANISHED), open(f"/proc/{pid}/clear_refs", "w") as file:
            file.write("5")


def threads(pids: Iterable[int]) -> Iterator[int]:
    """The ids of all threads."""
    for pid in pids:
        for task in _tasks(pid):
            yield int(task.rpartition("/")[2])


def _sum(file: str, pids: Iterable[int], names: tuple[str, ...]) -> int:
    total = 0
    for pid in pids:
        for line in _read(f"/proc/{pid}/{file}").splitlines():
            name, _, value = line.partition(":")
            if name in names:
                total += int(value.split()[0])
    return total


def _tasks(pid: int) -> list[str]:
    try:
        return [f"/proc/{pid}/task/{task}" for task in os.listdir(f"/proc/{pid}/task")]
    except _VANISHED:
        return []


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except _VANISHED:
        return ""
