"""OpenMetrics: what a bus counts, as text for Prometheus and the like.

Invariant: no unique name is ever a label, so that the number of series has an end; counters only
grow as long as the bus lives. The text is put together in slices of SLICE, and between two of them
the bus does its work: numbers of one text may be as far apart as that takes.

Written by hand: the format is a line a number. A client library would keep each of them a second
time, as an object with a lock, and would be one more thing that a bus has to load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from jitney.broker.meter import BUCKETS, FLOOR

from . import snapshot

if TYPE_CHECKING:
    from jitney.broker.meter import Counts

    from .assembly import BusService

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
SLICE = 0.0005
"""Seconds."""

_TYPES = ("unknown", "method_call", "method_return", "error", "signal")
_BOUNDS = [f"{(FLOOR << i) / 1e6:g}" for i in range(BUCKETS - 1)] + ["+Inf"]

_OF_BUS = {
    "jitney_connections": ("gauge", "Peers on the bus, monitors among them."),
    "jitney_monitors": ("gauge", "Peers that monitor the bus."),
    "jitney_incomplete_connections": ("gauge", "Connections that have not said Hello yet."),
    "jitney_names": ("gauge", "Well-known names that are owned or waited for."),
    "jitney_match_rules": ("gauge", "Match rules of all peers."),
    "jitney_calls_in_flight": ("gauge", "Calls whose reply is awaited."),
    "jitney_services_starting": ("gauge", "Names for which a service is being started."),
    "jitney_queued_bytes": ("gauge", "Bytes that wait in all queues."),
    "jitney_messages": ("counter", "Messages that came in."),
    "jitney_messages_refused": ("counter", "Messages refused, for the policy or a full queue."),
    "jitney_messages_dropped": ("counter", "Broadcasts that did not reach somebody: queue full."),
    "jitney_log_lines_lost": ("counter", "Log lines that could not be written."),
    "jitney_limit_ratio": ("gauge", "How much of a limit of the whole bus is used."),
    "jitney_start_time_seconds": ("gauge", "When the bus was started, in Unix time."),
    "jitney_memory_bytes": ("gauge", "Memory of the process."),
}
_OF_USERS = {
    "jitney_user_connections": ("gauge", "Connections of a user."),
    "jitney_user_queued_bytes": ("gauge", "Bytes that wait for a user's connections."),
    "jitney_user_unread_bytes": ("gauge", "Bytes that a user's connections sent and nobody read."),
    "jitney_user_limit_ratio": ("gauge", "How much of a limit a user uses."),
}
_OF_BOTH = {
    "messages_sent": ("counter", "Messages sent, by type."),
    "messages_received": ("counter", "Messages received, by type."),
    "bytes_sent": ("counter", "Bytes sent."),
    "bytes_received": ("counter", "Bytes received."),
    "refusals": ("counter", "Messages and calls to the bus that were refused."),
    "drops": ("counter", "Broadcasts missed because the queue was full."),
    "queue_seconds": ("histogram", "How long messages waited beyond the round they came in."),
    "reply_seconds": ("histogram", "How long callers waited for replies."),
}
_STARTED = {
    "jitney_user_activations": ("counter", "Services started on behalf of a user."),
    "jitney_name_activations": ("counter", "Services started, by what came of it."),
}


class Families:
    """Lines by metric, in the order in which they are written out."""

    def __init__(self) -> None:
        self.kinds = {
            **_OF_BUS,
            **_OF_USERS,
            **{f"jitney_user_{key}": value for key, value in _OF_BOTH.items()},
            **{f"jitney_name_{key}": value for key, value in _OF_BOTH.items()},
            **_STARTED,
        }
        self.lines: dict[str, list[str]] = {name: [] for name in self.kinds}

    def add(self, name: str, value: float, labels: str = "") -> None:
        suffix = "_total" if self.kinds[name][0] == "counter" else ""
        self.lines[name].append(f"{name}{suffix}{{{labels}}} {value}" if labels
                                else f"{name}{suffix} {value}")  # fmt: skip

    def add_histogram(self, name: str, labels: str, buckets: list[int], total_us: int) -> None:
        lines = self.lines[name]
        seen = 0
        for bound, number in zip(_BOUNDS, buckets, strict=True):
            seen += number
            lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {seen}')
        lines.append(f"{name}_count{{{labels}}} {seen}")
        lines.append(f"{name}_sum{{{labels}}} {total_us / 1e6}")

    def add_counts(self, what: str, labels: str, counts: Counts) -> None:
        start = f"jitney_{what}_"
        sent, sent_bytes, received, received_bytes = counts.traffic()
        for way, numbers in (("sent", sent), ("received", received)):
            for kind, number in zip(_TYPES, numbers, strict=True):
                if number:
                    self.add(f"{start}messages_{way}", number, f'{labels},type="{kind}"')
        self.add(f"{start}bytes_sent", sent_bytes, labels)
        self.add(f"{start}bytes_received", received_bytes, labels)
        self.add(f"{start}refusals", counts.denied, f'{labels},reason="policy"')
        self.add(f"{start}refusals", counts.limited, f'{labels},reason="limit"')
        self.add(f"{start}drops", counts.dropped, labels)
        if counts.gone:
            self.add_histogram(f"{start}queue_seconds", labels, *counts.waited())
        if counts.replies is not None:
            replies = counts.replies
            self.add_histogram(f"{start}reply_seconds", labels, replies.values(), replies.sum)

    def text(self, classic: bool) -> bytes:
        """`classic`: what node_exporter reads from text files, where a counter's name is whole."""
        parts = []
        for name, (kind, about) in self.kinds.items():
            lines = self.lines[name]
            if lines:
                shown = f"{name}_total" if classic and kind == "counter" else name
                parts.append(f"# TYPE {shown} {kind}\n# HELP {shown} {about}\n")
                parts.append("\n".join(lines) + "\n")
        parts.append("# EOF\n")
        return "".join(parts).encode()


async def collect(service: BusService) -> Families:
    """All that the bus counts, as of now and the slices after."""
    families = Families()
    _add_bus(families, service)
    bus = service.bus
    for _ in _slices(list(bus.connections.values()), bus.settle):
        await asyncio.sleep(0)
    for _ in _slices(bus.accounts.users, lambda who: _add_user(families, service, who)):
        await asyncio.sleep(0)
    totals = bus.name_totals
    for _ in _slices(
        list(totals.by_name.items()),
        lambda item: families.add_counts("name", f'name="{snapshot.text(item[0])}"', item[1]),
    ):
        await asyncio.sleep(0)
    if totals.rest.sent_bytes or totals.rest.received_bytes:
        families.add_counts("name", 'name=""', totals.rest)
    activator = service.activator
    for uid, n in activator.asked.items():
        families.add("jitney_user_activations", n, _uid(uid))
    for (name, outcome), n in activator.outcomes.items():
        labels = f'name="{snapshot.text(name)}",outcome="{outcome}"'
        families.add("jitney_name_activations", n, labels)
    return families


def _slices(things: Iterable[Any], do: Any) -> Iterator[None]:
    """Does it to each; yields whenever SLICE is over."""
    end = time.monotonic() + SLICE
    for thing in things:
        do(thing)
        if time.monotonic() > end:
            yield
            end = time.monotonic() + SLICE


def _uid(uid: int | None) -> str:
    return f'uid="{"anonymous" if uid is None else uid}"'


def _add_bus(families: Families, service: BusService) -> None:
    bus = service.bus
    about = snapshot.about_bus(bus)
    incomplete = len(service.hub.incomplete)
    add = families.add
    add("jitney_connections", about["connections"])
    add("jitney_monitors", about["monitors"])
    add("jitney_incomplete_connections", incomplete)
    add("jitney_names", about["names"])
    add("jitney_match_rules", about["matches"])
    add("jitney_calls_in_flight", about["calls"])
    add("jitney_services_starting", len(service.activator.book.names))
    add("jitney_queued_bytes", about["queued_bytes"])
    add("jitney_messages", about["messages"])
    add("jitney_messages_refused", about["denied"])
    add("jitney_messages_dropped", about["dropped"])
    add("jitney_log_lines_lost", service.log.lost)
    limits = bus.limits
    for limit, value in (
        ("max_completed_connections", about["connections"]),
        ("max_incomplete_connections", incomplete),
        ("max_pending_service_starts", service.activator.book.total.messages),
    ):
        ratio = value / max(1, getattr(limits, limit))
        add("jitney_limit_ratio", round(ratio, 4), f'limit="{limit}"')
    add("jitney_start_time_seconds", round(time.time() - time.monotonic() + service.started, 3))
    add("jitney_memory_bytes", snapshot.memory())


def _add_user(families: Families, service: BusService, who: Any) -> None:
    if who.index == 0 or (who.totals is None and not who.connections):
        return
    bus = service.bus
    labels = _uid(who.uid)
    families.add("jitney_user_connections", who.connections, labels)
    families.add("jitney_user_queued_bytes", who.kept_bytes, labels)
    families.add("jitney_user_unread_bytes", who.bytes, labels)
    for limit, value, most in (
        ("max_connections_per_user", who.connections, bus.limits.max_connections_per_user),
        ("queued_bytes", who.kept_bytes, bus.pool.user_bytes),
        ("queued_unix_fds", who.kept_fds, bus.pool.user_fds),
    ):
        ratio = round(value / max(1, most), 4)
        families.add("jitney_user_limit_ratio", ratio, f'{labels},limit="{limit}"')
    if who.totals is not None:
        families.add_counts("user", labels, who.totals)
