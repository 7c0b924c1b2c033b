# cython: infer_types=True
"""What an interface of the bus is made of: methods, properties, and how each may be called.

Invariant: these objects are data, made when the package is imported and not changed after a driver
has learned them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.message import Message

from .outgoing import tail

if not cython.compiled:
    from jitney.broker.mem import take

if TYPE_CHECKING:
    from jitney.broker.connection import Connection

    from .driver import Driver

    Handler = Callable[[Driver, Connection, Message], bytes | None]
    """Does what a method says and gives the body of the reply, or None if it has seen to that.

    Raises DBusError or broker.errors.Refused, which become the error reply."""

DRIVER = b"org.freedesktop.DBus"
DRIVER_PATH = b"/org/freedesktop/DBus"


def arg(msg: Message, number: int = 0) -> bytes:
    """A string argument of a call whose signature was found right."""
    return take(msg.p, msg.arg_off[number], msg.arg_len[number])


class Method:
    """One method.

    any_path: it may be called at every object path, as all methods could before dbus 1.7.
    privileged: only root and the user the bus runs as may call it.
    ack: its reply says no more than "done", and so is not sent to callers that want none.
        All other methods reply even then, because dbus-daemon does.

    `tail` is the end of its reply's header, `next` another interface's method of the same name.
    """

    def __init__(
        self,
        name: str,
        in_sig: str,
        out_sig: str,
        handler: Handler,
        *,
        any_path: bool = False,
        privileged: bool = False,
        ack: bool = False,
    ) -> None:
        self.name = name
        self.in_sig = in_sig.encode()
        self.out_sig = out_sig
        self.handler = handler
        self.any_path = any_path
        self.privileged = privileged
        self.ack = ack
        self.member = name.encode()
        self.tail = tail(out_sig)
        self.interface = b""
        self.interface_any_path = False
        self.next: Method | None = None


class Property:
    """One read-only property that never changes: its type and what gives its value."""

    __slots__ = ("getter", "name", "signature")

    def __init__(self, name: str, signature: str, getter: Callable[[Driver], object]) -> None:
        self.name = name
        self.signature = signature
        self.getter = getter


class Interface:
    """One interface; `signals` is a piece of introspection XML, ready to be put in.

    any_path: it exists at every object path. Its methods may still be bound to the bus's own.
    feature: it is listed in the property Interfaces, as something not every bus has.
    """

    __slots__ = ("any_path", "feature", "methods", "name", "properties", "signals")

    def __init__(
        self,
        name: str,
        methods: Sequence[Method],
        *,
        properties: Sequence[Property] = (),
        signals: str = "",
        any_path: bool = False,
        feature: bool = False,
    ) -> None:
        self.name = name
        self.methods = methods
        self.properties = properties
        self.signals = signals
        self.any_path = any_path
        self.feature = feature
        for method in methods:
            method.interface = name.encode()
            method.interface_any_path = any_path
