"""Machine: what is measured on, and what else was going on there.

Invariant: nothing here fails; a fact that cannot be had is left out.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


def facts() -> dict[str, Any]:
    """CPU, kernel, Python and how busy the machine is before we begin."""
    found: dict[str, Any] = {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            found["cpu"] = value.strip()
        elif name.strip() == "flags":
            found["virtual"] = "hypervisor" in value.split()
            break
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            found["memory_kb"] = int(line.split()[1])
            break
    for line in _lines("/etc/os-release"):
        if line.startswith("PRETTY_NAME="):
            found["system"] = line.partition("=")[2].strip().strip('"')
    return found


class Watch:
    """What others did with the CPUs between two moments."""

    def __init__(self) -> None:
        self.busy, self.steal = _cpu_times()
        self.wall = time.perf_counter()
        self.ours = time.process_time()

    def others(self, broker_seconds: float) -> float:
        """CPUs that were busy with neither us nor the broker, on average since the beginning."""
        wall = time.perf_counter() - self.wall
        used = _cpu_times()[0] - self.busy - broker_seconds - (time.process_time() - self.ours)
        return max(0.0, used / wall) if wall > 0 else 0.0

    def stolen(self) -> float:
        """Share of all CPU time that the host took."""
        wall = time.perf_counter() - self.wall
        cpus = os.cpu_count() or 1
        return (_cpu_times()[1] - self.steal) / (wall * cpus) if wall > 0 else 0.0


def _cpu_times() -> tuple[float, float]:
    """Seconds that all CPUs together were busy, and that the host took from them."""
    for line in _lines("/proc/stat"):
        if line.startswith("cpu "):
            user, nice, system, _idle, _wait, irq, soft, steal = map(int, line.split()[1:9])
            return (user + nice + system + irq + soft) / TICKS, steal / TICKS
    return 0.0, 0.0


def _lines(path: str) -> Iterable[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readlines()
    except OSError:
        return ()
