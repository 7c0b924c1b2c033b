"""What the bus answers when it does not do a command: kdbus's errnos, as exceptions.

Invariant: each is an OSError with `errno` as in kdbus's manual pages, and the built-in class that
Python has for that errno as well, where it has one. `command` is the command's name in kdbus.
"""

from __future__ import annotations

import errno
import os


class BusError(OSError):
    """A command that was refused; the number is in `errno`."""

    command: str = ""


class NotPermitted(BusError, PermissionError):
    """EPERM: the policy does not allow it, or only the bus's owner may."""


class NoSuchName(BusError, ProcessLookupError):
    """ESRCH: nobody has this name, or not for this connection to see."""


class NoSuchPeer(BusError):
    """ENXIO: there is no connection with this id."""


class NameTaken(BusError, FileExistsError):
    """EEXIST: the name has an owner who keeps it; for buses and endpoints: there is one already."""


class NotWaitedFor(BusError):
    """EBADSLT: an answer to what was not called or is over, or a match that is not there."""


class QueueFull(BusError):
    """ENOBUFS, EXFULL: the receiver does not read, or has no room left for this sender."""


class TooManyDescriptors(BusError):
    """EMFILE: more descriptors, connections or matches than one may have."""


class NoDescriptors(BusError):
    """ECOMM: the receiver takes no descriptors."""


class TimedOut(BusError, TimeoutError):
    """ETIMEDOUT: no answer until the deadline."""


class PeerGone(BusError, BrokenPipeError):
    """EPIPE: who was to answer has gone, or has thrown the call away."""


class Disconnected(BusError, ConnectionResetError):
    """ECONNRESET: the connection is over."""


class BusGone(BusError):
    """ESHUTDOWN: the bus or the endpoint is."""


class Cancelled(BusError):
    """ECANCELED, EINTR: the call was taken back."""


_KNOWN: dict[int, type[BusError]] = {
    errno.EPERM: NotPermitted,
    errno.ESRCH: NoSuchName,
    errno.ENXIO: NoSuchPeer,
    errno.EEXIST: NameTaken,
    errno.EBADSLT: NotWaitedFor,
    errno.ENOBUFS: QueueFull,
    errno.EXFULL: QueueFull,
    errno.EMFILE: TooManyDescriptors,
    errno.ECOMM: NoDescriptors,
    errno.ETIMEDOUT: TimedOut,
    errno.EPIPE: PeerGone,
    errno.ECONNRESET: Disconnected,
    errno.ESHUTDOWN: BusGone,
    errno.ECANCELED: Cancelled,
    errno.EINTR: Cancelled,
}


def error_of(number: int, command: str) -> BusError:
    """The exception for an errno that a command was answered with."""
    made = _KNOWN.get(number, BusError)(number, f"{command}: {os.strerror(number)}")
    made.command = command
    return made
