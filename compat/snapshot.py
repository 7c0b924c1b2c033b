"""Snapshot: what the state of a bus is, as plain data that JSON can carry.

Invariant: looking changes nothing but the clock's reading, reads where the state stands and asks
nobody, neither /proc (but for the bus's own size) nor the user database: that is for those who
show it. One record costs some ten microseconds, whatever the connection has; what it may have very
many of is cut.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from jitney.broker.connection import MONITOR
from jitney.broker.limits import USER_OBJECTS

from . import matchrule

if TYPE_CHECKING:
    from jitney.broker.accounting import User
    from jitney.broker.bus import Bus
    from jitney.broker.connection import Connection
    from jitney.broker.names import Name

    from .assembly import BusService
    from .daemon import Daemon

Record = dict[str, Any]

SHOWN = 20
"""So many names, claims, calls and shares of one thing."""
PRESSED = 0.5
"""A limit is near from this part of it on."""


def now(bus: Bus) -> int:
    """The time, as `Accounts.moment` has it: always 0 where a bus does not count."""
    return int(bus.clock() * 1_000_000) if bus.metered else 0


def text(name: bytes) -> str:
    return name.decode("ascii", "replace")


def names_of(conn: Connection) -> list[str]:
    """The names that it owns, the first SHOWN."""
    return [text(name) for name, _ in zip(conn.owned, range(SHOWN), strict=False)]


def peer(conn: Connection, bus: Bus, moment: int) -> Record:
    """One connection; see docs/inspect.md for the fields."""
    queue = conn.queue
    oldest = queue.oldest()
    owed = bus.replies.oldest_owed(conn)
    transport = conn.transport
    record: Record = {
        "name": text(conn.unique_name),
        "uid": conn.user.uid,
        "pid": conn.creds.pid if conn.creds is not None else None,
        "monitor": conn.state == MONITOR,
        "age_us": max(0, moment - conn.since),
        "names": names_of(conn),
        "n_names": len(conn.owned),
        "n_waits_for": len(conn.names) - len(conn.owned),
        "matches": conn.n_rules,
        "queued_messages": len(queue),
        "queued_bytes": queue.size,
        "queued_fds": queue.n_fds,
        "queued_us": max(0, moment - oldest) if oldest else 0,
        "peak_bytes": conn.peak_size,
        "held": bool(getattr(transport, "held", False)),
        "calls": conn.n_calls,
        "owes": conn.n_owes,
        "owes_us": max(0, moment - owed) if owed else 0,
        "dropped": conn.dropped,
    }
    if conn.endpoint is not None:
        record["endpoint"] = text(conn.endpoint.name)
    if conn.tallies:
        waits = [
            (tally.receiver.uid, tally.bytes) for tally in conn.tallies.values() if tally.bytes
        ]
        if waits:
            record["waits_at"] = waits[:SHOWN]
    counts = conn.counts
    if counts is not None:
        sent, sent_bytes, received, received_bytes = counts.traffic()
        record["sent"] = sent
        record["sent_bytes"] = sent_bytes
        record["received"] = received
        record["received_bytes"] = received_bytes
        record["denied"] = counts.denied
        record["limited"] = counts.limited
        if counts.replies is not None:
            record["replies"] = counts.replies.values()
    return record


def details(conn: Connection, bus: Bus, moment: int) -> Record:
    """Who waits for its replies, the longest first, and some of those for whose it waits; some of
    its match rules; who fills the queues of its user's connections."""
    return {
        "filled_by": user(conn.user)["filled_by"],
        "rules": [matchrule.format(rule) for rule in conn.some_rules(0, SHOWN)],
        "owed": [
            (text(caller.unique_name), serial, max(0, moment - since))
            for caller, serial, since in bus.replies.owed(conn, SHOWN)
        ],
        "awaited": [
            (text(callee.unique_name), serial, max(0, moment - since))
            for callee, serial, since in bus.replies.awaited(conn, SHOWN)
        ],
    }


def user(who: User) -> Record:
    """One user: what its connections have and keep of others', and who fills their queues."""
    shares = sorted(
        (share for share in who.shares.values() if share.bytes or share.fds),
        key=lambda share: share.bytes,
        reverse=True,
    )
    return {
        "uid": who.uid,
        "bus": who.index == 0,
        "connections": who.connections,
        "names": who.names,
        "matches": who.matches,
        "calls": who.replies,
        "sent_waiting_bytes": who.bytes,
        "sent_waiting_fds": who.fds,
        "queued_bytes": who.kept_bytes,
        "queued_fds": who.kept_fds,
        # The bus itself says what it says on its own account.
        "filled_by": [
            ("bus" if share.sender.index == 0 else share.sender.uid, share.bytes, share.fds)
            for share in shares[:SHOWN]
        ],
    }


def name(entry: Name) -> Record:
    """One well-known name, its owner and who waits to own it."""
    owner = entry.owner
    claims = entry.queue[1 : SHOWN + 1] if owner is not None else []
    return {
        "name": text(entry.text),
        "owner": text(owner.unique_name) if owner is not None else None,
        "uid": owner.user.uid if owner is not None else None,
        "pid": owner.creds.pid if owner is not None and owner.creds is not None else None,
        "queue": [text(claim.conn.unique_name) for claim in claims if claim.conn is not None],
        "n_queue": max(0, len(entry.queue) - 1),
    }


def pressed_peer(conn: Connection, bus: Bus) -> list[Record]:
    """The limits of which this connection uses PRESSED or more."""
    limits = bus.limits
    pool = bus.pool
    return _near(
        text(conn.unique_name),
        ("max_outgoing_bytes", conn.queue.size, pool.bytes),
        ("max_outgoing_unix_fds", conn.queue.n_fds, pool.fds),
        ("max_match_rules_per_connection", conn.n_rules, limits.max_match_rules_per_connection),
        ("max_names_per_connection", len(conn.names), limits.max_names_per_connection),
        ("max_replies_per_connection", conn.n_calls, limits.max_replies_per_connection),
    )


def pressed_user(who: User, bus: Bus) -> list[Record]:
    """The same for all connections of a user together."""
    if who.index == 0:
        return []
    limits = bus.limits
    pool = bus.pool
    of_users = (
        ("user's queues, bytes", who.kept_bytes, pool.user_bytes),
        ("user's queues, descriptors", who.kept_fds, pool.user_fds),
        ("user's matches", who.matches, limits.max_match_rules_per_connection * USER_OBJECTS),
        ("user's names", who.names, limits.max_names_per_connection * USER_OBJECTS),
        ("user's calls", who.replies, limits.max_replies_per_connection * USER_OBJECTS),
    )
    if who.uid is not None:
        per_user = ("max_connections_per_user", who.connections, limits.max_connections_per_user)
        return _near(f"uid {who.uid}", per_user, *of_users)
    return _near("anonymous", *of_users)


def _near(who: str, *limits: tuple[str, int, int]) -> list[Record]:
    return [
        {"limit": limit, "who": who, "value": value, "max": most}
        for limit, value, most in limits
        if value >= most * PRESSED
    ]


def about_bus(bus: Bus) -> Record:
    """The bus as a whole."""
    users = bus.accounts.users
    connections = len(bus.connections)
    return {
        "connections": connections,
        "monitors": len(bus.monitors),
        "names": sum(who.names for who in users),
        "matches": sum(who.matches for who in users),
        "calls": len(bus.replies),
        "queued_bytes": sum(who.kept_bytes for who in users),
        "queued_fds": sum(who.kept_fds for who in users),
        "messages": bus.n_messages,
        "denied": bus.n_denied,
        "dropped": bus.n_dropped,
        "counted": bus.metered,
        "limits": dict(vars(bus.limits)),
        "near": _near(
            "bus", ("max_completed_connections", connections, bus.limits.max_completed_connections)
        ),
    }


def about_daemon(service: BusService, daemon: Daemon) -> Record:
    """And what the daemon around it adds."""
    from jitney.broker import __version__
    from jitney.broker.mem import COMPILED

    held = service.activator.book.total
    incomplete = len(service.hub.incomplete)
    limits = service.bus.limits
    return {
        "version": __version__,
        "compiled": COMPILED,
        "pid": os.getpid(),
        "uid": os.geteuid(),
        "guid": service.bus.guid,
        "address": daemon.address,
        "uptime_us": int((time.monotonic() - service.started) * 1_000_000),
        "memory_bytes": memory(),
        "incomplete": incomplete,
        "starting": [
            {"name": pending.shown, "messages": pending.held.messages}
            for pending, _ in zip(service.activator.book.names.values(), range(SHOWN), strict=False)
        ],
        "log_lines_lost": daemon.log.lost,
        "near": _near(
            "bus",
            ("max_incomplete_connections", incomplete, limits.max_incomplete_connections),
            ("max_pending_service_starts", held.messages, limits.max_pending_service_starts),
        ),
    }


def memory() -> int:
    """Bytes of memory that the process has, or 0."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
