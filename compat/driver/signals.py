# cython: infer_types=True
"""The signals the bus sends of itself.

Invariant: each is exactly what dbus-daemon sends: no reply expected, path and interface of
the bus, and a destination if it concerns only one connection. Those of names come with every
connection and every name, so nothing of them is parsed: where their fields are is known.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from jitney.broker._cython import cython

from jitney.broker.message import Message

from .. import wire
from .outgoing import Outgoing, tail, text_field
from .table import DRIVER, DRIVER_PATH

if not cython.compiled:
    from ..wire import string, three_strings

INTROSPECTION = """\
    <signal name="NameOwnerChanged">
      <arg type="s"/>
      <arg type="s"/>
      <arg type="s"/>
    </signal>
    <signal name="NameLost">
      <arg type="s"/>
    </signal>
    <signal name="NameAcquired">
      <arg type="s"/>
    </signal>
    <signal name="ActivatableServicesChanged">
    </signal>
"""


def _fields(member: bytes) -> bytes:
    return (
        text_field(1, b"o", DRIVER_PATH) + text_field(2, b"s", DRIVER) + text_field(3, b"s", member)
    )


class Signals:
    """What their signals are made of, and the one NameOwnerChanged that is used again and again."""

    def __init__(self) -> None:
        self.owner_changed = _fields(b"NameOwnerChanged")
        self.acquired = _fields(b"NameAcquired")
        self.lost = _fields(b"NameLost")
        self.tail = tail("s")
        self.tail3 = tail("sss")
        self.out = Outgoing()
        self.msg = Message()
        self.name_owner_changed(1, b"a.b", b"", b"")
        if not self.msg.load(bytes(self.out.buffer)):
            raise ValueError("the driver makes an invalid NameOwnerChanged")

    def name_owner_changed(self, serial: int, name: bytes, old: bytes, new: bytes) -> Message:
        """Broadcast: `name` went from the unique name `old` to `new`; nobody is b"".

        The message is good until the next one is made."""
        out = self.out
        body = three_strings(name, old, new)
        out.write(4, serial, self.owner_changed, None, b"", 0, self.tail3, body)
        # The header is as long as ever, so all fields are where the parser found them; the
        # arguments are not.
        msg = self.msg
        buffer = out.buffer
        msg.p = buffer.p
        msg.owner = None
        msg.serial = serial
        msg.size = buffer.end
        msg.body_len = len(body)
        pos = msg.body_off + 4
        n = len(name)
        msg.arg_off[0] = pos
        msg.arg_len[0] = n
        pos = ((pos + n + 4) & ~3) + 4
        n = len(old)
        msg.arg_off[1] = pos
        msg.arg_len[1] = n
        pos = ((pos + n + 4) & ~3) + 4
        msg.arg_off[2] = pos
        msg.arg_len[2] = len(new)
        return msg

    def name_acquired(self, out: Outgoing, serial: int, destination: bytes, name: bytes) -> None:
        body = string(name)
        out.write(4, serial, self.acquired, destination, b"", 0, self.tail, body)

    def name_lost(self, out: Outgoing, serial: int, destination: bytes, name: bytes) -> None:
        body = string(name)
        out.write(4, serial, self.lost, destination, b"", 0, self.tail, body)

    def activatable_services_changed(self, serial: int) -> bytes:
        """Broadcast: the list of activatable names may be another one now (specification 0.38)."""
        return wire.message(
            wire.SIGNAL,
            serial,
            flags=wire.NO_REPLY,
            path=DRIVER_PATH,
            interface=DRIVER,
            member=b"ActivatableServicesChanged",
        )
