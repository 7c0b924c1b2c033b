"""Activations as plain data, and back: who waits for what, until when, and which processes were
started for it.

Invariant: a message that waits is told whole, with its descriptors, and its place in the line; a
process is told with what is known of it. Whoever goes on is not its parent: how it ends, a keeper
says; where there is none, an end is an end, and whether it was a failure, the deadline decides.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import signal
import stat
from typing import Any

from jitney.broker.export import text
from jitney.broker.message import Message
from jitney.broker.restore import BadState, Source, raw

from ..activation.activator import Activator
from ..activation.pending import Pending, Waiting
from ..activation.spawn import Child, Spawner
from .peers import Luggage

Record = dict[str, Any]


class Foundling(Child):
    """A process that another one started; see `Child`."""

    __slots__ = ()

    def kill(self) -> None:
        # Whoever is its parent may have reaped it: the number may be another's by now.
        if not self.running or self.pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except AttributeError:
            self.kill_by_number()
        except OSError as error:
            if error.errno == errno.ENOSYS:
                self.kill_by_number()

    def kill_by_number(self) -> None:
        """Before Linux 5.1: in the directory of one who was reaped there is nothing any more."""
        try:
            os.stat("stat", dir_fd=self.pidfd)
            os.kill(self.pid, signal.SIGKILL)
        except OSError:
            pass


def export_activations(activator: Activator, places: dict[Any, int], luggage: Luggage) -> Record:
    children = list(activator.spawner.children.values())
    order = {id(child): i for i, child in enumerate(children)}
    return {
        "environment": [[text(k), text(v)] for k, v in activator.environment.items()],
        "names": sorted(text(name) for name in activator.services.names),
        "asked": [[uid, count] for uid, count in activator.asked.items()],
        "outcomes": [[text(n), how, count] for (n, how), count in activator.outcomes.items()],
        "children": [_child(child, luggage) for child in children],
        "pending": [
            _pending(pending, order, places, luggage) for pending in activator.book.names.values()
        ],
    }


def _child(child: Child, luggage: Luggage) -> Record:
    return {
        "name": child.name,
        "pid": child.pid,
        "report": luggage.fd(child.report) if child.report >= 0 else -1,
        "pidfd": luggage.fd(child.pidfd) if child.pidfd >= 0 else -1,
        "exec_errno": child.exec_errno,
    }


def _pending(
    pending: Pending, order: dict[int, int], places: dict[Any, int], luggage: Luggage
) -> Record:
    child = pending.child
    watched = child is not None and child.on_exit is not None
    return {
        "name": text(pending.name),
        "exec": pending.exec,
        "unit": pending.unit,
        "helper": pending.helper,
        "deadline": pending.deadline,
        "child": order.get(id(child), -1) if child is not None and watched else -1,
        "entries": [_entry(entry, places, luggage) for entry in pending.entries],
    }


def _entry(entry: Waiting, places: dict[Any, int], luggage: Luggage) -> list[Any]:
    if entry.msg is None:
        return [-1, luggage.blob(entry.wire), -1, entry.auto]
    fds = entry.msg.fds
    number = luggage.fd_set(list(fds)) if fds is not None and len(fds) else -1
    return [places[entry.conn], luggage.blob(entry.msg.wire()), number, entry.auto]


def restore_activations(
    activator: Activator,
    record: Record,
    source: Source,
    fds: list[int],
    conns: list[Any],
    kept: bool,
) -> bool:
    """Goes on with them; whether the names that can be started are others now. `kept`: a keeper
    will say how processes end."""
    activator.environment.clear()
    activator.environment.update((raw(k), raw(v)) for k, v in record["environment"])
    activator.asked.update(dict(record["asked"]))
    activator.outcomes.update({(raw(n), how): count for n, how, count in record["outcomes"]})
    children = [_restored(activator.spawner, one, fds, kept) for one in record["children"]]
    for one in record["pending"]:
        _begin(activator, one, source, children, conns)
    return sorted(text(name) for name in activator.services.names) != record["names"]


def _restored(spawner: Spawner, record: Record, fds: list[int], kept: bool) -> Child:
    child = Foundling(
        record["name"],
        record["pid"],
        None,
        fds[record["report"]] if record["report"] >= 0 else -1,
        fds[record["pidfd"]] if record["pidfd"] >= 0 else -1,
        record["exec_errno"],
    )
    spawner.children[child.pid] = child
    if child.report >= 0:
        spawner.loop.add_reader(child.report, spawner._read_report, child)
    if not kept and child.pidfd >= 0 and not stat.S_ISDIR(os.fstat(child.pidfd).st_mode):
        spawner.loop.add_reader(child.pidfd, ended, spawner, child.pid, 0)
    return child


def ended(spawner: Spawner, pid: int, status: int) -> None:
    """A process that we did not start has ended, and somebody has reaped it or will."""
    child = spawner.children.get(pid)
    if isinstance(child, Foundling):
        child.status = status
        spawner._ended(child)


def _begin(
    activator: Activator, record: Record, source: Source, children: list[Child], conns: list[Any]
) -> None:
    pending = Pending(raw(record["name"]), record["exec"], record["unit"], record["helper"])
    pending.deadline = record["deadline"]
    loop: asyncio.AbstractEventLoop = activator.loop
    pending.timer = loop.call_at(pending.deadline, activator._timed_out, pending)
    if record["child"] >= 0:
        pending.child = children[record["child"]]
        pending.child.on_exit = functools.partial(activator._child_ended, pending)
    activator.book.names[pending.name] = pending
    for place, number, fds, auto in record["entries"]:
        data = source.blob(number)
        if place < 0:
            entry = Waiting(None, wire=data, auto=auto)
        else:
            msg = Message()
            if not msg.load(data):
                raise BadState(f"what waits for {pending.shown} is no message")
            if fds >= 0:
                msg.fds = source.fd_set(fds)
            entry = Waiting(conns[place], msg, auto=auto)
        activator.book.add(pending, entry)
    activator.bus.names.set_activator(pending.name, pending)
