"""Front: what the core's events mean in classic D-Bus.

Invariant: the core calls in here, this file turns the call into messages of the driver (or
into a log line) and gives them back to `Bus.emit()`. It keeps no routing state of its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from jitney.broker.bus import Bus
from jitney.broker.connection import Connection
from jitney.broker.errors import ACCESS_DENIED, LIMITS, Refused
from jitney.broker.errors import NOT_SUPPORTED as UNSUPPORTED
from jitney.broker.message import Message
from jitney.broker.policy import NO_UID

from .auth import Auth
from .config.names import at_console, settle, user_groups
from .endpoints.guard import turn_back, unasked
from .errors import LIMITS_EXCEEDED, NAMES, NO_REPLY, NOT_SUPPORTED, SERVICE_UNKNOWN, DBusError
from .peer import Peer

if TYPE_CHECKING:
    from jitney.broker.policy import ClientPolicy, PolicySet

    from .driver import Driver
DRIVER = "org.freedesktop.DBus"
TYPES = {1: "method_call", 2: "method_return", 3: "error", 4: "signal"}

# As much of a command line as dbus-daemon puts into its log.
COMMAND_LENGTH = 50


class Front:
    """The classic side of one bus. Whoever builds it gives it its driver, activator and hub.

    What the core asks for most is the driver's own business; `use_driver()` lets the core call it
    without a detour through here."""

    def __init__(self, bus: Bus, policies: PolicySet, log: Any) -> None:
        self.bus = bus
        self.policies = policies
        self.sink = log
        self.uid = os.geteuid()
        self.driver: Any = None
        self.activator: Any = None
        self.hub: Any = None
        self.doors: Any = None
        self.mediation: Any = None
        self.known: set[int] = set()
        self.shared: dict[int | None, Any] = {}

    def use_driver(self, driver: Driver) -> None:
        self.driver = driver
        self.driver_call = driver.call
        self.undirected = driver.undirected
        self.name_owner_changed = driver.name_owner_changed
        self.name_acquired = driver.name_acquired
        self.name_lost = driver.name_lost

    # Who gets in

    def admit(self, peer: Peer, auth: Auth) -> Connection | None:
        """An authenticated peer: its connection, or None if the policy does not let it in."""
        uid = auth.identity
        # An anonymous peer gets here only where <allow_anonymous/> lets it.
        if uid is not None and not self.may_connect(uid):
            self.denied(
                f"Rejected connection of user {uid}", self.policies, reason="connect", uid=uid
            )
            return None
        if self.mediation is not None and not self.mediation.admits(peer.creds):
            return None
        conn = self.bus.connect(uid)
        conn.transport = peer
        conn.creds = peer.creds
        if self.mediation is not None:
            self.mediation.enter(conn)
        conn.accepts_fds = auth.unix_fds
        if peer.listener.endpoint is not None:
            peer.listener.endpoint.enter(conn)
        return conn

    def may_connect(self, uid: int) -> bool:
        """Whether the policy lets this user in. The user database is asked once, and again after
        a reload, as dbus-daemon does; but for users it did not know, who may come to be."""
        if uid in self.known:
            return True
        if not self.look_up(uid):
            return False
        self.known.add(uid)
        return True

    def look_up(self, uid: int) -> bool:
        self.shared.clear()
        groups = user_groups(uid)
        if groups is None and uid == self.uid:
            # The bus's own user needs no entry in any database: containers run under any uid.
            groups = []
        if groups is not None and not settle(self.policies, uid, groups):
            return False
        return self.policies.may_connect(uid, groups, self.uid)

    def give_policy(self, conn: Connection) -> None:
        """Sets the connection's policy from the rules in force; at Hello, and after a reload."""
        if self.mediation is not None and conn.subject is None:
            self.mediation.enter(conn)
        uid = conn.user.uid
        policy = self.shared.get(uid)
        if policy is not None:
            self.bus.set_policy(conn, policy)
            return
        groups: list[int] = []
        if self.policies.asks_groups:
            groups = conn.creds.groups() or []
        console = self.policies.asks_console and uid is not None and at_console(uid)
        policy = self.policies.client(NO_UID if uid is None else uid, groups, console)
        if not self.policies.asks_groups and not self.policies.asks_console:
            # Nothing but the uid makes a difference.
            self.shared[uid] = policy
        self.bus.set_policy(conn, policy)

    def set_policies(self, policies: PolicySet) -> None:
        """Takes over new rules for everybody at once."""
        self.policies = policies
        self.known.clear()
        self.shared.clear()
        for conn in list(self.bus.connections.values()):
            self.give_policy(conn)

    def registered(self, conn: Connection) -> None:
        """The core gave the connection its id: Hello is about to be answered."""
        self.give_policy(conn)
        if self.hub is not None:
            self.hub.completed(conn.transport)

    def gone(self, conn: Connection) -> None:
        """The connection's socket is about to be closed."""
        if conn.monitor:
            self.log(
                "info", f"Monitoring connection {conn.label} closed.", "monitor-gone", conn=conn
            )
        self.waits_no_more(conn)
        if self.doors is not None:
            self.doors.gone(conn)

    def waits_no_more(self, conn: Connection) -> None:
        """The connection is gone, or a monitor now: it waits for no service."""
        if self.activator is not None and self.activator.callers:
            self.activator.connection_gone(conn)

    # Calls of the core

    def misbehaved(self, conn: Connection, msg: Message) -> None:
        """Somebody sent what nobody in his state may send: that is the end of him."""
        if conn.monitor:
            self.log(
                "warning",
                f"Monitoring connection {conn.label} ({loginfo(conn)}) is not allowed to send "
                "messages; closing it. Please fix the monitor to not do that. "
                f'({describe(msg)} destination="{shown(msg.destination, DRIVER)}")',
                "misbehaved",
                conn=conn,
                msg=msg,
                reason="monitors are silent",
            )
        self.hub.drop(conn.transport)

    def refused(self, conn: Connection, msg: Message, refused: Refused | DBusError) -> None:
        """The error reply to a refused message, be it a call or not, as dbus-daemon sends it; but
        for clients of an endpoint."""
        if conn.endpoint is not None and unasked(conn, msg):
            return
        name = NAMES[refused.code] if isinstance(refused, Refused) else refused.name
        self.say_no(conn, msg.serial, name, refused.text)

    def withheld(
        self,
        conn: Connection,
        dest: Connection | None,
        msg: Message,
        problem: Refused | DBusError,
    ) -> None:
        """A security module keeps a message from `dest` (None: the bus)."""
        if conn.counts is not None:
            conn.counts.refused(ACCESS_DENIED)
        if self.bus.monitors:
            if conn.id == 0:
                self.bus.capture(msg, conn, None)
            self.judged(conn, dest, msg, ACCESS_DENIED, problem.text, None)
        self.refused(conn, msg, problem)

    def capture_withheld(
        self, conn: Connection, dest: Connection, msg: Message, problem: Refused | DBusError
    ) -> None:
        """The same for a broadcast: monitors see the error that nobody else gets."""
        if self.bus.monitors:
            name = NAMES[problem.code] if isinstance(problem, Refused) else problem.name
            self.driver.capture_error(conn, msg.serial, name, problem.text)
            self.judged(conn, dest, msg, ACCESS_DENIED, problem.text, None)

    def turned_back(
        self, conn: Connection, dest: Connection | None, msg: Message, hidden: bool
    ) -> None:
        """The endpoint that the sender came in by keeps its message from `dest` (None: from a name
        without an owner, or the bus); `hidden`: as if nobody were there."""
        turn_back(self, conn, dest, msg, hidden)

    def no_reply(self, caller: Connection, serial: int, text: str) -> None:
        self.say_no(caller, serial, NO_REPLY, text)

    def say_no(self, conn: Connection, serial: int, name: str, text: str) -> None:
        """An error, or, where there is no memory for one, the end of the connection: nobody is to
        wait in vain."""
        try:
            self.driver.error(conn, serial, name, text)
        except MemoryError:
            self.log("warning", f"Closing a connection: no memory to answer {conn.label}")
            if conn.transport is not None:
                self.hub.drop(conn.transport)

    def deadline(self, when: float) -> None:
        self.hub.alarm(when)

    def name_owned(self, conn: Connection, name: bytes) -> None:
        if self.activator is not None:
            self.activator.name_owned(name, conn)

    def activate(self, conn: Connection, msg: Message, name: bytes) -> Refused | DBusError | None:
        """Nobody owns `name`: None if the message waits for a service now, else what to answer."""
        try:
            if self.activator is not None and self.activator.activate(conn, msg, name):
                return None
        except (DBusError, Refused) as problem:
            return problem
        return DBusError(
            SERVICE_UNKNOWN, f"The name {name.decode()} was not provided by any .service files"
        )

    def wake(self) -> None:
        self.hub.wake()

    # What went wrong, in words

    def complaint(
        self,
        conn: Connection | None,
        proposed: Connection | None,
        msg: Message,
        what: str,
        matched: int,
        requested: bool,
    ) -> str:
        """dbus-daemon's sentence about a message that may not pass (conn None: the bus's own)."""
        sender, who = "(unset)", "(bus)"
        if conn is not None and conn.unique_name:
            sender, who = conn.label, loginfo(conn)
        elif conn is not None:
            # Its Hello is refused; printf's word for a name that is not there yet.
            sender, who = "(null)", "inactive"
        return (
            f'{what}, {matched} matched rules; type="{TYPES.get(msg.type, "unknown")}", '
            f'sender="{sender}" ({who}) '
            f'interface="{shown(msg.interface)}" member="{shown(msg.member)}" '
            f'error name="{shown(msg.error_name)}" requested_reply="{int(requested)}" '
            f'destination="{shown(msg.destination, "org.freedesktop.DBus")}" '
            f"({loginfo(proposed) if proposed is not None else 'bus'})"
        )

    def capture_denied(
        self,
        conn: Connection | None,
        proposed: Connection,
        msg: Message,
        what: str,
        policy: ClientPolicy,
    ) -> None:
        """A broadcast did not reach somebody: monitors see the error that nobody else gets."""
        if self.bus.monitors:
            text = self.complaint(conn, proposed, msg, what, policy.matched, False)
            self.driver.capture_error(conn, msg.serial, NAMES[ACCESS_DENIED], text)
            self.judged(conn, proposed, msg, ACCESS_DENIED, what, policy)

    def unfit(self, sender: Connection | None, dest: Connection, msg: Message) -> None:
        """A broadcast has descriptors, which this receiver cannot take."""
        if self.bus.monitors:
            text = (
                f"broadcast cannot be delivered to {dest.label} ({loginfo(dest)}) because it does "
                "not support receiving Unix fds"
            )
            self.driver.capture_error(sender, msg.serial, NOT_SUPPORTED, text)
            self.judged(sender, dest, msg, UNSUPPORTED, "it takes no descriptors", None)

    def denied_own(self, dest: Connection, msg: Message, policy: ClientPolicy) -> None:
        """The receiver's policy keeps it from the driver's own word."""
        text = self.complaint(
            None, dest, msg, "Rejected receive message", policy.matched, msg.reply_serial != 0
        )
        self.denied(text, policy, dest=dest, msg=msg, reason="Rejected receive message")
        if self.bus.monitors:
            self.driver.capture_error(None, msg.serial, NAMES[ACCESS_DENIED], text)
            self.judged(None, dest, msg, ACCESS_DENIED, text, policy)

    def would_reject(
        self,
        conn: Connection,
        proposed: Connection | None,
        msg: Message,
        policy: ClientPolicy,
        requested: bool,
    ) -> None:
        self.denied(
            self.complaint(conn, proposed, msg, "Would reject message", policy.matched, requested),
            policy,
            "would-deny",
            conn=conn,
            dest=proposed,
            msg=msg,
            reason="Would reject message",
        )

    def dropped(self, sender: Connection | None, dest: Connection, msg: Message) -> None:
        """A receiver's queue is full: its loss is counted, and logged once per thousand."""
        if dest.dropped % 1000 == 1:
            who = sender.label if sender is not None else "the bus"
            self.log(
                "warning",
                f"Dropped a message ({describe(msg)}) from {who} to {dest.label} "
                f"({loginfo(dest)}): its queue is full ({dest.queue.size} bytes); "
                f"{dest.dropped} dropped so far",
                "dropped",
                conn=sender,
                dest=dest,
                msg=msg,
                reason="its queue is full",
                dropped=dest.dropped,
            )
        if self.bus.monitors:
            text = self.complaint(
                sender, dest, msg, "Rejected: destination has a full message queue", 0, False
            )
            self.driver.capture_error(sender, msg.serial, LIMITS_EXCEEDED, text)
            self.judged(sender, dest, msg, LIMITS, "its queue is full", None)

    def judged(
        self,
        sender: Connection | None,
        dest: Connection | None,
        msg: Message,
        code: str,
        why: str,
        policy: ClientPolicy | None,
    ) -> None:
        """Tracers learn what kept a message from somebody: the rule, if it was a policy."""
        for conn in self.bus.monitor_index.collect(msg, sender, dest):
            tracer = conn.tracer
            if tracer is not None:
                reason = decided_by(policy) if policy is not None else why
                tracer.verdict(msg, sender, dest, NAMES[code].encode(), reason.encode())

    def denied(
        self,
        text: str,
        policy: ClientPolicy | PolicySet | None,
        event: str = "denied",
        **about: Any,
    ) -> None:
        """A refusal, for the log: dbus-daemon's sentence and the rule behind it. `event`, `about`:
        see `events.fields`."""
        shown = text if policy is None else f"{text} ({decided_by(policy)})"
        self.log("security", shown, event, policy=policy, **about)

    def log(self, severity: str, text: str, event: str = "", **about: Any) -> None:
        if event and self.sink.structured:
            from .events import fields

            self.sink.log(severity, text, fields(event, **about))
        else:
            self.sink.log(severity, text)


def decided_by(policy: ClientPolicy | PolicySet) -> str:
    """Where the rule stands that made the policy's latest decision."""
    rule = policy.rule
    return f"rule: {rule.file}:{rule.line}" if rule is not None else "no rule allows it"


def shown(value: bytes | None, unset: str = "(unset)") -> str:
    return value.decode() if value is not None else unset


def describe(msg: Message) -> str:
    return (
        f'message type="{TYPES.get(msg.type, "unknown")}" interface="{shown(msg.interface)}" '
        f'member="{shown(msg.member)}" error name="{shown(msg.error_name)}"'
    )


def loginfo(conn: Connection) -> str:
    """Who a peer is, as dbus-daemon's log has it: uid, pid, command line, security label. Asked for
    once: a flood of refused messages must not keep the bus reading /proc."""
    creds = conn.creds
    if creds is None:
        return _loginfo(conn)
    if creds.described is None:
        creds.described = _loginfo(conn)
    described: str = creds.described
    return described


def _loginfo(conn: Connection) -> str:
    parts = []
    if conn.user.uid is not None:
        parts.append(f"uid={conn.user.uid}")
    creds = conn.creds
    if creds is not None and creds.pid is not None:
        parts.append(f'pid={creds.pid} comm="{command_of(creds.pid)}"')
    label = creds.label() if creds is not None else None
    if label is not None:
        parts.append(f'label="{label.decode("utf-8", "replace")}"')
    return " ".join(parts)


def command_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            raw = file.read(COMMAND_LENGTH).removesuffix(b"\0")
    except OSError:
        return ""
    return "".join([" " if c == 0 else chr(c) if 32 <= c < 128 else "?" for c in raw])
